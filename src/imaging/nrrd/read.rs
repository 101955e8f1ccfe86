//! From an NRRD file to a [`Raster`].

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::data::{self, Encoding, Source};
use super::header::{Header, bad, numbers, shortened, vectors};
use super::segments;
use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::{Geometry, cross, normalised};
use crate::imaging::raster::{Layers, Raster};
use crate::imaging::sample::Sample;

/// The format's own limit.
const MAX_DIMENSION: usize = 16;

/// Reads the image whose header comes from `reader`.
pub(in crate::imaging) fn read(
    path: &Path,
    mut reader: BufReader<File>,
    stored_bytes: u64,
    budget: &Budget,
) -> Result<Raster, ImagingError> {
    let mut header = Header::read(&mut reader)?;
    let mut warnings = std::mem::take(&mut header.warnings);
    let sample = sample(header.required("type")?)?;
    let encoding = Encoding::parse(header.required("encoding")?)?;
    let axes = axes(&header)?;
    let expected_bytes = budget.admit(&axes.sizes, sample.size_bytes() as u64)?;
    let (size_ijk, layers) = arrange(&header, &axes)?;
    let geometry = geometry(&header, &axes, size_ijk, &mut warnings)?;
    let segments = segments::from_header(&header, layers.count)?;

    let source = Source::new(
        path,
        &header,
        reader,
        stored_bytes - header.size_bytes.min(stored_bytes),
    );
    let mut bytes = data::read(
        source,
        &header,
        encoding,
        sample,
        expected_bytes,
        budget,
        &mut warnings,
    )?;
    if encoding != Encoding::Text && sample.size_bytes() > 1 {
        match header
            .field("endian")
            .map(str::to_ascii_lowercase)
            .as_deref()
        {
            Some("little") => {}
            Some("big") => sample.swap_bytes(&mut bytes),
            None => warnings.push(
                "the header does not give the byte order; little endian is assumed".to_owned(),
            ),
            Some(other) => {
                return Err(bad(format!(
                    "endian {:?} is neither little nor big",
                    shortened(other)
                )));
            }
        }
    }
    let format = if segments.is_empty() {
        "nrrd"
    } else {
        "seg.nrrd"
    };
    Ok(Raster {
        format,
        geometry,
        sample,
        rescale: None,
        layers,
        padding: None,
        segments,
        warnings,
        bytes,
    })
}

fn sample(name: &str) -> Result<Sample, ImagingError> {
    let name = name.to_ascii_lowercase();
    let words: Vec<&str> = name.split_whitespace().collect();
    Ok(match words.join(" ").as_str() {
        "signed char" | "int8" | "int8_t" => Sample::I8,
        "uchar" | "unsigned char" | "uint8" | "uint8_t" => Sample::U8,
        "short" | "short int" | "signed short" | "signed short int" | "int16" | "int16_t" => {
            Sample::I16
        }
        "ushort" | "unsigned short" | "unsigned short int" | "uint16" | "uint16_t" => Sample::U16,
        "int" | "signed int" | "int32" | "int32_t" => Sample::I32,
        "uint" | "unsigned int" | "uint32" | "uint32_t" => Sample::U32,
        "longlong"
        | "long long"
        | "long long int"
        | "signed long long"
        | "signed long long int"
        | "int64"
        | "int64_t" => Sample::I64,
        "ulonglong" | "unsigned long long" | "unsigned long long int" | "uint64" | "uint64_t" => {
            Sample::U64
        }
        "float" => Sample::F32,
        "double" => Sample::F64,
        "block" => {
            return Err(ImagingError::Unsupported(
                "voxels of type block are no numbers".to_owned(),
            ));
        }
        other => {
            return Err(bad(format!(
                "the type {:?} does not exist",
                shortened(other)
            )));
        }
    })
}

/// What the header says about each axis.
struct Axes {
    sizes: Vec<u64>,
    /// Step of a spatial axis in the header's space; `None` for one that is not spatial.
    directions: Option<Vec<Option<[f64; 3]>>>,
    /// Whether `kinds` calls the axis spatial; all of them where the field is absent.
    spatial_kinds: Vec<bool>,
    /// Whether the field `kinds` is there.
    has_kinds: bool,
}

fn axes(header: &Header) -> Result<Axes, ImagingError> {
    let dimension: usize = header
        .required("dimension")?
        .parse()
        .map_err(|_| bad("dimension is no valid number"))?;
    if !(1..=MAX_DIMENSION).contains(&dimension) {
        return Err(bad(format!(
            "dimension {dimension} is not 1 to {MAX_DIMENSION}"
        )));
    }
    let per_axis = |name: &str, count: usize| {
        if count == dimension {
            Ok(())
        } else {
            Err(bad(format!(
                "{name} has {count} entries for dimension {dimension}"
            )))
        }
    };
    let sizes: Vec<u64> = numbers("sizes", header.required("sizes")?)?;
    per_axis("sizes", sizes.len())?;
    if sizes.contains(&0) {
        return Err(bad("a size is 0; every size must be at least 1"));
    }
    let kinds = header.field("kinds").map(|text| text.to_ascii_lowercase());
    let spatial_kinds = match &kinds {
        None => vec![true; dimension],
        Some(kinds) => {
            let spatial: Vec<bool> = kinds
                .split_whitespace()
                .map(|kind| matches!(kind, "domain" | "space" | "???" | "none"))
                .collect();
            per_axis("kinds", spatial.len())?;
            spatial
        }
    };
    let directions = match header.field("spacedirections") {
        None => None,
        Some(text) => {
            let vectors = vectors("space directions", text)?;
            per_axis("space directions", vectors.len())?;
            Some(
                vectors
                    .into_iter()
                    .map(|vector| vector.map(three).transpose())
                    .collect::<Result<_, _>>()?,
            )
        }
    };
    Ok(Axes {
        sizes,
        directions,
        spatial_kinds,
        has_kinds: kinds.is_some(),
    })
}

fn three(vector: Vec<f64>) -> Result<[f64; 3], ImagingError> {
    vector.try_into().map_err(|vector: Vec<f64>| {
        ImagingError::Unsupported(format!(
            "a space of {} dimensions; only three-dimensional space is read",
            vector.len()
        ))
    })
}

impl Axes {
    fn is_spatial(&self, axis: usize) -> bool {
        match &self.directions {
            Some(directions) => directions[axis].is_some(),
            None => self.spatial_kinds[axis],
        }
    }

    /// File axes that are i, j, k, in order.
    fn spatial(&self) -> Vec<usize> {
        let mut spatial: Vec<usize> = (0..self.sizes.len())
            .filter(|&axis| self.is_spatial(axis))
            .collect();
        // Without kinds or directions, trailing axes of size 1 are taken as not spatial.
        while spatial.len() > 3 && spatial.last().is_some_and(|&axis| self.sizes[axis] == 1) {
            spatial.pop();
        }
        spatial
    }
}

/// Size of the image and where its layers lie.
fn arrange(header: &Header, axes: &Axes) -> Result<([usize; 3], Layers), ImagingError> {
    let spatial = axes.spatial();
    if !(2..=3).contains(&spatial.len()) {
        return Err(ImagingError::Unsupported(format!(
            "an image with {} spatial axes; a scan has two or three",
            spatial.len()
        )));
    }
    let mut size_ijk = [1; 3];
    for (to, &axis) in size_ijk.iter_mut().zip(&spatial) {
        *to = usize::try_from(axes.sizes[axis]).map_err(|_| bad("a size is too large"))?;
    }
    let others: Vec<usize> = (0..axes.sizes.len())
        .filter(|axis| !spatial.contains(axis) && axes.sizes[*axis] > 1)
        .collect();
    let layers = match others[..] {
        [] => Layers::ONE,
        [axis]
            if segments::present(header)
                && (axis < spatial[0] || axis > spatial[spatial.len() - 1]) =>
        {
            let count =
                usize::try_from(axes.sizes[axis]).map_err(|_| bad("a size is too large"))?;
            Layers {
                count,
                interleaved: axis < spatial[0],
            }
        }
        _ => {
            return Err(ImagingError::Unsupported(format!(
                "an image of sizes {:?} is not scalar (colours, vectors or several volumes); send one value per voxel",
                axes.sizes
            )));
        }
    };
    Ok((size_ijk, layers))
}

fn geometry(
    header: &Header,
    axes: &Axes,
    size_ijk: [usize; 3],
    warnings: &mut Vec<String>,
) -> Result<Geometry, ImagingError> {
    let to_lps = space_to_lps(header, warnings)?;
    let mm = unit_in_mm(header, warnings);
    let into = |vector: [f64; 3]| std::array::from_fn(|w| vector[w] * to_lps[w] * mm);
    let spatial = axes.spatial();
    let mut steps = [[0.0; 3]; 3];
    match &axes.directions {
        Some(directions) => {
            for (step, &axis) in steps.iter_mut().zip(&spatial) {
                *step = into(directions[axis].unwrap_or_default());
            }
            if spatial.len() == 2 {
                let normal = cross(steps[0], steps[1]);
                if normal.iter().any(|v| *v != 0.0) {
                    steps[2] = normalised(normal);
                }
            }
        }
        None => {
            warnings.push(
                "the file gives no directions; its axes are taken as left, posterior, superior"
                    .to_owned(),
            );
            let spacings: Vec<f64> = match header.field("spacings") {
                Some(text) => numbers("spacings", text)?,
                None => {
                    warnings.push("the file gives no voxel size; 1 mm is assumed".to_owned());
                    vec![1.0; axes.sizes.len()]
                }
            };
            if spacings.len() != axes.sizes.len() {
                return Err(bad("spacings does not have one entry per axis"));
            }
            for (w, step) in steps.iter_mut().enumerate() {
                step[w] = spatial.get(w).map_or(1.0, |&axis| spacings[axis]);
            }
        }
    }
    let origin = match header.field("spaceorigin") {
        Some(text) => match vectors("space origin", text)?.pop() {
            Some(Some(origin)) => into(three(origin)?),
            _ => return Err(bad("space origin is no (x,y,z) vector")),
        },
        None => {
            if axes.directions.is_some() {
                warnings.push("the file gives no origin; zero is assumed".to_owned());
            }
            [0.0; 3]
        }
    };
    if !axes.has_kinds && axes.sizes.len() > spatial.len() {
        warnings.push("an axis without a kind is taken as not spatial".to_owned());
    }
    Ok(Geometry::from_ijk(size_ijk, origin, steps)?)
}

/// Signs that take the header's space to LPS.
fn space_to_lps(header: &Header, warnings: &mut Vec<String>) -> Result<[f64; 3], ImagingError> {
    let Some(space) = header.field("space") else {
        if let Some(dimension) = header.field("spacedimension") {
            if dimension != "3" {
                return Err(ImagingError::Unsupported(format!(
                    "a space of {} dimensions",
                    shortened(dimension)
                )));
            }
            warnings.push(
                "the file does not name its space; left-posterior-superior is assumed".to_owned(),
            );
        }
        return Ok([1.0; 3]);
    };
    match space.to_ascii_lowercase().as_str() {
        "left-posterior-superior" | "lps" => Ok([1.0, 1.0, 1.0]),
        "right-anterior-superior" | "ras" => Ok([-1.0, -1.0, 1.0]),
        "left-anterior-superior" | "las" => Ok([1.0, -1.0, 1.0]),
        "scanner-xyz" | "3d-right-handed" | "3d-left-handed" => {
            warnings.push(format!("the space {space:?} does not tell left from right; left-posterior-superior is assumed"));
            Ok([1.0; 3])
        }
        other => Err(ImagingError::Unsupported(format!(
            "the space {:?}",
            shortened(other)
        ))),
    }
}

fn unit_in_mm(header: &Header, warnings: &mut Vec<String>) -> f64 {
    let Some(units) = header.field("spaceunits") else {
        return 1.0;
    };
    let mut units = units.split_whitespace().map(|unit| unit.trim_matches('"'));
    let first = units.next().unwrap_or("mm");
    let factor = match first {
        "mm" | "" | "???" => 1.0,
        "cm" => 10.0,
        "m" => 1e3,
        "um" | "µm" | "μm" => 1e-3,
        _ => f64::NAN,
    };
    if factor.is_nan() || units.any(|unit| unit != first) {
        warnings.push("the units of space are not understood; millimetres are assumed".to_owned());
        return 1.0;
    }
    factor
}
