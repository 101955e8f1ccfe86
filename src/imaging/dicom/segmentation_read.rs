//! DICOM Segmentation objects as label maps: BINARY, FRACTIONAL (from one half on) and LABELMAP.
//!
//! Frames may be left out where a segment is not. The grid then reaches from the first to the last frame, and lies where
//! it belongs in the patient, as that of a cropped `.seg.nrrd`.

use super::dataset::{DataSet, Item, bad};
use super::instance::{Slice, slices};
use super::pixels::{Frames, PixelFormat};
use super::series::{SAME_PLACE_MM, among, even_places};
use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::{Geometry, cross, dot};
use crate::imaging::label::{LabelFile, Segment};

const SEGMENTS: u32 = 0x0062_0002;
const SEGMENT_NUMBER: u32 = 0x0062_0004;
const FRAME_SEGMENT: u32 = 0x0062_000a;
const FRAME_SEGMENT_NUMBER: u32 = 0x0062_000b;
const MAX_FRACTION: u32 = 0x0062_000e;

/// Reads a Segmentation object.
///
/// # Errors
/// Damaged data, frames that are not parallel, or an object over the budget.
pub(super) fn decode(set: &DataSet, budget: &Budget) -> Result<LabelFile, ImagingError> {
    let root = set.root();
    let format = PixelFormat::of(set)?;
    let count = match root.decimal::<1>(0x0028_0008)? {
        Some([count]) if count >= 1.0 && count.fract() == 0.0 => count,
        _ => return Err(bad("a segmentation without a number of frames")),
    };
    let sizes = [format.rows as u64, format.columns as u64, count as u64];
    budget.admit(&sizes, 1)?;
    let count = count as usize;
    let frames = Frames::new(set, format, count)?;
    // The notes are about Hounsfield units.
    let placed = slices(root, count, &mut Vec::new())?;
    let (geometry, frame_slices) = grid(&placed, &format)?;
    let mut warnings = set.warnings.clone();
    let names = names(root)?;
    let kind = root.text(0x0062_0001).unwrap_or_default();
    let threshold = match kind.as_str() {
        "BINARY" => Some(1),
        "LABELMAP" => None,
        "FRACTIONAL" => {
            warnings.push("a fractional segmentation; voxels count from one half on".to_owned());
            let most = root.u16(MAX_FRACTION).unwrap_or(255);
            Some(i32::from(most.div_ceil(2)).max(1))
        }
        _ => return Err(bad("a segmentation of no known type")),
    };
    let voxels = geometry.voxel_count();
    let mut layers = Layers {
        budget,
        shape: geometry.shape(),
        layers: Vec::new(),
    };
    let pixels = format.pixel_count();
    if let Some(threshold) = threshold {
        let numbers = segments_of_frames(root, count)?;
        let mut found = Vec::new();
        for (number, name) in names {
            let mut mask = vec![false; voxels];
            for frame in (0..count).filter(|&frame| numbers[frame] == number) {
                let values = frames.read(frame)?;
                for &slice in &frame_slices[frame] {
                    let part = &mut mask[slice * pixels..(slice + 1) * pixels];
                    for (inside, value) in part.iter_mut().zip(&values) {
                        *inside |= *value >= threshold;
                    }
                }
            }
            let layer = layers.take(number, &mask)?;
            found.push(segment(number, name, layer));
        }
        layers.at_least_one()?;
        return Ok(LabelFile {
            geometry,
            layers: layers.layers,
            segments: found,
            warnings,
        });
    }
    layers.at_least_one()?;
    for (frame, slices) in frame_slices.iter().enumerate() {
        let values = frames.read(frame)?;
        for &slice in slices {
            let part = &mut layers.layers[0][slice * pixels..(slice + 1) * pixels];
            for (label, value) in part.iter_mut().zip(&values) {
                *label = u16::try_from(*value).map_err(|_| {
                    ImagingError::LabelValues(format!("it holds the value {value}"))
                })?;
            }
        }
    }
    // Value 0 is background, also where a segment describes it.
    let segments = names
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, name)| segment(number, name, 0))
        .collect();
    Ok(LabelFile {
        geometry,
        layers: layers.layers,
        segments,
        warnings,
    })
}

fn segment(number: u16, name: String, layer: usize) -> Segment {
    Segment {
        id: format!("Segment_{number}"),
        name,
        value: number,
        layer,
        color: None,
    }
}

/// Layers of segments that may overlap.
struct Layers<'b> {
    budget: &'b Budget,
    shape: [usize; 3],
    layers: Vec<Vec<u16>>,
}

impl Layers<'_> {
    /// Puts a segment into the first layer where its place is free.
    fn take(&mut self, number: u16, mask: &[bool]) -> Result<usize, ImagingError> {
        let free = |layer: &Vec<u16>| {
            let mut voxels = layer.iter().zip(mask);
            voxels.all(|(label, inside)| !inside || *label == 0)
        };
        let layer = match self.layers.iter().position(free) {
            Some(layer) => layer,
            None => self.add()?,
        };
        for (label, _) in self.layers[layer]
            .iter_mut()
            .zip(mask)
            .filter(|(_, inside)| **inside)
        {
            *label = number;
        }
        Ok(layer)
    }

    fn add(&mut self) -> Result<usize, ImagingError> {
        let [z, y, x] = self.shape.map(|n| n as u64);
        let layers = self.layers.len() as u64 + 1;
        self.budget.admit(&[z, y, x, layers], 2)?;
        self.layers.push(vec![0; self.shape.iter().product()]);
        Ok(self.layers.len() - 1)
    }

    fn at_least_one(&mut self) -> Result<(), ImagingError> {
        if self.layers.is_empty() {
            self.add()?;
        }
        Ok(())
    }
}

/// Number and name of each segment.
fn names(root: Item<'_>) -> Result<Vec<(u16, String)>, ImagingError> {
    let mut names: Vec<(u16, String)> = Vec::new();
    for item in root.items(SEGMENTS) {
        let number = item
            .u16(SEGMENT_NUMBER)
            .ok_or_else(|| bad("a segment has no number"))?;
        if names.iter().any(|(other, _)| *other == number) {
            return Err(bad(format!("two segments have the number {number}")));
        }
        let name = item
            .text(0x0062_0005)
            .unwrap_or_else(|| format!("Segment_{number}"));
        names.push((number, name));
    }
    Ok(names)
}

fn segments_of_frames(root: Item<'_>, count: usize) -> Result<Vec<u16>, ImagingError> {
    let number = |group: Option<Item<'_>>| group?.first(FRAME_SEGMENT)?.u16(FRAME_SEGMENT_NUMBER);
    let shared = number(root.first(0x5200_9229));
    let own: Vec<Option<u16>> = root
        .items(0x5200_9230)
        .map(|item| number(Some(item)))
        .collect();
    (0..count)
        .map(|frame| {
            let own = own.get(frame).copied().flatten();
            own.or(shared)
                .ok_or_else(|| bad(format!("frame {} does not name its segment", frame + 1)))
        })
        .collect()
}

/// The grid over all frames, and the voxel slices that each frame fills.
fn grid(
    frames: &[Slice],
    format: &PixelFormat,
) -> Result<(Geometry, Vec<Vec<usize>>), ImagingError> {
    let first = &frames[0];
    let normal = cross(first.directions[0], first.directions[1]);
    let parallel = frames.iter().all(|frame| {
        let pairs = frame.directions.iter().flatten();
        let same_way = pairs
            .zip(first.directions.iter().flatten())
            .all(|(a, b)| (a - b).abs() < 1e-3);
        same_way && frame.spacing == first.spacing
    });
    if !parallel {
        return Err(ImagingError::Unsupported(
            "a segmentation whose frames are not parallel".to_owned(),
        ));
    }
    let mut order: Vec<(f64, usize)> = frames
        .iter()
        .enumerate()
        .map(|(n, frame)| (dot(frame.position, normal), n))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let start = order[0].0;
    // Each place once, and the frames there.
    let mut places: Vec<f64> = Vec::new();
    let mut place_of = vec![0; frames.len()];
    for &(at, frame) in &order {
        if places
            .last()
            .is_none_or(|last| at - start - last > SAME_PLACE_MM)
        {
            places.push(at - start);
        }
        place_of[frame] = places.len() - 1;
    }
    let (lowest, highest) = (&frames[order[0].1], &frames[order[order.len() - 1].1]);
    let span = places[places.len() - 1];
    let way: [f64; 3] = if places.len() > 1 {
        std::array::from_fn(|w| (highest.position[w] - lowest.position[w]) / span)
    } else {
        normal
    };
    let regular = even_places(&places, first.spacing_between)
        .or_else(|| (places.len() == 1).then_some((first.thickness.unwrap_or(1.0), vec![0])));
    let (step, at, count) = match regular {
        Some((step, at)) => {
            let count = at[at.len() - 1] + 1;
            let at = at.into_iter().map(|slice| vec![slice]).collect();
            (step, at, count)
        }
        // Each voxel slice gets the nearest frame.
        None => {
            let smallest = places
                .windows(2)
                .map(|pair| pair[1] - pair[0])
                .fold(f64::INFINITY, f64::min);
            let most = 4.0 * (places.len() - 1) as f64;
            let gaps = (span / smallest).round().min(most).max(1.0);
            let mut at: Vec<Vec<usize>> = vec![Vec::new(); places.len()];
            for slice in 0..=gaps as usize {
                let index = among(&places, span * slice as f64 / gaps);
                at[(index.round() as usize).min(places.len() - 1)].push(slice);
            }
            (span / gaps, at, gaps as usize + 1)
        }
    };
    let [along_row, along_column] = first.directions;
    let geometry = Geometry::from_ijk(
        [format.columns, format.rows, count],
        lowest.position,
        [
            along_row.map(|v| v * first.spacing[0]),
            along_column.map(|v| v * first.spacing[1]),
            way.map(|v| v * step),
        ],
    )?;
    let slices = place_of.iter().map(|&place| at[place].clone()).collect();
    Ok((geometry, slices))
}
