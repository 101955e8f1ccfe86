//! The canonical order of axes, and the exact way back.
//!
//! A network must see the same patient in the same way whatever order and direction of axes the
//! file has. [`to_lps`] names, for any grid, the permutation and flips after which array axis z runs
//! towards superior, y towards posterior and x towards left. No voxel is interpolated: oblique and
//! sheared grids keep their obliqueness, and [`Reorientation::undo`] restores every voxel.

use rayon::prelude::*;

use super::geometry::{Geometry, normalised};
use super::volume::Volume;

/// Assignments whose alignments differ by less than this are equally good.
const TIE: f64 = 1e-6;

/// All permutations of three axes.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// A permutation and flips of array axes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reorientation {
    source: Geometry,
    target: Geometry,
    /// Source axis that becomes target axis `[z, y, x]`.
    axes: [usize; 3],
    /// Whether the target axis runs against its source axis.
    flips: [bool; 3],
}

/// The turn that brings `geometry` to the canonical order.
///
/// Each array axis goes to the world axis it follows best, all three taken together. Between equally
/// good choices (an exact 45 degrees) the directions themselves decide, so that all 48 stored orders
/// of one scan still lead to the same array.
pub fn to_lps(geometry: &Geometry) -> Reorientation {
    let directions = geometry.steps_lps_mm().map(normalised);
    let first = Assignment::new(&directions, ORDERS[0]);
    let best = ORDERS[1..].iter().fold(first, |best, &axes| {
        let other = Assignment::new(&directions, axes);
        if other.is_better_than(&best) {
            other
        } else {
            best
        }
    });
    Reorientation::new(geometry, best.axes, best.flips)
}

/// A choice of array axes for the world axes, and how good it is.
struct Assignment {
    axes: [usize; 3],
    flips: [bool; 3],
    /// Sum of the cosines between each axis and its world axis.
    alignment: f64,
    /// The chosen directions after flipping, which do not depend on the stored order.
    directions: [f64; 9],
}

impl Assignment {
    fn new(stored: &[[f64; 3]; 3], axes: [usize; 3]) -> Self {
        // World axes z, y, x are components 2, 1, 0.
        let along: [f64; 3] = std::array::from_fn(|t| stored[axes[t]][2 - t]);
        Self {
            axes,
            flips: along.map(|cosine| cosine < 0.0),
            alignment: along.iter().map(|cosine| cosine.abs()).sum(),
            directions: std::array::from_fn(|n| {
                let component = stored[axes[n / 3]][n % 3];
                if along[n / 3] < 0.0 {
                    -component
                } else {
                    component
                }
            }),
        }
    }

    fn is_better_than(&self, other: &Self) -> bool {
        if (self.alignment - other.alignment).abs() > TIE {
            return self.alignment > other.alignment;
        }
        let mut differences = self
            .directions
            .iter()
            .zip(&other.directions)
            .map(|(a, b)| a - b);
        differences
            .find(|difference| difference.abs() > TIE)
            .is_some_and(|difference| difference > 0.0)
    }
}

/// One of the 48 orders and directions of axes that a file may have, by `number` below 48.
pub(crate) fn any_of_48(geometry: &Geometry, number: usize) -> Reorientation {
    let flips = std::array::from_fn(|t| number >> t & 1 == 1);
    Reorientation::new(geometry, ORDERS[number / 8 % 6], flips)
}

impl Reorientation {
    fn new(geometry: &Geometry, axes: [usize; 3], flips: [bool; 3]) -> Self {
        Self {
            source: *geometry,
            target: turned(geometry, axes, flips),
            axes,
            flips,
        }
    }

    /// The grid after [`Reorientation::apply`].
    pub fn target(&self) -> &Geometry {
        &self.target
    }

    /// Whether nothing has to be moved.
    pub fn is_identity(&self) -> bool {
        self.axes == [0, 1, 2] && self.flips == [false; 3]
    }

    /// The volume in canonical order.
    pub fn apply<T: Copy + Send + Sync>(&self, volume: &Volume<T>) -> Volume<T> {
        let geometry = if volume.geometry == self.source {
            self.target
        } else {
            turned(&volume.geometry, self.axes, self.flips)
        };
        permuted(volume, geometry, self.axes, self.flips)
    }

    /// The volume back in the order it was stored in; for the canonical grid the result has exactly
    /// the original geometry.
    pub fn undo<T: Copy + Send + Sync>(&self, volume: &Volume<T>) -> Volume<T> {
        let (mut axes, mut flips) = ([0; 3], [false; 3]);
        for target in 0..3 {
            axes[self.axes[target]] = target;
            flips[self.axes[target]] = self.flips[target];
        }
        let geometry = if volume.geometry == self.target {
            self.source
        } else {
            turned(&volume.geometry, axes, flips)
        };
        permuted(volume, geometry, axes, flips)
    }
}

fn turned(geometry: &Geometry, axes: [usize; 3], flips: [bool; 3]) -> Geometry {
    let shape = geometry.shape();
    let steps = geometry.steps_lps_mm();
    let mut first = [0.0; 3];
    for target in 0..3 {
        if flips[target] {
            first[axes[target]] = (shape[axes[target]] - 1) as f64;
        }
    }
    let new_steps = std::array::from_fn(|t| {
        if flips[t] {
            steps[axes[t]].map(|v| -v)
        } else {
            steps[axes[t]]
        }
    });
    Geometry::from_valid(
        axes.map(|axis| shape[axis]),
        geometry.to_world(first),
        new_steps,
    )
}

fn permuted<T: Copy + Send + Sync>(
    volume: &Volume<T>,
    geometry: Geometry,
    axes: [usize; 3],
    flips: [bool; 3],
) -> Volume<T> {
    if axes == [0, 1, 2] && flips == [false; 3] {
        return Volume {
            geometry,
            voxels: volume.voxels.clone(),
        };
    }
    let from = volume.geometry.shape();
    let strides = [from[1] * from[2], from[2], 1].map(|stride| stride as isize);
    let to = axes.map(|axis| from[axis]);
    let step: [isize; 3] = std::array::from_fn(|t| {
        if flips[t] {
            -strides[axes[t]]
        } else {
            strides[axes[t]]
        }
    });
    let start: isize = (0..3)
        .map(|t| {
            if flips[t] {
                (to[t] as isize - 1) * strides[axes[t]]
            } else {
                0
            }
        })
        .sum();
    let source = &volume.voxels;
    let voxels = (0..to[0] * to[1])
        .into_par_iter()
        .with_min_len(256)
        .flat_map_iter(|row| {
            let first = start + (row / to[1]) as isize * step[0] + (row % to[1]) as isize * step[1];
            (0..to[2] as isize).map(move |x| source[(first + x * step[2]) as usize])
        })
        .collect();
    Volume { geometry, voxels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::geometry::tests::any_geometry;
    use proptest::prelude::*;

    /// All 48 stored orders of a volume.
    fn stored_orders(volume: &Volume<u32>) -> Vec<Volume<u32>> {
        (0..48)
            .map(|number| any_of_48(&volume.geometry, number).apply(volume))
            .collect()
    }

    fn numbered(geometry: Geometry) -> Volume<u32> {
        Volume::new(geometry, (0..geometry.voxel_count() as u32).collect()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_stored_order_leads_to_one_array_and_back(geometry in any_geometry(7)) {
            let volume = numbered(geometry);
            let canonical = to_lps(&geometry).apply(&volume);
            for stored in stored_orders(&volume) {
                let turn = to_lps(&stored.geometry);
                let turned = turn.apply(&stored);
                prop_assert_eq!(&turned.voxels, &canonical.voxels);
                prop_assert!(turned.geometry.same_grid(&canonical.geometry, 1e-6));
                prop_assert_eq!(&turn.undo(&turned), &stored);
            }
        }
    }

    #[test]
    fn forty_five_degrees_is_no_ambiguity() {
        let c = std::f64::consts::FRAC_1_SQRT_2;
        let steps = [[0.0, 0.0, 3.0], [-c, c, 0.0], [c, c, 0.0]];
        let volume = numbered(Geometry::new([2, 3, 4], [5.0, 6.0, 7.0], steps).unwrap());
        let canonical = to_lps(&volume.geometry).apply(&volume);
        for stored in stored_orders(&volume) {
            assert_eq!(
                to_lps(&stored.geometry).apply(&stored).voxels,
                canonical.voxels
            );
        }
    }

    #[test]
    fn canonical_axes_follow_the_world() {
        // Stored as x towards anterior, y towards inferior, z towards right.
        let steps = [[-3.0, 0.0, 0.0], [0.0, 0.0, -2.0], [0.0, -1.0, 0.0]];
        let volume = numbered(Geometry::new([2, 3, 4], [0.0; 3], steps).unwrap());
        let turned = to_lps(&volume.geometry).apply(&volume);
        assert_eq!(
            turned.geometry.steps_lps_mm(),
            [[0.0, 0.0, 2.0], [0.0, 1.0, 0.0], [3.0, 0.0, 0.0]]
        );
        assert_eq!(turned.geometry.shape(), [3, 4, 2]);
        assert!(to_lps(&turned.geometry).is_identity());
    }
}
