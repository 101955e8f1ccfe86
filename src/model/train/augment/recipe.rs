//! Which changes a patch gets: probabilities, ranges, and the order in which they are made.

use serde::{Deserialize, Serialize};

use super::intensity;
use super::spatial::{self, Spatial};
use crate::model::kernels::ValueChanges;
use crate::rng::Rng;

/// How much patches are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augment {
    /// Not at all; sides are not exchanged either.
    None,
    /// Exchanged sides, small rotations and scalings, contrast, brightness, gamma, noise.
    Light,
    /// Larger ones, elastic deformation, blur, low resolution.
    Full,
}

impl std::str::FromStr for Augment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "light" => Ok(Self::Light),
            "full" => Ok(Self::Full),
            _ => Err(format!("{text:?} is not known; use none, light or full")),
        }
    }
}

/// A change's probability and the end of its range.
type Odds = (f64, f64);

/// Probabilities and ranges. A factor is drawn so that `1 / most` to `most` are equally likely on a logarithmic scale,
/// everything else evenly.
struct Recipe {
    /// Degrees about each axis, from minus to plus.
    rotation: Odds,
    /// Factor of all lengths.
    scaling: Odds,
    /// Standard deviation of a deformation's control points, from 0, in mm.
    elastic: Odds,
    contrast: Odds,
    /// Shift, from minus to plus; the HU window is 2 wide.
    brightness: Odds,
    /// Exponent, a factor.
    gamma: Odds,
    /// Standard deviation, from 0; the HU window is 2 wide.
    noise: Odds,
    /// Standard deviation, from 0, in mm.
    blur: Odds,
    /// Voxels so many times as long, from 1, one factor per axis.
    low_resolution: Odds,
}

const LIGHT: Recipe = Recipe {
    rotation: (0.5, 10.0),
    scaling: (0.5, 1.1),
    elastic: (0.0, 0.0),
    contrast: (0.3, 1.15),
    brightness: (0.3, 0.08),
    gamma: (0.3, 1.5),
    noise: (0.2, 0.03),
    blur: (0.0, 0.0),
    low_resolution: (0.0, 1.0),
};

const FULL: Recipe = Recipe {
    rotation: (0.5, 20.0),
    scaling: (0.5, 1.25),
    elastic: (0.3, 4.0),
    contrast: (0.3, 1.25),
    brightness: (0.3, 0.1),
    gamma: (0.3, 1.5),
    noise: (0.2, 0.1),
    blur: (0.2, 3.0),
    low_resolution: (0.2, 2.0),
};

impl Augment {
    fn recipe(self) -> Option<&'static Recipe> {
        match self {
            Self::None => None,
            Self::Light => Some(&LIGHT),
            Self::Full => Some(&FULL),
        }
    }

    /// Draws where the voxels of a patch come from.
    pub fn spatial(self, size: [usize; 3], spacing_mm: [f64; 3], rng: &Rng) -> Spatial {
        let (mut degrees, mut factor, mut deviation_mm) = ([0.0; 3], 1.0, 0.0);
        let mut elastic = rng.named("elastic");
        if let Some(recipe) = self.recipe() {
            let draw = &mut rng.named("rotation");
            if draw.chance(recipe.rotation.0) {
                degrees = [0; 3].map(|_| draw.range(-recipe.rotation.1, recipe.rotation.1));
            }
            factor = factor_of(recipe.scaling, &mut rng.named("scaling")).unwrap_or(1.0);
            if elastic.chance(recipe.elastic.0) {
                deviation_mm = elastic.range(0.0, recipe.elastic.1);
            }
        }
        let millimetres = spatial::product(&spatial::rotation(degrees), &spatial::scaling(factor));
        Spatial::new(size, spacing_mm, &millimetres, deviation_mm, &mut elastic)
    }

    /// Draws what is done to the values of a patch.
    pub fn values(self, spacing_mm: [f64; 3], rng: &Rng) -> ValueChanges {
        let mut changes = ValueChanges::default();
        let Some(recipe) = self.recipe() else {
            return changes;
        };
        let factor = |odds, name| factor_of(odds, &mut rng.named(name)).map(|v| v as f32);
        changes.gamma = factor(recipe.gamma, "gamma");
        changes.contrast = factor(recipe.contrast, "contrast");
        let draw = &mut rng.named("brightness");
        if draw.chance(recipe.brightness.0) {
            let shift = draw.range(-recipe.brightness.1, recipe.brightness.1);
            changes.brightness = Some(shift as f32);
        }
        let draw = &mut rng.named("low resolution");
        if draw.chance(recipe.low_resolution.0) {
            let factors = [0; 3].map(|_| draw.range(1.0, recipe.low_resolution.1));
            changes.low_resolution = Some(factors);
        }
        let draw = &mut rng.named("blur");
        if draw.chance(recipe.blur.0) {
            let sigma_mm = draw.range(0.0, recipe.blur.1);
            changes.blur = Some(spacing_mm.map(|mm| sigma_mm / mm));
        }
        let draw = &mut rng.named("noise");
        if draw.chance(recipe.noise.0) {
            let sigma = draw.range(0.0, recipe.noise.1);
            changes.noise = Some((sigma, draw.clone()));
        }
        changes
    }

    /// Whether left and right are exchanged, with probability one half: the table by which, `mirror[value]` being the label
    /// of the structure on the other side, so that a mirrored left kidney is a right kidney; without a table nothing is
    /// mirrored.
    ///
    /// Only this axis: scans are always in LPS order here, so a patient is never upside down.
    pub fn exchanged<'a>(self, mirror: Option<&'a [u8]>, rng: &Rng) -> Option<&'a [u8]> {
        mirror.filter(|_| self != Self::None && rng.named("sides").chance(0.5))
    }
}

/// Makes the changes of the values of a patch.
pub fn change(input: &mut [f32], size: [usize; 3], changes: &ValueChanges) {
    if let Some(exponent) = changes.gamma {
        intensity::gamma(input, exponent);
    }
    if let Some(factor) = changes.contrast {
        intensity::contrast(input, factor);
    }
    if let Some(shift) = changes.brightness {
        intensity::brightness(input, shift);
    }
    if let Some(factors) = changes.low_resolution {
        intensity::low_resolution(input, size, factors);
    }
    if let Some(sigma) = changes.blur {
        intensity::blur(input, size, sigma);
    }
    if let Some((sigma, rng)) = &changes.noise {
        intensity::noise(input, *sigma, &mut rng.clone());
    }
}

/// Exchanges left and right of rows of `width` voxels, and the labels of both sides.
pub fn exchange(input: &mut [f32], labels: &mut [u8], width: usize, mirror: &[u8]) {
    input.chunks_exact_mut(width).for_each(<[f32]>::reverse);
    labels.chunks_exact_mut(width).for_each(|row| {
        row.reverse();
        for label in row {
            *label = mirror[usize::from(*label)];
        }
    });
}

/// A factor, if there is to be one.
fn factor_of((probability, most): Odds, rng: &mut Rng) -> Option<f64> {
    let most = most.ln();
    rng.chance(probability)
        .then(|| rng.range(-most, most).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirroring_exchanges_the_sides() {
        let run = |seed, mirror: Option<&[u8]>| {
            let (mut input, mut labels) = (vec![1.0, 2.0, 3.0], vec![1, 0, 3]);
            let table = Augment::Light.exchanged(mirror, &Rng::new(seed));
            if let Some(table) = table {
                exchange(&mut input, &mut labels, 3, table);
            }
            (table.is_some(), input, labels)
        };
        let (mut mirrored, count) = (0, 400);
        for seed in 0..count {
            let (done, input, labels) = run(seed, Some(&[0, 2, 1, 3]));
            mirrored += usize::from(done);
            match done {
                true => assert_eq!((input, labels), (vec![3.0, 2.0, 1.0], vec![3, 0, 2])),
                false => assert_eq!((input, labels), (vec![1.0, 2.0, 3.0], vec![1, 0, 3])),
            }
            assert_eq!(run(seed, None), (false, vec![1.0, 2.0, 3.0], vec![1, 0, 3]));
        }
        assert!((150..250).contains(&mirrored), "{mirrored}");
    }

    #[test]
    fn without_augmentation_nothing_changes() {
        for seed in 0..20 {
            let rng = Rng::new(seed);
            let mut input = vec![0.1, 0.2, 0.3];
            let changes = Augment::None.values([1.0; 3], &rng);
            change(&mut input, [1, 1, 3], &changes);
            assert_eq!(input, [0.1, 0.2, 0.3]);
            assert_eq!(changes, ValueChanges::default());
            assert_eq!(Augment::None.exchanged(Some(&[0, 2, 1]), &rng), None);
            let spatial = Augment::None.spatial([1, 1, 3], [1.0; 3], &rng);
            let mut row = Vec::new();
            spatial.row([5.0; 3], 0, 0, &mut row);
            assert_eq!(row, [[5.0, 5.0, 4.0], [5.0; 3], [5.0, 5.0, 6.0]]);
        }
    }

    #[test]
    fn the_same_stream_gives_the_same_patch_and_values_stay_near_the_range() {
        let size = [4, 8, 8];
        let run = |augment: Augment, seed| {
            let mut input: Vec<f32> = (0..256).map(|i| i as f32 / 128.0 - 1.0).collect();
            let changes = augment.values([2.0, 1.0, 1.0], &Rng::new(seed));
            change(&mut input, size, &changes);
            input
        };
        for augment in [Augment::Light, Augment::Full] {
            assert_eq!(run(augment, 3), run(augment, 3));
            let changed = (0..200).filter(|seed| run(augment, *seed) != run(Augment::None, 0));
            // Four changes of light with 0.3, 0.3, 0.3 and 0.2 leave 27 % as they are, six of full 18 %.
            assert!((120..185).contains(&changed.count()));
            for seed in 0..200 {
                assert!(
                    run(augment, seed)
                        .iter()
                        .all(|v| v.is_finite() && v.abs() < 2.0)
                );
            }
        }
    }

    #[test]
    fn probabilities_are_those_of_the_recipe() {
        let count = 4000;
        let share = (0..count)
            .filter(|n| factor_of((0.3, 1.5), &mut Rng::new(*n)).is_some())
            .count() as f64
            / count as f64;
        assert!((share - 0.3).abs() < 0.03, "{share}");
        for n in 0..count {
            let factor = factor_of((1.0, 1.5), &mut Rng::new(n)).unwrap_or(0.0);
            assert!((1.0 / 1.5..=1.5).contains(&factor), "{factor}");
        }
    }
}
