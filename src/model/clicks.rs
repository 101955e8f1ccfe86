//! Clicks: points of a person that say which class a voxel belongs to, as further input channels of the network.
//!
//! Channel 0 is the scan, channel `1 + c` shows the clicks of class `c` (background first): a Gaussian of the distance in mm
//! to the nearest of them, cut off at three standard deviations. Without clicks these channels are empty, and a network that
//! started from one without them then answers what that one answered. After T. Sakinis and others, Interactive Segmentation
//! of Medical Images through Fully Convolutional Neural Networks (arXiv 1903.08205), and A. Diaz-Pinto and others, DeepEdit
//! (arXiv 2305.10655).
//!
//! How far a click spreads is what the network has learned. That the clicked voxel itself gets its class is promised: where
//! the network does not follow, its logits are raised around the click ([`GridClicks::obey`]).

use serde::{Deserialize, Serialize};

use crate::imaging::Geometry;

/// Standard deviations after which a click is not seen any more.
const REACH: f64 = 3.0;

/// How far ahead of every other class, in logits, the class of a click is put where the network did not follow.
const LEAD: f32 = 0.1;

/// What is left of a click where one of another class is as near: the two contradict each other below that.
const LEAST_SHARE: f32 = 0.05;

/// Rounds over clicks that lie near each other.
const MOST_ROUNDS: usize = 8;

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

    /// Raises logits `[classes, d, h, w]` of the window at `start` so that the voxels around each click in it have the class
    /// of the click, where the network did not follow it: by the least multiple of the click's Gaussian that does, less
    /// near clicks of other classes. Clicks that the network followed change nothing. Of clicks of several classes within
    /// one voxel, not every one can be obeyed.
    pub fn obey(&self, start: [isize; 3], size: [usize; 3], logits: &mut [f32]) {
        // Neighbouring clicks of other classes give way to each other.
        for _ in 0..MOST_ROUNDS {
            if !self.raise(start, size, logits) {
                break;
            }
        }
    }

    /// One round over all clicks; whether any was not followed.
    fn raise(&self, start: [isize; 3], size: [usize; 3], logits: &mut [f32]) -> bool {
        let mut raised = false;
        let voxels = size.iter().product::<usize>();
        let index = |[z, y, x]: [usize; 3]| (z * size[1] + y) * size[2] + x;
        for &(class, place) in &self.places {
            let share = |at: [usize; 3]| -> f32 {
                let here = |place| self.brightness(place, start, at);
                let others = self.places.iter().filter(|(other, _)| *other != class);
                others.fold(here(place), |share, (_, other)| {
                    share * (1.0 - here(*other))
                })
            };
            let around = (0..8).filter_map(|corner| around(place, start, size, corner));
            let raise = around
                .map(|at| {
                    let of = |class: usize| logits[class * voxels + index(at)];
                    let others = (0..self.classes).filter(|other| *other != class);
                    let most = others.map(of).fold(f32::MIN, f32::max);
                    let lead = of(class) - most;
                    match lead < LEAD {
                        // A little more, or rounding would leave it to another round.
                        true => (1.01 * LEAD - lead) / share(at).max(LEAST_SHARE),
                        false => 0.0,
                    }
                })
                .fold(0.0, f32::max);
            let Some([z, y, x]) = self.reached(place, start, size).filter(|_| raise > 0.0) else {
                continue;
            };
            raised = true;
            for iz in z[0]..z[1] {
                for iy in y[0]..y[1] {
                    for ix in x[0]..x[1] {
                        let at = [iz, iy, ix];
                        logits[class * voxels + index(at)] += raise * share(at);
                    }
                }
            }
        }
        raised
    }

    /// The Gaussian of a click at a voxel of the window at `start`, 0 beyond its reach.
    fn brightness(&self, place: [f64; 3], start: [isize; 3], at: [usize; 3]) -> f32 {
        // The square of the distance in standard deviations.
        let square: f64 = (0..3)
            .map(|axis| {
                let voxels = at[axis] as f64 - (place[axis] - start[axis] as f64);
                (voxels * self.spacing_mm[axis] / self.guidance.sigma_mm).powi(2)
            })
            .sum();
        match square <= REACH * REACH {
            true => (-0.5 * square).exp() as f32,
            false => 0.0,
        }
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
            for iz in z[0]..z[1] {
                for iy in y[0]..y[1] {
                    for ix in x[0]..x[1] {
                        let value = &mut channel[(iz * size[1] + iy) * size[2] + ix];
                        *value = value.max(self.brightness(place, start, [iz, iy, ix]));
                    }
                }
            }
        }
    }
}

/// One of the eight voxels `[z, y, x]` of a window around a place of the grid, if it lies in the window.
fn around(
    place: [f64; 3],
    start: [isize; 3],
    size: [usize; 3],
    corner: usize,
) -> Option<[usize; 3]> {
    let mut at = [0; 3];
    for axis in 0..3 {
        let voxel = place[axis].floor() as isize + (corner >> axis & 1) as isize - start[axis];
        at[axis] = usize::try_from(voxel).ok().filter(|v| *v < size[axis])?;
    }
    Some(at)
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

    fn clicks(places: Vec<(usize, [f64; 3])>, spacing_mm: [f64; 3]) -> GridClicks {
        GridClicks {
            guidance: ClickGuidance::at_spacing(spacing_mm),
            classes: 3,
            spacing_mm,
            places,
        }
    }

    /// The class with the largest logit at a voxel.
    fn class(logits: &[f32], voxel: usize) -> usize {
        let of = |c: usize| logits[c * logits.len() / 3 + voxel];
        (1..3).fold(0, |best, c| if of(c) > of(best) { c } else { best })
    }

    #[test]
    fn a_click_that_was_followed_changes_nothing() {
        let size = [4, 6, 6];
        let mut logits: Vec<f32> = vec![0.0; 3 * 144];
        logits[2 * 144..].fill(1.0);
        let before = logits.clone();
        clicks(vec![(2, [1.5, 2.5, 3.0])], [3.0; 3]).obey([0; 3], size, &mut logits);
        assert_eq!(logits, before);
        // Nor one that lies in another window.
        clicks(vec![(1, [1.5, 2.5, 3.0])], [3.0; 3]).obey([4, 0, 0], size, &mut logits);
        assert_eq!(logits, before);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the network said, all voxels around a click get its class, also beside a click of another class, and
        /// nothing changes out of reach.
        #[test]
        fn clicks_are_obeyed(
            seed in any::<u64>(), sure in 0.1..30.0f64, spacing in prop::array::uniform3(1.0..6.0f64),
            first in prop::array::uniform3(2.0..5.0f64), apart in prop::array::uniform3(2.0..4.0f64), classes in (0usize..3, 0usize..3),
        ) {
            let size = [10, 11, 12];
            let mut rng = crate::rng::Rng::new(seed);
            let mut logits: Vec<f32> = (0..3 * 1320).map(|_| rng.range(-sure, sure) as f32).collect();
            let before = logits.clone();
            let start = [-2, 1, 3];
            let place = |at: [f64; 3]| std::array::from_fn(|a| at[a] + start[a] as f64);
            let second = std::array::from_fn(|a| first[a] + apart[a]);
            let said = clicks(vec![(classes.0, place(first)), (classes.1, place(second))], spacing);
            said.obey(start, size, &mut logits);
            for (wanted, at) in &said.places {
                for [z, y, x] in (0..8).filter_map(|corner| around(*at, start, size, corner)) {
                    prop_assert_eq!(class(&logits, (z * 11 + y) * 12 + x), *wanted);
                }
            }
            for voxel in 0..1320 {
                let at = [voxel / 132, voxel / 12 % 11, voxel % 12];
                if said.places.iter().all(|(_, place)| said.brightness(*place, start, at) == 0.0) {
                    for c in 0..3 {
                        prop_assert_eq!(logits[c * 1320 + voxel], before[c * 1320 + voxel]);
                    }
                }
            }
        }
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
