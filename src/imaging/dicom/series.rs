//! Slices sorted into scans: which belong together, in which order, on which grid.
//!
//! Order and distances come from the positions of the slices along their normal, never from names, instance numbers
//! or the spacing that a header claims (PS3.3, C.7.6.2.1.1). What cannot be one scan for certain is refused with what
//! was found; nothing is guessed.

use super::dataset::bad;
use super::instance::{Instance, PHASES, Slice};
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::{Geometry, cross, dot, length};

/// Largest difference of a direction cosine within one scan.
const SAME_DIRECTION: f64 = 1e-3;
/// Largest relative difference of pixel spacings within one scan.
const SAME_SPACING: f64 = 1e-3;
/// Slices closer than this along the normal are at one place, mm.
pub(super) const SAME_PLACE_MM: f64 = 1e-3;
/// Deviation of a slice from its regular place that is rounding, as a share of the distance and within limits, mm.
const EVEN_SHARE: f64 = 0.05;
const EVEN_MM: [f64; 2] = [0.02, 0.1];
/// Most slices that an uneven scan of one slice gets.
pub(super) const MAX_FILL: f64 = 4.0;
/// Most kinds of images in one place.
const MAX_GROUPS: usize = 4096;

/// A frame of one of the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameRef {
    /// Index into the instances.
    pub instance: usize,
    /// Number of the frame, from 0.
    pub frame: usize,
}

/// Slices that are one scan, in order along their normal.
#[derive(Debug)]
pub(super) struct Stack {
    pub frames: Vec<FrameRef>,
    /// The grid of the voxels. That of a tilted scan is sheared: nothing is resampled.
    pub geometry: Geometry,
    /// Where each voxel slice lies among the frames, when they are not evenly spaced: a continuous index.
    pub uneven: Option<Vec<f64>>,
    pub warnings: Vec<String>,
}

/// Whether two frames hold the same pixels.
pub(super) type SamePixels<'f> = dyn Fn(FrameRef, FrameRef) -> Result<bool, ImagingError> + 'f;

/// The scans among the instances, each in the order of its first file, and those that are refused.
pub(super) fn stacks(
    instances: &[Instance],
    same_pixels: &SamePixels<'_>,
) -> Vec<Result<Stack, ImagingError>> {
    let mut found = Vec::new();
    let groups = match groups(instances) {
        Ok(groups) => groups,
        Err(error) => return vec![Err(error)],
    };
    let many = groups.len() > 1;
    let localizers = groups.iter().filter(|group| group.is_localizer).count();
    for group in &groups {
        if group.is_localizer && many && localizers < groups.len() {
            continue;
        }
        if group.is_localizer {
            found.push(Err(ImagingError::Unsupported(
                "a localizer (scout) is no scan; give the folder of the series itself".to_owned(),
            )));
            continue;
        }
        match phases(instances, &group.frames, same_pixels) {
            Err(error) => found.push(Err(error)),
            Ok(stacks) => {
                for (frames, warnings) in stacks {
                    found.push(stack(instances, frames, warnings));
                }
            }
        }
    }
    if many && localizers > 0 && localizers < groups.len() {
        let images: usize = groups
            .iter()
            .filter(|group| group.is_localizer)
            .map(|group| group.frames.len())
            .sum();
        for stack in found.iter_mut().flatten() {
            stack
                .warnings
                .push(format!("{images} localizer images were left out"));
        }
    }
    found
}

/// Frames that look alike.
struct Group<'i> {
    instance: &'i Instance,
    slice: &'i Slice,
    is_localizer: bool,
    frames: Vec<FrameRef>,
}

fn groups(instances: &[Instance]) -> Result<Vec<Group<'_>>, ImagingError> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (number, instance) in instances.iter().enumerate() {
        for (frame, slice) in instance.slices.iter().enumerate() {
            let at = FrameRef {
                instance: number,
                frame,
            };
            let is_full = groups.len() == MAX_GROUPS;
            // The last group first: neighbours in the folder mostly belong together.
            let known = groups
                .iter_mut()
                .rev()
                .find(|group| alike(group, instance, slice));
            match known {
                Some(group) => group.frames.push(at),
                None if is_full => {
                    return Err(ImagingError::TooLarge(format!(
                        "images of more than {MAX_GROUPS} series, orientations or sizes; give the folder of one series"
                    )));
                }
                None => groups.push(Group {
                    instance,
                    slice,
                    is_localizer: instance.is_localizer,
                    frames: vec![at],
                }),
            }
        }
    }
    Ok(groups)
}

fn alike(group: &Group<'_>, instance: &Instance, slice: &Slice) -> bool {
    let (a, b) = (group.slice, slice);
    let near = |a: f64, b: f64| (a - b).abs() <= SAME_SPACING * a.abs().max(b.abs());
    group.instance.series_uid == instance.series_uid
        && group.instance.image_type == instance.image_type
        && group.instance.format.rows == instance.format.rows
        && group.instance.format.columns == instance.format.columns
        && near(a.spacing[0], b.spacing[0])
        && near(a.spacing[1], b.spacing[1])
        && a.directions
            .iter()
            .flatten()
            .zip(b.directions.iter().flatten())
            .all(|(a, b)| (a - b).abs() <= SAME_DIRECTION)
}

fn slice_of(instances: &[Instance], at: FrameRef) -> &Slice {
    &instances[at.instance].slices[at.frame]
}

fn normal_of(slice: &Slice) -> [f64; 3] {
    cross(slice.directions[0], slice.directions[1])
}

/// Sorts along the normal; the places of the frames in mm come beside them.
fn sorted(instances: &[Instance], frames: &[FrameRef]) -> Vec<(f64, FrameRef)> {
    let normal = normal_of(slice_of(instances, frames[0]));
    let mut placed: Vec<(f64, FrameRef)> = frames
        .iter()
        .map(|&at| (dot(slice_of(instances, at).position, normal), at))
        .collect();
    placed.sort_by(|a, b| a.0.total_cmp(&b.0));
    placed
}

fn doubles(placed: &[(f64, FrameRef)]) -> usize {
    placed
        .windows(2)
        .filter(|pair| pair[1].0 - pair[0].0 <= SAME_PLACE_MM)
        .count()
}

/// Ordered frames of one scan, and what was noted about them.
type Phase = (Vec<FrameRef>, Vec<String>);

/// A group with several images of one place is several scans, or the same images twice.
fn phases(
    instances: &[Instance],
    frames: &[FrameRef],
    same_pixels: &SamePixels<'_>,
) -> Result<Vec<Phase>, ImagingError> {
    let placed = sorted(instances, frames);
    if doubles(&placed) == 0 {
        return Ok(vec![(in_order(&placed), Vec::new())]);
    }
    if let Some(single) = without_copies(instances, &placed, same_pixels)? {
        let note = format!(
            "{} images are there twice; one of each was taken",
            placed.len() - single.len()
        );
        return Ok(vec![(single, vec![note])]);
    }
    for (field, (_, name)) in PHASES.iter().enumerate() {
        let Some(parts) = parts(instances, frames, field) else {
            continue;
        };
        let parts: Vec<_> = parts.iter().map(|part| sorted(instances, part)).collect();
        if parts.iter().all(|part| doubles(part) == 0) {
            let count = parts.len();
            let phase = |(n, placed): (usize, &Vec<(f64, FrameRef)>)| {
                let note = format!(
                    "the series holds {count} scans of the same place; this is number {} by {name}",
                    n + 1
                );
                (in_order(placed), vec![note])
            };
            return Ok(parts.iter().enumerate().map(phase).collect());
        }
    }
    Err(ImagingError::Unsupported(format!(
        "the DICOM series holds {} images at {} places, and nothing in them tells which of them are one scan; export each scan as a series of its own",
        placed.len(),
        placed.len() - doubles(&placed)
    )))
}

fn in_order(placed: &[(f64, FrameRef)]) -> Vec<FrameRef> {
    placed.iter().map(|&(_, at)| at).collect()
}

/// The frames with one of each place, if all others of the place are copies of it.
fn without_copies(
    instances: &[Instance],
    placed: &[(f64, FrameRef)],
    same_pixels: &SamePixels<'_>,
) -> Result<Option<Vec<FrameRef>>, ImagingError> {
    let mut kept: Vec<(f64, FrameRef)> = Vec::new();
    for &(place, at) in placed {
        match kept.last() {
            Some(&(before, other)) if place - before <= SAME_PLACE_MM => {
                let (a, b) = (&instances[other.instance], &instances[at.instance]);
                let same_image = !a.sop_uid.is_empty()
                    && a.sop_uid == b.sop_uid
                    && other.frame == at.frame
                    && other.instance != at.instance;
                // Two files of one identity with other pixels are a contradiction, not a copy.
                if !same_pixels(other, at)? {
                    if same_image {
                        return Err(bad(
                            "two files have one SOP Instance UID and different pixels; remove one of them",
                        ));
                    }
                    return Ok(None);
                }
            }
            _ => kept.push((place, at)),
        }
    }
    Ok(Some(in_order(&kept)))
}

/// The frames by the value of a field; none unless every frame has one and there are several.
fn parts(instances: &[Instance], frames: &[FrameRef], field: usize) -> Option<Vec<Vec<FrameRef>>> {
    let mut parts: std::collections::BTreeMap<&str, Vec<FrameRef>> = Default::default();
    for &at in frames {
        let value = slice_of(instances, at).phases[field].as_deref()?;
        parts.entry(value).or_default().push(at);
    }
    let parts: Vec<_> = parts.into_values().collect();
    // As many values as images are numbers of the images, not of scans.
    (parts.len() > 1 && parts.len() * 2 <= frames.len()).then_some(parts)
}

/// The grid of ordered slices.
fn stack(
    instances: &[Instance],
    frames: Vec<FrameRef>,
    mut warnings: Vec<String>,
) -> Result<Stack, ImagingError> {
    let slices: Vec<&Slice> = frames.iter().map(|&at| slice_of(instances, at)).collect();
    let (first, format) = (slices[0], &instances[frames[0].instance].format);
    let normal = normal_of(first);
    let mut noted: Vec<&String> = frames
        .iter()
        .flat_map(|at| &instances[at.instance].warnings)
        .collect();
    noted.sort();
    noted.dedup();
    warnings.extend(noted.into_iter().cloned());

    let offsets: Vec<[f64; 3]> = slices
        .iter()
        .map(|slice| std::array::from_fn(|w| slice.position[w] - first.position[w]))
        .collect();
    let places: Vec<f64> = offsets.iter().map(|&offset| dot(offset, normal)).collect();
    let span = places.last().copied().unwrap_or_default();
    let (count, step, uneven) = match slices.len() {
        1 => {
            let depth = first
                .thickness
                .ok_or_else(|| bad("a single slice that does not tell its thickness"))?;
            warnings.push(format!(
                "a single slice; its thickness of {depth} mm was taken as the distance of slices"
            ));
            (1, normal.map(|v| v * depth), None)
        }
        slices => {
            // Per mm along the normal; tilted scans move sideways too.
            let last = offsets[slices - 1];
            let way = last.map(|v| v / span);
            in_line(&offsets, &places, way)?;
            let sideways = length(std::array::from_fn(|w| way[w] - normal[w]));
            let way = if sideways > crate::imaging::geometry::ORTHOGONAL {
                way
            } else {
                normal
            };
            match spacing(&places)? {
                Spacing::Even(step) => (slices, way.map(|v| v * step), None),
                Spacing::Uneven { smallest, largest } => {
                    let most = MAX_FILL * (slices - 1) as f64;
                    let gaps = (span / smallest).round().min(most).max(1.0);
                    warnings.push(format!(
                        "the slices are {smallest:.3} to {largest:.3} mm apart; interpolated to {:.3} mm",
                        span / gaps
                    ));
                    let at = (0..=gaps as usize)
                        .map(|n| among(&places, span * n as f64 / gaps))
                        .collect();
                    (gaps as usize + 1, way.map(|v| v * span / gaps), Some(at))
                }
            }
        }
    };
    let [along_row, along_column] = first.directions;
    let geometry = Geometry::from_ijk(
        [format.columns, format.rows, count],
        first.position,
        [
            along_row.map(|v| v * first.spacing[0]),
            along_column.map(|v| v * first.spacing[1]),
            step,
        ],
    )?;
    Ok(Stack {
        frames,
        geometry,
        uneven,
        warnings,
    })
}

/// Refuses slices that do not lie along one straight line.
fn in_line(offsets: &[[f64; 3]], places: &[f64], way: [f64; 3]) -> Result<(), ImagingError> {
    for (offset, place) in offsets.iter().zip(places) {
        let aside = length(std::array::from_fn(|w| offset[w] - way[w] * place));
        if aside > EVEN_MM[1] {
            return Err(ImagingError::Unsupported(format!(
                "the slices of the DICOM series are shifted against each other, by {aside:.2} mm at {place:.2} mm; a scan that changes its tilt or table position is not read"
            )));
        }
    }
    Ok(())
}

enum Spacing {
    /// Distance in mm.
    Even(f64),
    Uneven {
        smallest: f64,
        largest: f64,
    },
}

/// How ordered places, the first of them 0, are spaced.
fn spacing(places: &[f64]) -> Result<Spacing, ImagingError> {
    let gaps: Vec<f64> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mut by_size = gaps.clone();
    by_size.sort_by(f64::total_cmp);
    let (smallest, largest) = (by_size[0], by_size[gaps.len() - 1]);
    let median = by_size[gaps.len() / 2];
    let mean = places[places.len() - 1] / gaps.len() as f64;
    let tolerance = |step: f64| (EVEN_SHARE * step).clamp(EVEN_MM[0], EVEN_MM[1]);
    let regular = places
        .iter()
        .enumerate()
        .all(|(n, place)| (place - mean * n as f64).abs() <= tolerance(mean));
    if regular {
        return Ok(Spacing::Even(mean));
    }
    let steps = |gap: f64| (gap / median).round();
    let is_whole =
        |&gap: &f64| steps(gap) >= 1.0 && (gap - median * steps(gap)).abs() <= tolerance(median);
    if gaps.iter().all(is_whole) {
        let wanting: f64 = gaps.iter().map(|&gap| steps(gap) - 1.0).sum();
        let at = gaps.iter().position(|&gap| steps(gap) > 1.0).unwrap_or(0);
        return Err(ImagingError::Unsupported(format!(
            "the DICOM series is not complete: {wanting} slices are missing, the first between slice {} and {} in the order of their positions ({:.3} mm apart where others are {median:.3} mm apart); send the complete series",
            at + 1,
            at + 2,
            gaps[at]
        )));
    }
    Ok(Spacing::Uneven { smallest, largest })
}

/// Distance and slice numbers of ordered places of which some may be left out, the first of them 0: whole steps of the
/// announced distance, or of the smallest gap. None when they are no such.
pub(super) fn even_places(places: &[f64], announced: Option<f64>) -> Option<(f64, Vec<usize>)> {
    let smallest = places
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .fold(f64::INFINITY, f64::min);
    let span = places.last().copied().unwrap_or_default();
    let numbers = |step: f64| {
        let limit = (EVEN_SHARE * step).clamp(EVEN_MM[0], EVEN_MM[1]);
        let steps = (span / step).round();
        if !(1.0..1e5).contains(&steps) {
            return None;
        }
        // A step that was rounded adds up over many slices.
        let step = span / steps;
        let whole = |&place: &f64| {
            let number = (place / step).round();
            ((place - number * step).abs() <= limit).then_some(number as usize)
        };
        let numbers: Option<Vec<usize>> = places.iter().map(whole).collect();
        Some((step, numbers?))
    };
    announced.and_then(numbers).or_else(|| numbers(smallest))
}

/// Continuous index of a place among ordered ones.
pub(super) fn among(places: &[f64], place: f64) -> f64 {
    let above = places.partition_point(|&other| other <= place);
    if above == 0 {
        return 0.0;
    }
    if above == places.len() {
        return (places.len() - 1) as f64;
    }
    let (low, high) = (places[above - 1], places[above]);
    (above - 1) as f64 + (place - low) / (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_even_and_gaps_are_not() {
        assert!(matches!(
            spacing(&[0.0, 0.62, 1.25, 1.88, 2.5]),
            Ok(Spacing::Even(step)) if step == 0.625
        ));
        assert!(matches!(
            spacing(&[0.0, 5.0, 10.0, 15.0]),
            Ok(Spacing::Even(step)) if step == 5.0
        ));
        let Err(error) = spacing(&[0.0, 5.0, 10.0, 20.0, 25.0]) else {
            panic!("a gap of two steps was accepted");
        };
        assert!(
            error.to_string().contains("between slice 3 and 4"),
            "{error}"
        );
        assert!(matches!(
            spacing(&[0.0, 5.0, 11.3, 15.0, 22.0]),
            Ok(Spacing::Uneven { smallest, .. }) if (smallest - 3.7).abs() < 1e-9
        ));
    }

    #[test]
    fn places_among_others() {
        let places = [0.0, 2.0, 3.0];
        for (place, index) in [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0), (2.5, 1.5), (3.0, 2.0)] {
            assert_eq!(among(&places, place), index, "{place}");
        }
    }
}
