//! Crop of a scan to the body, in the plane of the slices.

use crate::imaging::components::{Connectivity, find};
use crate::imaging::{Geometry, ImagingError, Volume};
use crate::model::error::ModelError;

/// A voxel above this is no air.
const BODY_HU: f32 = -600.0;
/// A column belongs to the body when more than this share of its voxels does.
const COLUMN_SHARE: f32 = 0.6;
/// Erosions, then dilations, with a square of 3 x 3.
const OPENING: usize = 2;

/// The scan, `[z, y, x]` in LPS order and HU, cropped in y and x to the box of the largest connected region in which most
/// of each column along z is no air. The table of the scanner is thin and disappears. All slices stay, and a scan without
/// such a region stays as it is.
pub fn crop(scan: Volume<f32>) -> Result<Volume<f32>, ModelError> {
    let [depth, height, width] = scan.geometry.shape();
    let mut counts = vec![0f32; height * width];
    for slice in scan.voxels.chunks_exact(height * width) {
        for (count, &hu) in counts.iter_mut().zip(slice) {
            *count += f32::from(u8::from(hu > BODY_HU));
        }
    }
    let mut mask: Vec<bool> = counts
        .iter()
        .map(|count| *count > COLUMN_SHARE * depth as f32)
        .collect();
    for erode in [true, false] {
        for _ in 0..OPENING {
            mask = square(&mask, height, width, erode);
        }
    }
    let Some([y, x]) = largest_box(&mask, height, width)? else {
        return Ok(scan);
    };
    let geometry = Geometry::new(
        [depth, y.len(), x.len()],
        scan.geometry
            .to_world([0.0, y.start as f64, x.start as f64]),
        scan.geometry.steps_lps_mm(),
    )
    .map_err(ImagingError::from)?;
    let mut voxels = Vec::with_capacity(geometry.voxel_count());
    for slice in scan.voxels.chunks_exact(height * width) {
        for row in slice.chunks_exact(width).take(y.end).skip(y.start) {
            voxels.extend_from_slice(&row[x.clone()]);
        }
    }
    Ok(Volume { geometry, voxels })
}

/// Erosion or dilation with a square of 3 x 3; outside the image there is no body.
fn square(mask: &[bool], height: usize, width: usize, erode: bool) -> Vec<bool> {
    let at = |y: isize, x: isize| {
        (0..height as isize).contains(&y)
            && (0..width as isize).contains(&x)
            && mask[y as usize * width + x as usize]
    };
    let pixel = |n: usize| {
        let (y, x) = ((n / width) as isize, (n % width) as isize);
        let mut around = (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (y + dy, x + dx)));
        if erode {
            around.all(|(y, x)| at(y, x))
        } else {
            around.any(|(y, x)| at(y, x))
        }
    };
    (0..mask.len()).map(pixel).collect()
}

/// Rows and columns of the largest region whose pixels share edges.
fn largest_box(
    mask: &[bool],
    height: usize,
    width: usize,
) -> Result<Option<[std::ops::Range<usize>; 2]>, ModelError> {
    let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let flat = Geometry::new([1, height, width], [0.0; 3], steps).map_err(ImagingError::from)?;
    let label = Volume {
        geometry: flat,
        voxels: mask.iter().map(|inside| u16::from(*inside)).collect(),
    };
    let components = find(&label, Connectivity::Faces6);
    let parts = components.parts.iter().enumerate();
    // Of equal regions the first one stays.
    let Some((largest, _)) = parts.rev().max_by_key(|(_, (_, pixels))| *pixels) else {
        return Ok(None);
    };
    let mut bounds = [(usize::MAX, 0), (usize::MAX, 0)];
    for (n, _) in components
        .ids
        .iter()
        .enumerate()
        .filter(|(_, id)| **id == largest as u32 + 1)
    {
        for (bound, at) in bounds.iter_mut().zip([n / width, n % width]) {
            *bound = (bound.0.min(at), bound.1.max(at));
        }
    }
    Ok(Some(bounds.map(|(first, last)| first..last + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(shape: [usize; 3], hu: impl Fn(usize, usize, usize) -> f32) -> Volume<f32> {
        let [d, h, w] = shape;
        let geometry = Geometry::new(
            shape,
            [10.0, 20.0, 30.0],
            [[0.0, 0.0, 3.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]],
        )
        .unwrap();
        let voxels = (0..d * h * w)
            .map(|n| hu(n / (h * w), n / w % h, n % w))
            .collect();
        Volume::new(geometry, voxels).unwrap()
    }

    #[test]
    fn the_body_stays_and_the_table_goes() {
        let made = scan([5, 40, 30], |z, y, x| {
            let body = (8..24).contains(&y) && (5..25).contains(&x);
            let table = (30..33).contains(&y);
            // One slice of five shows no body; the column still has most of it.
            if (body && z != 4) || table {
                0.0
            } else {
                -1000.0
            }
        });
        let cropped = crop(made.clone()).unwrap();
        assert_eq!(cropped.geometry.shape(), [5, 16, 20]);
        assert_eq!(
            cropped.geometry.origin_lps_mm(),
            made.geometry.to_world([0.0, 8.0, 5.0])
        );
        assert_eq!(cropped.voxels[0], 0.0);
        assert!(cropped.voxels[..4 * 16 * 20].iter().all(|hu| *hu == 0.0));
    }

    #[test]
    fn a_scan_without_body_stays() {
        let air = scan([3, 9, 9], |_, _, _| -1000.0);
        assert_eq!(crop(air.clone()).unwrap(), air);
        let tiny = scan([1, 1, 1], |_, _, _| 0.0);
        assert_eq!(crop(tiny.clone()).unwrap(), tiny);
    }
}
