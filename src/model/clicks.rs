//! Clicks: points of a person that say which class a voxel belongs to, as further input channels of the network.
//!
//! Channel 0 is the scan, channel `1 + c` shows the clicks of class `c` (background first): a Gaussian of the distance in mm
//! to the nearest of them, cut off at three standard deviations. Without clicks these channels are empty, and a network that
//! started from one without them then answers what that one answered. After T. Sakinis and others, Interactive Segmentation
//! of Medical Images through Fully Convolutional Neural Networks (arXiv 1903.08205), and A. Diaz-Pinto and others, DeepEdit
//! (arXiv 2305.10655).

use serde::{Deserialize, Serialize};

use crate::imaging::Geometry;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::model::kernels::ClickMarks;

/// Standard deviations after which a click is not seen any more.
const REACH: f64 = 3.0;

/// Standard deviation in voxels, at least.
const LEAST_VOXELS: f64 = 1.5;

/// How a network takes clicks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClickGuidance {
    /// Standard deviation of the Gaussian around a click.
    pub sigma_mm: f64,
}

impl Default for ClickGuidance {
    fn default() -> Self {
        Self { sigma_mm: 4.0 }
    }
}

impl ClickGuidance {
    /// For voxels of that spacing `[z, y, x]`: a click covers a few of them, or the network would hardly see it.
    pub fn at_spacing(spacing_mm: [f64; 3]) -> Self {
        let mut sorted = spacing_mm;
        sorted.sort_by(f64::total_cmp);
        Self {
            sigma_mm: Self::default().sigma_mm.max(LEAST_VOXELS * sorted[1]),
        }
    }

    /// Input channels of a network with so many classes (background included).
    pub fn channels(classes: usize) -> usize {
        1 + classes
    }
}

/// A point that a person put into a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Click {
    /// Value of the label schema; 0 is background.
    pub class: u16,
    /// Voxel `[z, y, x]` of the scan as it is stored.
    pub voxel: [usize; 3],
}

/// Clicks on the grid that the network sees.
#[derive(Debug, Clone)]
pub(in crate::model) struct GridClicks {
    guidance: ClickGuidance,
    classes: usize,
    spacing_mm: [f64; 3],
    /// Class and continuous voxel `[z, y, x]`.
    places: Vec<(usize, [f64; 3])>,
}

impl GridClicks {
    /// Carries clicks from the grid of the scan to that of the network; both lie in the same patient.
    pub fn new(
        guidance: ClickGuidance,
        classes: usize,
        clicks: &[Click],
        scan: &Geometry,
        network: &Geometry,
    ) -> Self {
        let places = clicks.iter().map(|click| {
            let world = scan.to_world(click.voxel.map(|v| v as f64));
            (usize::from(click.class), network.to_index(world))
        });
        Self {
            guidance,
            classes,
            spacing_mm: network.spacing_mm(),
            places: places.collect(),
        }
    }

    /// Clicks at voxels of the network's own grid.
    pub fn at_voxels(
        guidance: ClickGuidance,
        classes: usize,
        spacing_mm: [f64; 3],
        places: impl Iterator<Item = (usize, [usize; 3])>,
    ) -> Self {
        let places = places.map(|(class, voxel)| (class, voxel.map(|v| v as f64)));
        Self {
            guidance,
            classes,
            spacing_mm,
            places: places.collect(),
        }
    }

    /// The same for a device that draws the channels itself.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub fn marks(&self) -> ClickMarks {
        ClickMarks {
            places: self.places.clone(),
            steps: self.spacing_mm.map(|mm| mm / self.guidance.sigma_mm),
            reach: REACH,
        }
    }

    /// The voxels of a window, per axis, that a click reaches, or none.
    fn reached(
        &self,
        place: [f64; 3],
        start: [isize; 3],
        size: [usize; 3],
    ) -> Option<[[usize; 2]; 3]> {
        let mut box_ = [[0; 2]; 3];
        for axis in 0..3 {
            let reach = REACH * self.guidance.sigma_mm / self.spacing_mm[axis];
            let place = place[axis] - start[axis] as f64;
            let (low, high) = ((place - reach).ceil().max(0.0), (place + reach).floor());
            if high < 0.0 || low >= size[axis] as f64 {
                return None;
            }
            box_[axis] = [low as usize, (high as usize).min(size[axis] - 1) + 1];
        }
        Some(box_)
    }

    /// Whether the window at `start` sees any of the clicks.
    pub fn touch(&self, start: [isize; 3], size: [usize; 3]) -> bool {
        self.places
            .iter()
            .any(|(_, place)| self.reached(*place, start, size).is_some())
    }

    /// Adds the channels of a window to its input: `[classes, d, h, w]` from 0 to 1.
    pub fn append(&self, start: [isize; 3], size: [usize; 3], input: &mut Vec<f32>) {
        let (voxels, first) = (size.iter().product::<usize>(), input.len());
        input.resize(first + self.classes * voxels, 0.0);
        for &(class, place) in &self.places {
            let Some([z, y, x]) = self.reached(place, start, size) else {
                continue;
            };
            let channel = &mut input[first + class * voxels..][..voxels];
            // The square of the distance along one axis, in standard deviations.
            let part = |axis: usize, voxel: usize| {
                let voxels = voxel as f64 - (place[axis] - start[axis] as f64);
                (voxels * self.spacing_mm[axis] / self.guidance.sigma_mm).powi(2)
            };
            for iz in z[0]..z[1] {
                for iy in y[0]..y[1] {
                    let row = (iz * size[1] + iy) * size[2];
                    for ix in x[0]..x[1] {
                        let square = part(0, iz) + part(1, iy) + part(2, ix);
                        if square <= REACH * REACH {
                            let value = &mut channel[row + ix];
                            *value = value.max((-0.5 * square).exp() as f32);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::geometry::tests::any_straight_geometry;
    use crate::imaging::{orientation, resample};
    use proptest::prelude::*;

    const GUIDANCE: ClickGuidance = ClickGuidance { sigma_mm: 4.0 };

    #[test]
    fn a_click_covers_some_voxels() {
        let sigma = |spacing| ClickGuidance::at_spacing(spacing).sigma_mm;
        assert_eq!(sigma([2.5, 1.5, 1.5]), 4.0);
        assert_eq!(sigma([3.0, 8.0, 8.0]), 12.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Wherever the axes of the file point and whatever the model's spacing is, a click is brightest at its place in the
        /// patient, and its brightness is the Gaussian of the distance in mm.
        #[test]
        fn clicks_keep_their_place_in_the_patient(
            geometry in any_straight_geometry(8), order in 0usize..48, spacing in prop::array::uniform3(3.0..8.0f64), pick in prop::array::uniform3(0.0..1.0f64),
        ) {
            let stored = *orientation::any_of_48(&geometry, order).target();
            let voxel = std::array::from_fn(|a| (pick[a] * stored.shape()[a] as f64) as usize);
            let turned = *orientation::to_lps(&stored).target();
            let network = resample::grid_with_spacing(&turned, spacing).unwrap();
            let clicks = GridClicks::new(GUIDANCE, 3, &[Click { class: 2, voxel }], &stored, &network);
            let size = network.shape();
            let mut input = Vec::new();
            clicks.append([0; 3], size, &mut input);
            let voxels = network.voxel_count();
            prop_assert_eq!(input.len(), 3 * voxels);
            prop_assert!(input[..2 * voxels].iter().all(|v| *v == 0.0));
            let at = stored.to_world(voxel.map(|v| v as f64));
            for (n, value) in input[2 * voxels..].iter().enumerate() {
                let place = [n / (size[1] * size[2]), n / size[2] % size[1], n % size[2]];
                let world = network.to_world(place.map(|v| v as f64));
                let mm: f64 = (0..3).map(|a| (world[a] - at[a]).powi(2)).sum::<f64>().sqrt();
                let expected = if mm < 11.99 { (-0.5 * (mm / 4.0).powi(2)).exp() } else { 0.0 };
                prop_assert!((f64::from(*value) - expected).abs() < 1e-4 || (mm - 12.0).abs() < 0.02, "{value} {expected} {mm}");
            }
        }

        /// A window shows what the same voxels of the whole grid show, and says when that is nothing.
        #[test]
        fn windows_show_their_part(start in prop::array::uniform3(-6isize..20), at in prop::array::uniform3(0usize..16)) {
            let places = || [(1, at), (0, [15, 15, 15])].into_iter();
            let clicks = GridClicks::at_voxels(GUIDANCE, 2, [3.0, 2.0, 1.0], places());
            let (mut all, mut part) = (Vec::new(), Vec::new());
            let (whole, window) = ([32; 3], [8, 8, 8]);
            clicks.append([-8; 3], whole, &mut all);
            clicks.append(start, window, &mut part);
            let seen = part.iter().any(|v| *v > 0.0);
            // A corner of the box that a click reaches may lie beyond its sphere.
            prop_assert!(clicks.touch(start, window) || !seen);
            for (n, value) in part.iter().enumerate() {
                let place = [n / 64 % 8, n / 8 % 8, n % 8];
                let outer: [isize; 3] = std::array::from_fn(|a| place[a] as isize + start[a] + 8);
                if outer.iter().all(|v| (0..32).contains(v)) {
                    let [z, y, x] = outer.map(|v| v as usize);
                    prop_assert_eq!(*value, all[((n / 512 * 32 + z) * 32 + y) * 32 + x]);
                }
            }
        }
    }
}
