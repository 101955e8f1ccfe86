//! Images on other grids.
//!
//! Sampling follows ITK: voxel values stand at voxel centres, an image reaches half a voxel beyond
//! its outermost centres, and within that margin the nearest edge value continues. A grid of
//! another spacing keeps the outer edge of the first voxel, so nothing shifts. Labels are resampled
//! by [`nearest`] only.

use rayon::prelude::*;

use super::geometry::{Geometry, GeometryError, dot, length, normalised};
use super::volume::Volume;

/// Positions this close beyond the edge of an image still belong to it (rounding).
const EDGE: f64 = 1e-6;

/// The grid over the same extents with voxels of `spacing_zyx_mm`; sizes are rounded to the nearest
/// whole voxel, at least one.
///
/// # Errors
/// A spacing that is not a positive length, or a grid that would not fit in memory.
pub fn grid_with_spacing(
    geometry: &Geometry,
    spacing_zyx_mm: [f64; 3],
) -> Result<Geometry, GeometryError> {
    let old = geometry.spacing_mm();
    let steps = geometry.steps_lps_mm();
    let mut shape = [0; 3];
    let mut first = [0.0; 3];
    let mut new_steps = [[0.0; 3]; 3];
    for axis in 0..3 {
        let new = spacing_zyx_mm[axis];
        if !new.is_finite() {
            return Err(GeometryError::NotFinite);
        }
        if new <= 0.0 {
            return Err(GeometryError::Spacing(new));
        }
        // A saturating cast; Geometry::new refuses what is too large.
        shape[axis] = ((geometry.shape()[axis] as f64 * old[axis] / new).round() as usize).max(1);
        first[axis] = 0.5 * (new / old[axis] - 1.0);
        new_steps[axis] = steps[axis].map(|v| v * new / old[axis]);
    }
    Geometry::new(shape, geometry.to_world(first), new_steps)
}

/// The grid at right angles over all of a sheared grid, such as that of a tilted gantry: x runs as before, the distances
/// of columns, rows and slices stay. None when the grid is not sheared.
///
/// # Errors
/// A grid that would not fit in memory.
pub fn upright(geometry: &Geometry) -> Result<Option<Geometry>, GeometryError> {
    if !geometry.is_sheared() {
        return Ok(None);
    }
    let [z, y, x] = geometry.steps_lps_mm();
    let without = |v: [f64; 3], axis: [f64; 3]| {
        let along = dot(v, axis);
        std::array::from_fn(|w| v[w] - along * axis[w])
    };
    let x_axis = normalised(x);
    let y_axis = normalised(without(y, x_axis));
    let across = without(without(z, x_axis), y_axis);
    let axes = [normalised(across), y_axis, x_axis];
    let spacing_mm = [length(across), length(y), length(x)];
    let corners = geometry.corners();
    let mut shape = [0; 3];
    let mut origin = [0.0; 3];
    for axis in 0..3 {
        let along = corners.map(|corner| dot(corner, axes[axis]));
        let low = along.iter().copied().fold(f64::INFINITY, f64::min);
        let high = along.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // A saturating cast; Geometry::new refuses what is too large.
        shape[axis] = ((high - low) / spacing_mm[axis] - EDGE).ceil() as usize + 1;
        for w in 0..3 {
            origin[w] += low * axes[axis][w];
        }
    }
    let steps = std::array::from_fn(|a| axes[a].map(|v| v * spacing_mm[a]));
    Geometry::new(shape, origin, steps).map(Some)
}

/// `volume` on the grid `target` by trilinear interpolation; `outside` beyond its extents.
pub fn linear(volume: &Volume<f32>, target: &Geometry, outside: f32) -> Volume<f32> {
    let map = IndexMap::new(target, &volume.geometry);
    let shape = volume.geometry.shape();
    let source = &volume.voxels;
    if let Some(scale) = map.diagonal() {
        let taps: [Vec<Option<Tap>>; 3] = std::array::from_fn(|a| {
            (0..target.shape()[a])
                .map(|n| Tap::at(map.offset[a] + scale[a] * n as f64, shape[a]))
                .collect()
        });
        return rows(target, |z, y, row| {
            let (Some(tz), Some(ty)) = (taps[0][z], taps[1][y]) else {
                row.resize(row.len() + taps[2].len(), outside);
                return;
            };
            let line = |z: usize, y: usize| &source[(z * shape[1] + y) * shape[2]..][..shape[2]];
            let lines = [
                line(tz.low, ty.low),
                line(tz.low, ty.high),
                line(tz.high, ty.low),
                line(tz.high, ty.high),
            ];
            let weights = [
                (1.0 - tz.weight) * (1.0 - ty.weight),
                (1.0 - tz.weight) * ty.weight,
                tz.weight * (1.0 - ty.weight),
                tz.weight * ty.weight,
            ];
            // Combine the four lines once; each value is then used for many x.
            let line: Vec<f32> = (0..shape[2])
                .map(|x| (0..4).map(|n| lines[n][x] * weights[n]).sum())
                .collect();
            row.extend(taps[2].iter().map(|tap| {
                tap.map_or(outside, |t| {
                    line[t.low] + (line[t.high] - line[t.low]) * t.weight
                })
            }));
        });
    }
    rows(target, |z, y, row| {
        row.extend((0..target.shape()[2]).map(|x| {
            let index = map.at(z, y, x);
            let taps = [
                Tap::at(index[0], shape[0]),
                Tap::at(index[1], shape[1]),
                Tap::at(index[2], shape[2]),
            ];
            let [Some(tz), Some(ty), Some(tx)] = taps else {
                return outside;
            };
            let value = |z: usize, y: usize, x: usize| source[(z * shape[1] + y) * shape[2] + x];
            let mix = |a: f32, b: f32, weight: f32| a + (b - a) * weight;
            let along_x =
                |z: usize, y: usize| mix(value(z, y, tx.low), value(z, y, tx.high), tx.weight);
            let along_y = |z: usize| mix(along_x(z, ty.low), along_x(z, ty.high), ty.weight);
            mix(along_y(tz.low), along_y(tz.high), tz.weight)
        }));
    })
}

/// `volume` on the grid `target`, each voxel from the nearest one; `outside` beyond its extents.
/// Half-way positions go to the higher index, as in ITK.
pub fn nearest<T: Copy + Send + Sync>(
    volume: &Volume<T>,
    target: &Geometry,
    outside: T,
) -> Volume<T> {
    let map = IndexMap::new(target, &volume.geometry);
    let shape = volume.geometry.shape();
    let source = &volume.voxels;
    if let Some(scale) = map.diagonal() {
        let picks: [Vec<Option<usize>>; 3] = std::array::from_fn(|a| {
            (0..target.shape()[a])
                .map(|n| nearest_index(map.offset[a] + scale[a] * n as f64, shape[a]))
                .collect()
        });
        return rows(target, |z, y, row| match (picks[0][z], picks[1][y]) {
            (Some(z), Some(y)) => {
                let line = &source[(z * shape[1] + y) * shape[2]..][..shape[2]];
                row.extend(picks[2].iter().map(|x| x.map_or(outside, |x| line[x])));
            }
            _ => row.resize(row.len() + picks[2].len(), outside),
        });
    }
    rows(target, |z, y, row| {
        row.extend((0..target.shape()[2]).map(|x| {
            let index = map.at(z, y, x);
            let picks: [Option<usize>; 3] =
                std::array::from_fn(|a| nearest_index(index[a], shape[a]));
            match picks {
                [Some(z), Some(y), Some(x)] => source[(z * shape[1] + y) * shape[2] + x],
                _ => outside,
            }
        }));
    })
}

/// A volume whose rows `fill(z, y, slice)` appends in order, slices in parallel.
fn rows<T: Copy + Send + Sync>(
    target: &Geometry,
    fill: impl Fn(usize, usize, &mut Vec<T>) + Sync,
) -> Volume<T> {
    let [nz, ny, nx] = target.shape();
    let slices: Vec<Vec<T>> = (0..nz)
        .into_par_iter()
        .map(|z| {
            let mut slice = Vec::with_capacity(ny * nx);
            for y in 0..ny {
                fill(z, y, &mut slice);
            }
            slice
        })
        .collect();
    Volume {
        geometry: *target,
        voxels: slices.concat(),
    }
}

/// Continuous index in the source of an index in the target: an affine map.
struct IndexMap {
    offset: [f64; 3],
    /// `steps[a]`: change of the source index by one step along target axis `a`.
    steps: [[f64; 3]; 3],
}

impl IndexMap {
    fn new(target: &Geometry, source: &Geometry) -> Self {
        let offset = source.to_index(target.origin_lps_mm());
        let steps = std::array::from_fn(|a| {
            let mut unit = [0.0; 3];
            unit[a] = 1.0;
            let moved = source.to_index(target.to_world(unit));
            std::array::from_fn(|b| moved[b] - offset[b])
        });
        Self { offset, steps }
    }

    /// The scale per axis when the axes of both grids are parallel: no position is then off by more
    /// than a thousandth of a voxel over 10^5 voxels.
    fn diagonal(&self) -> Option<[f64; 3]> {
        let parallel = (0..3).all(|a| (0..3).all(|b| a == b || self.steps[a][b].abs() < 1e-8));
        parallel.then(|| [self.steps[0][0], self.steps[1][1], self.steps[2][2]])
    }

    fn at(&self, z: usize, y: usize, x: usize) -> [f64; 3] {
        std::array::from_fn(|b| {
            self.offset[b]
                + self.steps[0][b] * z as f64
                + self.steps[1][b] * y as f64
                + self.steps[2][b] * x as f64
        })
    }
}

/// Two neighbours and the share of the higher one.
#[derive(Clone, Copy)]
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

impl Tap {
    fn at(index: f64, size: usize) -> Option<Self> {
        if !inside(index, size) {
            return None;
        }
        let clamped = index.clamp(0.0, (size - 1) as f64);
        let low = clamped.floor();
        Some(Self {
            low: low as usize,
            high: (low as usize + 1).min(size - 1),
            weight: (clamped - low) as f32,
        })
    }
}

fn nearest_index(index: f64, size: usize) -> Option<usize> {
    inside(index, size).then(|| ((index + 0.5).floor().max(0.0) as usize).min(size - 1))
}

fn inside(index: f64, size: usize) -> bool {
    (-0.5 - EDGE..=size as f64 - 0.5 + EDGE).contains(&index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::geometry::tests::any_geometry;
    use proptest::prelude::*;

    fn straight(shape: [usize; 3], spacing: [f64; 3]) -> Geometry {
        let [z, y, x] = spacing;
        Geometry::new(
            shape,
            [1.0, 2.0, 3.0],
            [[0.0, 0.0, z], [0.0, y, 0.0], [x, 0.0, 0.0]],
        )
        .unwrap()
    }

    /// Outer edge of the first and of the last voxel.
    fn extents(g: &Geometry) -> ([f64; 3], [f64; 3]) {
        (
            g.to_world([-0.5; 3]),
            g.to_world(g.shape().map(|n| n as f64 - 0.5)),
        )
    }

    #[test]
    fn extents_are_kept() {
        let old = straight([10, 20, 30], [5.0, 1.0, 1.0]);
        let new = grid_with_spacing(&old, [2.5, 2.0, 0.5]).unwrap();
        assert_eq!(new.shape(), [20, 10, 60]);
        for (a, b) in [
            (extents(&old).0, extents(&new).0),
            (extents(&old).1, extents(&new).1),
        ] {
            for w in 0..3 {
                assert!((a[w] - b[w]).abs() < 1e-9, "{a:?} {b:?}");
            }
        }
        for bad in [
            [0.0, 1.0, 1.0],
            [-1.0, 1.0, 1.0],
            [f64::NAN, 1.0, 1.0],
            [1e-12, 1.0, 1.0],
        ] {
            assert!(grid_with_spacing(&old, bad).is_err());
        }
        assert_eq!(
            grid_with_spacing(&old, [5000.0, 5000.0, 5000.0])
                .unwrap()
                .shape(),
            [1, 1, 1]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// A linear function of the world is reproduced between voxel centres on any grid.
        #[test]
        fn linear_functions_are_exact(source in any_geometry(12), target in any_geometry(12)) {
            let plane = |g: &Geometry, z: usize, y: usize, x: usize| {
                let [a, b, c] = g.to_world([z as f64, y as f64, x as f64]);
                0.01 * a - 0.02 * b + 0.03 * c
            };
            // Put the target inside of the source.
            let middle = source.to_world(source.shape().map(|n| (n - 1) as f64 / 2.0));
            let target = Geometry::new(target.shape(), middle, target.steps_lps_mm().map(|s| s.map(|v| v * 0.1))).unwrap();
            let voxels = |g: &Geometry| -> Vec<f64> {
                let [nz, ny, nx] = g.shape();
                (0..nz * ny * nx).map(|n| plane(g, n / (ny * nx), n / nx % ny, n % nx)).collect()
            };
            let volume = Volume::new(source, voxels(&source).iter().map(|v| *v as f32).collect()).unwrap();
            let out = linear(&volume, &target, f32::NAN);
            let [_, ny, nx] = target.shape();
            for (n, expected) in voxels(&target).iter().enumerate() {
                let index = source.to_index(target.to_world([(n / (ny * nx)) as f64, (n / nx % ny) as f64, (n % nx) as f64]));
                let between = (0..3).all(|a| index[a] >= 0.0 && index[a] <= (source.shape()[a] - 1) as f64);
                if between {
                    prop_assert!((f64::from(out.voxels[n]) - expected).abs() < 1e-3, "{} {expected}", out.voxels[n]);
                }
                if (0..3).any(|a| index[a] < -0.6 || index[a] > source.shape()[a] as f64 - 0.4) {
                    prop_assert!(out.voxels[n].is_nan());
                }
            }
        }

        #[test]
        fn onto_itself_is_the_identity(geometry in any_geometry(9)) {
            let labels = Volume::new(geometry, (0..geometry.voxel_count() as u16).collect()).unwrap();
            prop_assert_eq!(&nearest(&labels, &geometry, 9999), &labels);
            let values = Volume::new(geometry, labels.voxels.iter().map(|v| f32::from(*v)).collect()).unwrap();
            for (a, b) in linear(&values, &geometry, -1.0).voxels.iter().zip(&values.voxels) {
                prop_assert!((a - b).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn finer_by_two_and_back_keeps_labels() {
        let grid = straight([4, 5, 6], [3.0, 2.0, 1.0]);
        let labels = Volume::new(grid, (0..120u16).collect()).unwrap();
        let fine = grid_with_spacing(&grid, [1.5, 1.0, 0.5]).unwrap();
        assert_eq!(nearest(&nearest(&labels, &fine, 999), &grid, 999), labels);
    }

    #[test]
    fn parallel_and_general_paths_agree() {
        let grid = straight([6, 7, 8], [3.0, 2.0, 1.0]);
        let values =
            Volume::new(grid, (0..336u16).map(|n| f32::from(n * 37 % 101)).collect()).unwrap();
        let target = straight([5, 9, 4], [2.2, 1.3, 1.7]);
        let mut tilted = target.steps_lps_mm();
        tilted[0][0] += 1e-7;
        let tilted = Geometry::new(target.shape(), target.origin_lps_mm(), tilted).unwrap();
        let (a, b) = (
            linear(&values, &target, -9.0),
            linear(&values, &tilted, -9.0),
        );
        for (a, b) in a.voxels.iter().zip(&b.voxels) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
    }
}
