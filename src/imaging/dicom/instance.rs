//! What one DICOM file says about its slices: where they are, how their values become Hounsfield units.

use super::dataset::{DataSet, Item, bad};
use super::pixels::{Frames, PixelFormat};
use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::{dot, length};

/// Largest deviation of a direction from length 1, and of two from a right angle, that is rounding.
const ROUNDING: f64 = 1e-2;

const SHARED_GROUPS: u32 = 0x5200_9229;
const FRAME_GROUPS: u32 = 0x5200_9230;

/// One slice.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    /// Centre of the first pixel, LPS mm.
    pub position: [f64; 3],
    /// Unit way along a row (to the next column), and along a column (to the next row).
    pub directions: [[f64; 3]; 2],
    /// Distance of neighbours along a row, and along a column, mm.
    pub spacing: [f64; 2],
    /// What the file tells about the depth of the slice; used for a single slice only.
    pub thickness: Option<f64>,
    /// What the file tells about the distance of slices; used for segmentations, which may leave slices out.
    pub spacing_between: Option<f64>,
    /// Slope and intercept.
    pub rescale: (f64, f64),
    /// Values of [`PHASES`], in that order.
    pub phases: Vec<Option<String>>,
}

/// Fields that tell several images of one place apart, best first: tag and name.
pub(super) const PHASES: [(u32, &str); 7] = [
    (0x0020_9128, "temporal position"),
    (0x0020_0100, "temporal position"),
    (0x0020_0012, "acquisition number"),
    (0x0020_9241, "cardiac phase"),
    (0x0018_1210, "reconstruction kernel"),
    (0x0018_0060, "tube voltage"),
    (0x0008_0032, "acquisition time"),
];

/// An image file without its pixels.
#[derive(Debug)]
pub(super) struct Instance {
    /// Number of the file in its source.
    pub file: usize,
    pub class_uid: String,
    pub sop_uid: String,
    pub series_uid: String,
    pub image_type: String,
    pub is_localizer: bool,
    pub format: PixelFormat,
    /// Stored values that stand for no measurement, first and last.
    pub padding: Option<[i32; 2]>,
    /// One for each frame.
    pub slices: Vec<Slice>,
    pub warnings: Vec<String>,
}

/// What a DICOM file turned out to be.
pub(super) enum Kind {
    /// Slices in the patient.
    Image(Box<Instance>),
    /// A segmentation.
    Segmentation,
    /// Contours.
    Structures,
    /// Any other object: reports, directories, screenshots.
    Other,
}

/// What a file is by its SOP class (PS3.4, B.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Segmentation,
    Structures,
    /// Slices by definition.
    Slices,
    /// Never a scan.
    Other,
    /// Any other; its fields decide.
    Unknown,
}

impl Class {
    pub fn of(set: &DataSet) -> Self {
        let uid = set.root().text(0x0008_0016).unwrap_or_default();
        match uid.strip_prefix("1.2.840.10008.5.1.4.1.1.") {
            Some("66.4" | "66.7") => Self::Segmentation,
            Some("481.3") => Self::Structures,
            // RT dose, segmented surfaces, presentation states, and the like have no scan.
            Some(other) if other.starts_with("481.") || other.starts_with("66.") => Self::Other,
            Some("2" | "2.1" | "2.2" | "4" | "4.1" | "4.4" | "128" | "128.1" | "130") => {
                Self::Slices
            }
            _ => Self::Unknown,
        }
    }
}

impl Kind {
    /// Reads what a file says.
    ///
    /// # Errors
    /// An image of slices that is damaged or does not say where it is.
    pub fn of(set: &DataSet, file: usize, budget: &Budget) -> Result<Self, ImagingError> {
        match Class::of(set) {
            Class::Segmentation => return Ok(Self::Segmentation),
            Class::Structures => return Ok(Self::Structures),
            Class::Other => return Ok(Self::Other),
            Class::Slices | Class::Unknown => {}
        }
        let has_pixels = set.fragments.is_some() || set.pixel_data().is_some();
        let of_slices = Class::of(set) == Class::Slices;
        if !has_pixels && !of_slices {
            return Ok(Self::Other);
        }
        match Instance::read(set, file, budget) {
            Ok(instance) => Ok(Self::Image(Box::new(instance))),
            // A screenshot or dose report beside the slices.
            Err(_) if !of_slices && set.root().text(0x0020_0032).is_none() => Ok(Self::Other),
            Err(error) => Err(error),
        }
    }
}

impl Instance {
    fn read(set: &DataSet, file: usize, budget: &Budget) -> Result<Self, ImagingError> {
        let root = set.root();
        let format = PixelFormat::of(set)?;
        let frames = match root.decimal::<1>(0x0028_0008)? {
            None => 1.0,
            Some([count]) => count,
        };
        if frames < 1.0 || frames.fract() != 0.0 {
            return Err(bad(format!("Number of Frames is {frames}")));
        }
        let bytes = u64::from(format.bits_allocated.div_ceil(8));
        budget.admit(
            &[format.rows as u64, format.columns as u64, frames as u64],
            bytes,
        )?;
        let count = frames as usize;
        // Only whether the pixels can be there.
        Frames::new(set, format, count)?;
        let mut warnings = set.warnings.clone();
        let slices = slices(root, count, &mut warnings)?;
        let image_type = root.text(0x0008_0008).unwrap_or_default();
        Ok(Self {
            file,
            class_uid: root.text(0x0008_0016).unwrap_or_default(),
            sop_uid: root.text(0x0008_0018).unwrap_or_default(),
            series_uid: root.text(0x0020_000e).unwrap_or_default(),
            is_localizer: image_type
                .split('\\')
                .any(|part| matches!(part.trim(), "LOCALIZER" | "SCOUT")),
            image_type: image_type
                .split('\\')
                .take(3)
                .collect::<Vec<_>>()
                .join("\\"),
            padding: padding(root, format.signed),
            format,
            slices,
            warnings,
        })
    }
}

/// The slices of an image of `count` frames.
///
/// # Errors
/// Fields that are missing or make no sense.
pub(super) fn slices(
    root: Item<'_>,
    count: usize,
    warnings: &mut Vec<String>,
) -> Result<Vec<Slice>, ImagingError> {
    let shared = root.first(SHARED_GROUPS);
    let per_frame: Vec<Item<'_>> = root.items(FRAME_GROUPS).collect();
    if shared.is_none() && per_frame.is_empty() {
        if count != 1 {
            return Err(ImagingError::Unsupported(
                "a DICOM image of several frames that does not say where each of them is"
                    .to_owned(),
            ));
        }
        return Ok(vec![slice(root, |_| Some(root), warnings)?]);
    }
    if !per_frame.is_empty() && per_frame.len() != count {
        return Err(bad(format!(
            "{} of {count} frames are described",
            per_frame.len()
        )));
    }
    let mut found = Vec::with_capacity(count);
    for frame in 0..count {
        let own = per_frame.get(frame).copied();
        let group = |tag: u32| {
            own.and_then(|item| item.first(tag))
                .or_else(|| shared.and_then(|item| item.first(tag)))
        };
        found.push(slice(root, group, warnings)?);
    }
    Ok(found)
}

/// One slice; `group` gives the item that holds the fields of a functional group.
fn slice<'d>(
    root: Item<'d>,
    group: impl Fn(u32) -> Option<Item<'d>>,
    warnings: &mut Vec<String>,
) -> Result<Slice, ImagingError> {
    let missing = |what: &str| {
        bad(format!(
            "{what} is missing, so the place of the slice in the patient is not known"
        ))
    };
    let plane = group(0x0020_9113).ok_or_else(|| missing("the plane position"))?;
    let position: [f64; 3] = plane
        .decimal(0x0020_0032)?
        .ok_or_else(|| missing("Image Position (Patient)"))?;
    let orientation: [f64; 6] = group(0x0020_9116)
        .map(|item| item.decimal(0x0020_0037))
        .transpose()?
        .flatten()
        .ok_or_else(|| missing("Image Orientation (Patient)"))?;
    let [a, b, c, d, e, f] = orientation;
    let directions = directions([a, b, c], [d, e, f])?;
    let measures = group(0x0028_9110).ok_or_else(|| missing("Pixel Spacing"))?;
    // First the distance of rows, then that of columns.
    let [between_rows, between_columns]: [f64; 2] = measures
        .decimal(0x0028_0030)?
        .ok_or_else(|| missing("Pixel Spacing"))?;
    if between_rows <= 0.0 || between_columns <= 0.0 {
        return Err(bad(format!(
            "Pixel Spacing is {between_rows} x {between_columns} mm"
        )));
    }
    let depth = |tag: u32| {
        let value = measures.decimal::<1>(tag).ok().flatten();
        value.map(|[mm]| mm).filter(|mm| *mm > 0.0)
    };
    let content = group(0x0020_9111);
    let phases = PHASES
        .iter()
        .map(|&(tag, _)| {
            let own = content.and_then(|item| item.bytes(tag));
            own.or_else(|| root.bytes(tag))
                .map(|raw| raw.escape_ascii().to_string())
        })
        .collect();
    Ok(Slice {
        position,
        directions,
        spacing: [between_columns, between_rows],
        thickness: depth(0x0018_0088).or_else(|| depth(0x0018_0050)),
        spacing_between: depth(0x0018_0088),
        rescale: rescale(root, group(0x0028_9145), warnings)?,
        phases,
    })
}

fn directions(row: [f64; 3], column: [f64; 3]) -> Result<[[f64; 3]; 2], ImagingError> {
    let lengths = [length(row), length(column)];
    let degenerate = lengths.iter().any(|l| (l - 1.0).abs() > ROUNDING)
        || (dot(row, column) / (lengths[0] * lengths[1])).abs() > ROUNDING;
    if degenerate {
        return Err(bad(
            "Image Orientation (Patient) is not two directions at a right angle",
        ));
    }
    Ok([row.map(|v| v / lengths[0]), column.map(|v| v / lengths[1])])
}

fn rescale(
    root: Item<'_>,
    transformation: Option<Item<'_>>,
    warnings: &mut Vec<String>,
) -> Result<(f64, f64), ImagingError> {
    let item = transformation.unwrap_or(root);
    let slope = item.decimal::<1>(0x0028_1053)?;
    let intercept = item.decimal::<1>(0x0028_1052)?;
    if slope.is_none() && intercept.is_none() {
        if root.element_is_there(0x0028_3000) {
            return Err(ImagingError::Unsupported(
                "DICOM values that become Hounsfield units by a table (Modality LUT)".to_owned(),
            ));
        }
        let note =
            "the file gives no rescale slope and intercept; its values were taken as they are";
        if !warnings.iter().any(|warning| warning == note) {
            warnings.push(note.to_owned());
        }
    }
    let ([slope], [intercept]) = (slope.unwrap_or([1.0]), intercept.unwrap_or([0.0]));
    if slope == 0.0 {
        return Err(bad("Rescale Slope is 0"));
    }
    Ok((slope, intercept))
}

/// Pixel Padding Value, and the end of its range where there is one (PS3.3, C.7.5.1.1.2).
fn padding(root: Item<'_>, signed: bool) -> Option<[i32; 2]> {
    let value = |tag: u32| {
        root.u16(tag).map(|raw| match signed {
            true => i32::from(raw as i16),
            false => i32::from(raw),
        })
    };
    let first = value(0x0028_0120)?;
    let last = value(0x0028_0121).unwrap_or(first);
    Some([first.min(last), first.max(last)])
}
