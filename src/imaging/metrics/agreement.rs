//! All measures of one structure in one case.

use rayon::prelude::*;

use super::surface::SurfaceDistances;
use crate::imaging::geometry::{GeometryError, cross, dot};
use crate::imaging::volume::Volume;

/// In which of the two maps a structure has voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// In both.
    Both,
    /// In the reference alone: the prediction missed it.
    ReferenceOnly,
    /// In the prediction alone: it is not in the patient, or was not annotated.
    PredictionOnly,
    /// In neither: nothing is measured.
    Neither,
}

/// How a predicted structure agrees with its reference.
///
/// | presence | `dice`, `nsd` | `hd95_mm`, `assd_mm` | relative volume difference |
/// |---|---|---|---|
/// | both | 0 to 1 | mm | measured |
/// | reference only | 0 | `None`: there is no surface to measure to | -1 |
/// | prediction only | 0 | `None` | `None`: the reference's volume is 0 |
/// | neither | `None` | `None` | `None` |
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Where the structure is.
    pub presence: Presence,
    /// Dice coefficient.
    pub dice: Option<f64>,
    /// Normalised surface Dice at the tolerance that was asked for.
    pub nsd: Option<f64>,
    /// 95th percentile of the Hausdorff distance, the larger of both directions.
    pub hd95_mm: Option<f64>,
    /// Average symmetric surface distance.
    pub assd_mm: Option<f64>,
    /// Volume in the reference.
    pub reference_ml: f64,
    /// Volume in the prediction.
    pub prediction_ml: f64,
}

impl Agreement {
    /// A structure that is in neither map.
    pub const NEITHER: Self = Self {
        presence: Presence::Neither,
        dice: None,
        nsd: None,
        hd95_mm: None,
        assd_mm: None,
        reference_ml: 0.0,
        prediction_ml: 0.0,
    };

    /// Prediction minus reference; `None` when it is in neither map.
    pub fn volume_difference_ml(&self) -> Option<f64> {
        (self.presence != Presence::Neither).then_some(self.prediction_ml - self.reference_ml)
    }

    /// [`Self::volume_difference_ml`] over the reference's volume; `None` where that is 0.
    pub fn volume_difference_relative(&self) -> Option<f64> {
        (self.reference_ml > 0.0).then(|| self.prediction_ml / self.reference_ml - 1.0)
    }
}

/// Agreement for each of `structures` (label value, tolerance of the NSD in mm), in their order.
///
/// Distances follow the voxel size of the grid, whatever its direction in the patient; the axes are
/// taken to be at right angles ([`crate::imaging::Geometry::is_sheared`] tells where they are not).
///
/// # Errors
/// [`GeometryError::Length`] when the maps have different shapes.
pub fn agreement(
    reference: &Volume<u16>,
    prediction: &Volume<u16>,
    structures: &[(u16, f64)],
) -> Result<Vec<Agreement>, GeometryError> {
    let geometry = &reference.geometry;
    if geometry.shape() != prediction.geometry.shape() {
        return Err(GeometryError::Length {
            voxels: prediction.voxels.len(),
            shape: geometry.shape(),
        });
    }
    let found = extents(reference, prediction);
    let [a, b, c] = geometry.steps_lps_mm();
    let voxel_ml = dot(a, cross(b, c)).abs() / 1000.0;
    let measured = structures.iter().map(|(value, tolerance_mm)| {
        let Some(extent) = found.get(usize::from(*value)).filter(|_| *value > 0) else {
            return Agreement::NEITHER;
        };
        let [in_reference, in_prediction, in_both] = extent.voxels;
        let presence = match (in_reference > 0, in_prediction > 0) {
            (true, true) => Presence::Both,
            (true, false) => Presence::ReferenceOnly,
            (false, true) => Presence::PredictionOnly,
            (false, false) => return Agreement::NEITHER,
        };
        let surface = (presence == Presence::Both)
            .then(|| surface(reference, prediction, *value, extent))
            .flatten();
        let measure = |of: fn(&SurfaceDistances) -> f64| surface.as_ref().map(of);
        Agreement {
            presence,
            dice: Some(2.0 * in_both as f64 / (in_reference + in_prediction) as f64),
            nsd: Some(surface.as_ref().map_or(0.0, |s| s.nsd(*tolerance_mm))),
            hd95_mm: measure(|s| s.hausdorff_mm(95.0)),
            assd_mm: measure(SurfaceDistances::assd_mm),
            reference_ml: in_reference as f64 * voxel_ml,
            prediction_ml: in_prediction as f64 * voxel_ml,
        }
    });
    Ok(measured.collect())
}

fn surface(
    reference: &Volume<u16>,
    prediction: &Volume<u16>,
    value: u16,
    extent: &Extent,
) -> Option<SurfaceDistances> {
    let geometry = &reference.geometry;
    let [_, ny, nx] = geometry.shape();
    let [z0, y0, x0] = extent.first;
    let shape = std::array::from_fn(|axis| extent.last[axis] + 1 - extent.first[axis]);
    let at = |[z, y, x]: [usize; 3]| ((z + z0) * ny + y + y0) * nx + x + x0;
    SurfaceDistances::new(
        shape,
        geometry.spacing_mm(),
        |index| reference.voxels[at(index)] == value,
        |index| prediction.voxels[at(index)] == value,
    )
}

/// Where a label value is in either of two maps, and how often.
#[derive(Clone, Copy)]
struct Extent {
    first: [usize; 3],
    last: [usize; 3],
    /// Voxels in the reference, in the prediction, in both.
    voxels: [u64; 3],
}

impl Extent {
    const EMPTY: Self = Self {
        first: [usize::MAX; 3],
        last: [0; 3],
        voxels: [0; 3],
    };

    fn add(&mut self, index: [usize; 3], counts: [u64; 3]) {
        self.join(&Self {
            first: index,
            last: index,
            voxels: counts,
        });
    }

    fn join(&mut self, other: &Self) {
        for axis in 0..3 {
            self.first[axis] = self.first[axis].min(other.first[axis]);
            self.last[axis] = self.last[axis].max(other.last[axis]);
            self.voxels[axis] += other.voxels[axis];
        }
    }
}

/// The extent of each label value from 0 to the largest; that of 0 stays empty.
fn extents(reference: &Volume<u16>, prediction: &Volume<u16>) -> Vec<Extent> {
    let [_, ny, nx] = reference.geometry.shape();
    let plane = |z: usize, (reference, prediction): (&[u16], &[u16])| {
        let mut found = Vec::new();
        for (n, (&a, &b)) in reference.iter().zip(prediction).enumerate() {
            let index = [z, n / nx, n % nx];
            let mut add = |value: u16, counts| {
                let value = usize::from(value);
                if value >= found.len() {
                    found.resize(value + 1, Extent::EMPTY);
                }
                found[value].add(index, counts);
            };
            match (a, b) {
                (0, 0) => {}
                (a, b) if a == b => add(a, [1, 1, 1]),
                (a, 0) => add(a, [1, 0, 0]),
                (0, b) => add(b, [0, 1, 0]),
                (a, b) => {
                    add(a, [1, 0, 0]);
                    add(b, [0, 1, 0]);
                }
            }
        }
        found
    };
    let planes = reference
        .voxels
        .par_chunks(ny * nx)
        .zip(prediction.voxels.par_chunks(ny * nx))
        .enumerate();
    planes
        .map(|(z, rows)| plane(z, rows))
        .reduce(Vec::new, |mut all, more| {
            if all.len() < more.len() {
                all.resize(more.len(), Extent::EMPTY);
            }
            for (all, more) in all.iter_mut().zip(&more) {
                all.join(more);
            }
            all
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::Geometry;
    use crate::imaging::geometry::tests::any_straight_geometry;
    use crate::imaging::metrics::dice_per_class;
    use proptest::prelude::*;

    /// A turned grid with voxels of 4 x 1 x 2 mm.
    fn volume(voxels: Vec<u16>, shape: [usize; 3]) -> Volume<u16> {
        let steps = [[0.0, 0.0, 4.0], [0.6, 0.8, 0.0], [1.6, -1.2, 0.0]];
        Volume::new(Geometry::new(shape, [0.0; 3], steps).unwrap(), voxels).unwrap()
    }

    fn boxes(shape: [usize; 3], boxes: &[(u16, [usize; 3], [usize; 3])]) -> Volume<u16> {
        let mut voxels = vec![0; shape.iter().product()];
        for (value, from, to) in boxes {
            for z in from[0]..to[0] {
                for y in from[1]..to[1] {
                    for x in from[2]..to[2] {
                        voxels[(z * shape[1] + y) * shape[2] + x] = *value;
                    }
                }
            }
        }
        volume(voxels, shape)
    }

    #[test]
    fn a_shifted_box_in_a_turned_grid() {
        let shape = [8, 20, 20];
        let reference = boxes(shape, &[(3, [2, 2, 2], [6, 12, 12])]);
        let prediction = boxes(shape, &[(3, [2, 2, 4], [6, 12, 14])]);
        let found = agreement(&reference, &prediction, &[(3, 1.0), (1, 1.0)]).unwrap();
        let [moved, absent] = found[..] else { panic!() };
        assert_eq!(moved.presence, Presence::Both);
        assert_eq!(moved.dice, Some(0.8));
        assert!((moved.hd95_mm.unwrap() - 4.0).abs() < 1e-6);
        assert!((moved.reference_ml - 3.2).abs() < 1e-9);
        assert_eq!(moved.volume_difference_ml(), Some(0.0));
        assert!(moved.nsd.unwrap() < 1.0);
        assert_eq!(absent, Agreement::NEITHER);
        assert_eq!(absent.volume_difference_ml(), None);
    }

    #[test]
    fn a_structure_in_one_map_alone() {
        let shape = [4, 6, 6];
        let empty = boxes(shape, &[]);
        let full = boxes(shape, &[(1, [1, 1, 1], [3, 3, 3])]);
        let missed = agreement(&full, &empty, &[(1, 2.0)]).unwrap()[0];
        let invented = agreement(&empty, &full, &[(1, 2.0)]).unwrap()[0];
        assert_eq!(missed.presence, Presence::ReferenceOnly);
        assert_eq!(invented.presence, Presence::PredictionOnly);
        for found in [missed, invented] {
            assert_eq!((found.dice, found.nsd), (Some(0.0), Some(0.0)));
            assert_eq!((found.hd95_mm, found.assd_mm), (None, None));
        }
        assert_eq!(missed.volume_difference_relative(), Some(-1.0));
        assert_eq!(invented.volume_difference_relative(), None);
        assert!((invented.volume_difference_ml().unwrap() - 0.064).abs() < 1e-9);
    }

    #[test]
    fn maps_of_different_shapes_are_refused() {
        let (a, b) = (boxes([4, 6, 6], &[]), boxes([4, 6, 5], &[]));
        assert!(agreement(&a, &b, &[(1, 1.0)]).is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_dice_and_with_itself(geometry in any_straight_geometry(7), seed in any::<u64>()) {
            let mut rng = crate::rng::Rng::new(seed);
            let [a, b] = std::array::from_fn(|_| {
                let voxels = (0..geometry.voxel_count()).map(|_| rng.below(4) as u16).collect();
                Volume::new(geometry, voxels).unwrap()
            });
            let structures = [(1, 1.0), (2, 1.0), (3, 1.0)];
            let found = agreement(&a, &b, &structures).unwrap();
            let dice: Vec<_> = found.iter().map(|found| found.dice).collect();
            prop_assert_eq!(&dice[..], &dice_per_class(&a.voxels, &b.voxels, 4)[1..]);
            for same in agreement(&a, &a, &structures).unwrap() {
                if same.presence != Presence::Neither {
                    prop_assert_eq!((same.dice, same.nsd), (Some(1.0), Some(1.0)));
                    prop_assert_eq!((same.hd95_mm, same.assd_mm), (Some(0.0), Some(0.0)));
                    prop_assert_eq!(same.volume_difference_relative(), Some(0.0));
                }
            }
        }
    }
}
