//! Cutting a patch: random size, place and flips.

use crate::imaging::Volume;
use crate::model::kernels::Tap;
use crate::rng::Rng;

/// A patch is cut this many times as large as the sample, per axis, and resized.
const SCALE: [f64; 2] = [0.7, 1.5];

/// Where a patch lies in a scan: its box, and for each voxel of the sample what it is interpolated from.
pub struct Place {
    /// Per axis the first voxel and their number.
    pub boxes: [(usize, usize); 3],
    /// Voxels of the scan.
    pub taps: [Vec<Tap>; 3],
}

/// Draws the place of a patch of `out` voxels. The cut is never larger than the scan, so a scan smaller than the patch is
/// stretched to it.
pub fn draw(shape: [usize; 3], out: [usize; 3], rng: &mut Rng) -> Place {
    let boxes = [0, 1, 2].map(|axis| {
        let side = (out[axis] as f64 * rng.range(SCALE[0], SCALE[1])) as usize;
        let side = side.clamp(1, shape[axis]);
        (rng.below(shape[axis] - side + 1), side)
    });
    let taps: [Vec<Tap>; 3] = std::array::from_fn(|axis| {
        let (first, side) = boxes[axis];
        let mut taps = taps(first, side, out[axis]);
        if rng.chance(0.5) {
            taps.reverse();
        }
        taps
    });
    Place { boxes, taps }
}

/// The patch at a place.
pub fn cut(scan: &Volume<f32>, place: &Place) -> Vec<f32> {
    resize(scan, place.boxes[2], &place.taps)
}

/// The voxels of a place's box, and the taps counted from its first voxel.
pub fn take(scan: &Volume<f32>, place: Place) -> ([usize; 3], Vec<f32>, [Vec<Tap>; 3]) {
    let [_, height, width] = scan.geometry.shape();
    let [(z, depth), (y, rows), (x, columns)] = place.boxes;
    let mut values = Vec::with_capacity(depth * rows * columns);
    for z in z..z + depth {
        for y in y..y + rows {
            let row = &scan.voxels[(z * height + y) * width + x..][..columns];
            values.extend(row.iter().map(|&value| clean(value)));
        }
    }
    let mut taps = place.taps;
    for (taps, (first, _)) in taps.iter_mut().zip(place.boxes) {
        for tap in taps {
            (tap.low, tap.high) = (tap.low - first, tap.high - first);
        }
    }
    ([depth, rows, columns], values, taps)
}

/// Linear interpolation from `side` voxels to `out` whose first and last voxel centres coincide (the publication's
/// convention; the rest of Fewlabel aligns outer edges).
fn taps(first: usize, side: usize, out: usize) -> Vec<Tap> {
    let step = match out {
        0 | 1 => 0.0,
        _ => (side - 1) as f64 / (out - 1) as f64,
    };
    let tap = |n: usize| {
        let position = (n as f64 * step).min((side - 1) as f64);
        let low = position as usize;
        Tap {
            low: first + low,
            high: first + (low + 1).min(side - 1),
            weight: (position - low as f64) as f32,
        }
    };
    (0..out).map(tap).collect()
}

fn resize(scan: &Volume<f32>, (first_x, side_x): (usize, usize), taps: &[Vec<Tap>; 3]) -> Vec<f32> {
    let [_, height, width] = scan.geometry.shape();
    let row = |z: usize, y: usize| &scan.voxels[(z * height + y) * width + first_x..][..side_x];
    let mut patch = Vec::with_capacity(taps.iter().map(Vec::len).product());
    let mut line = vec![0f32; side_x];
    for z in &taps[0] {
        for y in &taps[1] {
            let rows = [
                (row(z.low, y.low), (1.0 - z.weight) * (1.0 - y.weight)),
                (row(z.low, y.high), (1.0 - z.weight) * y.weight),
                (row(z.high, y.low), z.weight * (1.0 - y.weight)),
                (row(z.high, y.high), z.weight * y.weight),
            ];
            line.fill(0.0);
            for (row, weight) in rows.into_iter().filter(|(_, weight)| *weight > 0.0) {
                for (sum, &value) in line.iter_mut().zip(row) {
                    *sum += weight * clean(value);
                }
            }
            patch.extend(taps[2].iter().map(|x| {
                let (low, high) = (line[x.low - first_x], line[x.high - first_x]);
                low + (high - low) * x.weight
            }));
        }
    }
    patch
}

/// What is not a number becomes air, so that one voxel cannot spoil a patch.
fn clean(value: f32) -> f32 {
    if value.is_nan() {
        -1.0
    } else {
        value.clamp(-1.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::Geometry;
    use crate::model::volume_fusion::tests::assert_uniform;

    #[test]
    fn cuts_are_uniform_in_size_and_place() {
        let (shape, out) = ([4000, 5000, 6000], [640, 1280, 1280]);
        let places: Vec<Place> = (0..1000)
            .map(|n| draw(shape, out, &mut Rng::new(4).stream(n)))
            .collect();
        for axis in 0..3 {
            let boxes = || places.iter().map(|place| place.boxes[axis]);
            // Sides are whole voxels, rounded down.
            let scale = boxes().map(|(_, side)| (side as f64 + 0.5) / out[axis] as f64);
            assert_uniform(scale.collect(), SCALE);
            let origin = boxes().map(|(first, side)| first as f64 / (shape[axis] - side) as f64);
            assert_uniform(origin.collect(), [0.0, 1.0]);
        }
    }

    #[test]
    fn ends_of_the_cut_are_ends_of_the_patch() {
        // numpy: interp(linspace(0, 4, 3), arange(5), [0, 1, 4, 9, 16])
        let geometry = Geometry::new(
            [1, 1, 7],
            [0.0; 3],
            [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
        )
        .unwrap();
        let values = [9.0, 0.0, 0.1, 0.4, 0.9, 1.0, 9.0].to_vec();
        let scan = Volume::new(geometry, values).unwrap();
        let one = || taps(0, 1, 1);
        let resized = resize(&scan, (1, 5), &[one(), one(), taps(1, 5, 3)]);
        assert_eq!(resized, [0.0, 0.4, 1.0]);
        let finer = resize(&scan, (1, 5), &[one(), one(), taps(1, 5, 9)]);
        assert!((finer[1] - 0.05).abs() < 1e-6 && (finer[3] - 0.25).abs() < 1e-6);
        assert_eq!((finer[0], finer[8]), (0.0, 1.0));
    }
}
