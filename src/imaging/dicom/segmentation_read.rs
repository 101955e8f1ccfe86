//! DICOM Segmentation objects as label maps: BINARY, FRACTIONAL (from one half on) and LABELMAP.
//!
//! Frames may be left out where a segment is not. The grid then reaches from the first to the last frame, and lies where
//! it belongs in the patient, as that of a cropped `.seg.nrrd`.

use std::collections::{BTreeMap, BTreeSet};

use super::dataset::{DataSet, Item, bad};
use super::instance::{Slice, slices};
use super::layers::{Layers, Mask};
use super::pixels::{Frames, PixelFormat};
use super::series::{MAX_FILL, SAME_PLACE_MM, among, even_places};
use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::{Geometry, cross, dot};
use crate::imaging::label::{LabelFile, Segment};

const SEGMENTS: u32 = 0x0062_0002;
const SEGMENT_NUMBER: u32 = 0x0062_0004;
const FRAME_SEGMENT: u32 = 0x0062_000a;
const FRAME_SEGMENT_NUMBER: u32 = 0x0062_000b;
const MAX_FRACTION: u32 = 0x0062_000e;
/// Gaps between uneven places that are wider than so many usual ones are gaps between structures.
const MAX_BRIDGE: f64 = 8.0;

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
    let grid = grid(&placed, &format)?;
    let mut layers = Layers::new(grid.geometry.shape(), budget)?;
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
    if let Some(threshold) = threshold {
        let mut frames_of: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (frame, number) in segments_of_frames(root, count)?.into_iter().enumerate() {
            frames_of.entry(number).or_default().push(frame);
        }
        let mut segments = Vec::new();
        for (number, name) in names {
            let mut mask = Mask::new();
            for &frame in frames_of.get(&number).into_iter().flatten() {
                let values = frames.read(frame)?;
                for &slice in grid.slices_of(frame) {
                    let part = mask
                        .entry(slice)
                        .or_insert_with(|| vec![false; values.len()]);
                    for (inside, value) in part.iter_mut().zip(&values) {
                        *inside |= *value >= threshold;
                    }
                }
            }
            let layer = layers.put(number, &mask)?;
            segments.push(segment(number, name, layer));
        }
        return Ok(LabelFile {
            geometry: grid.geometry,
            layers: layers.into_inner(),
            segments,
            warnings,
        });
    }
    for frame in 0..count {
        let values = frames.read(frame)?;
        for &slice in grid.slices_of(frame) {
            for (label, value) in layers.slice_mut(slice).iter_mut().zip(&values) {
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
        geometry: grid.geometry,
        layers: layers.into_inner(),
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

/// Number and name of each segment.
fn names(root: Item<'_>) -> Result<Vec<(u16, String)>, ImagingError> {
    let (mut names, mut numbers) = (Vec::new(), BTreeSet::new());
    for item in root.items(SEGMENTS) {
        let number = item
            .u16(SEGMENT_NUMBER)
            .ok_or_else(|| bad("a segment has no number"))?;
        if !numbers.insert(number) {
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

/// The grid over all frames, and which of its slices each frame fills.
struct Grid {
    geometry: Geometry,
    /// Number of the place of each frame along the normal.
    place_of: Vec<usize>,
    /// The voxel slices of each place.
    slices: Vec<Vec<usize>>,
}

impl Grid {
    fn slices_of(&self, frame: usize) -> &[usize] {
        &self.slices[self.place_of[frame]]
    }
}

fn grid(frames: &[Slice], format: &PixelFormat) -> Result<Grid, ImagingError> {
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
        None => nearest(&places),
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
    Ok(Grid {
        geometry,
        place_of,
        slices: at,
    })
}

/// Distance of the voxel slices over uneven places, the slices of each place, and their number. A slice gets the nearest
/// place; in a gap that is wide beside the others, frames were left out, and slices far from its ends stay empty.
fn nearest(places: &[f64]) -> (f64, Vec<Vec<usize>>, usize) {
    let gaps: Vec<f64> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mut by_size = gaps.clone();
    by_size.sort_by(f64::total_cmp);
    let (smallest, median) = (by_size[0], by_size[by_size.len() / 2]);
    let span = places[places.len() - 1];
    let most = MAX_FILL * gaps.len() as f64;
    let count = (span / smallest).round().min(most).max(1.0);
    let step = span / count;
    let mut slices: Vec<Vec<usize>> = vec![Vec::new(); places.len()];
    for slice in 0..=count as usize {
        let at = step * slice as f64;
        let place = (among(places, at).round() as usize).min(places.len() - 1);
        let gap = match at < places[place] {
            true => place.checked_sub(1).map(|below| gaps[below]),
            false => gaps.get(place).copied(),
        };
        let reach = match gap {
            Some(gap) if gap > MAX_BRIDGE * median => median.max(step) / 2.0,
            _ => f64::INFINITY,
        };
        if (at - places[place]).abs() <= reach {
            slices[place].push(slice);
        }
    }
    (step, slices, count as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_between_uneven_places() {
        let (step, slices, count) = nearest(&[0.0, 1.0, 3.0, 4.5]);
        assert_eq!((step, count), (0.9, 6));
        assert_eq!(slices, [vec![0], vec![1, 2], vec![3, 4], vec![5]]);
    }

    #[test]
    fn a_wide_gap_stays_empty() {
        let (step, slices, count) = nearest(&[0.0, 1.0, 2.5, 42.5, 44.0]);
        let last = count - 1;
        assert_eq!(last as f64 * step, 44.0);
        let filled: Vec<usize> = slices.concat();
        assert!(filled.iter().all(|&n| {
            let at = n as f64 * step;
            at < 2.5 + step || at > 42.5 - step
        }));
        assert!(filled.contains(&0) && filled.contains(&last));
    }
}
