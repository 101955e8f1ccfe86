//! Contrast of the patches.

use crate::rng::Rng;

/// Percentiles, in percent, between which the contrast is stretched: where the lower and the upper one are drawn from.
const LOWER_PERCENT: [f64; 2] = [0.1, 2.0];
const UPPER_PERCENT: [f64; 2] = [98.0, 99.9];
/// Output of the lower and the upper percentile.
const LOWER: f64 = 0.1;
const UPPER: f64 = 0.9;
const GAMMA: [f64; 2] = [0.7, 1.5];
const INVERSION: f64 = 0.25;

/// Maps the patch to [0, 1], piecewise linearly: minimum to 0, a low percentile to 0.1, a high one to 0.9, maximum to 1.
/// Where both percentiles are one value (a patch of almost only air), that value becomes 0.1.
pub fn contrast(patch: &mut [f32], rng: &mut Rng) {
    let percents = draw_percents(rng);
    let (min, max) = range(patch);
    let mut scratch = patch.to_vec();
    let [v0, v1] = percents.map(|percent| percentile(&mut scratch, percent));
    // A quotient below is only taken where its divisor is positive: a value under v0 is at least min, and so on.
    for value in patch {
        let v = f64::from(*value);
        let mapped = if v < v0 {
            (v - min) / (v0 - min) * LOWER
        } else if v > v1 {
            UPPER + (v - v1) / (max - v1) * (1.0 - UPPER)
        } else if v1 > v0 {
            LOWER + (v - v0) / (v1 - v0) * (UPPER - LOWER)
        } else {
            LOWER
        };
        *value = mapped.clamp(0.0, 1.0) as f32;
    }
}

/// Bends the values between their minimum and maximum; a constant patch stays.
pub fn gamma(patch: &mut [f32], rng: &mut Rng) {
    let gamma = draw_gamma(rng);
    let (min, max) = range(patch);
    let (min, span) = (min as f32, (max - min) as f32);
    if span > 0.0 {
        for value in patch {
            *value = ((*value - min) / span).powf(gamma) * span + min;
        }
    }
}

/// The percentiles of [`contrast`], in percent.
pub fn draw_percents(rng: &mut Rng) -> [f64; 2] {
    [
        rng.range(LOWER_PERCENT[0], LOWER_PERCENT[1]),
        rng.range(UPPER_PERCENT[0], UPPER_PERCENT[1]),
    ]
}

/// The exponent of [`gamma`].
pub fn draw_gamma(rng: &mut Rng) -> f32 {
    rng.range(GAMMA[0], GAMMA[1]) as f32
}

/// Whether both patches of a pair are inverted: one draw for the two.
pub fn draw_inversion(rng: &mut Rng) -> bool {
    rng.chance(INVERSION)
}

/// [0, 1] to the network's [-1, 1]; inverted where asked.
pub fn to_network_range(patch: &mut [f32], inverted: bool) {
    let sign = if inverted { -1.0 } else { 1.0 };
    patch
        .iter_mut()
        .for_each(|value| *value = sign * (2.0 * *value - 1.0));
}

fn range(patch: &[f32]) -> (f64, f64) {
    let (low, high) = patch
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| {
            (low.min(v), high.max(v))
        });
    (f64::from(low), f64::from(high))
}

/// The percentile with linear interpolation between order statistics (the default of numpy). Reorders `values`; 0 when
/// there are none.
fn percentile(values: &mut [f32], percent: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else {
        return 0.0;
    };
    let position = last as f64 * percent / 100.0;
    let below = (position as usize).min(last);
    let (_, &mut low, above) = values.select_nth_unstable_by(below, f32::total_cmp);
    let low = f64::from(low);
    let next = above
        .iter()
        .copied()
        .reduce(f32::min)
        .map_or(low, f64::from);
    low + (next - low) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::volume_fusion::tests::assert_uniform;

    #[test]
    fn percentiles_and_exponents_are_uniform_in_the_published_ranges() {
        let drawn = |n: u64| Rng::new(8).stream(n);
        let percents: Vec<_> = (0..2000).map(|n| draw_percents(&mut drawn(n))).collect();
        assert_uniform(percents.iter().map(|p| p[0]).collect(), [0.1, 2.0]);
        assert_uniform(percents.iter().map(|p| p[1]).collect(), [98.0, 99.9]);
        let exponents = (0..2000).map(|n| f64::from(draw_gamma(&mut drawn(n))));
        // As float32 the ends are not met exactly.
        assert_uniform(exponents.collect(), [0.7 - 1e-7, 1.5 + 1e-7]);
    }

    #[test]
    fn percentiles_are_those_of_numpy() {
        let mut values = [3.0, -1.0, 2.0, 10.0, 4.0];
        // numpy.percentile([3, -1, 2, 10, 4], [0, 10, 50, 95, 100])
        for (percent, expected) in [
            (0.0, -1.0),
            (10.0, 0.2),
            (50.0, 3.0),
            (95.0, 8.8),
            (100.0, 10.0),
        ] {
            assert!((percentile(&mut values, percent) - expected).abs() < 1e-9);
        }
        assert_eq!(percentile(&mut [], 50.0), 0.0);
    }

    #[test]
    fn the_middle_of_the_histogram_takes_eight_tenths_of_the_range() {
        for seed in 0..50 {
            let mut patch: Vec<f32> = (0..=1000).map(|i| i as f32 / 500.0 - 1.0).collect();
            contrast(&mut patch, &mut Rng::new(seed));
            assert_eq!((patch[0], patch[1000]), (0.0, 1.0));
            assert!(patch.is_sorted());
            // Voxel 20 lies at the second percentile or above, voxel 980 at the 98th or below.
            assert!(patch[20] >= 0.1 - 1e-6 && patch[980] <= 0.9 + 1e-6);
            let below = patch.iter().filter(|v| **v < 0.1 - 1e-6).count();
            let above = patch.iter().filter(|v| **v > 0.9 + 1e-6).count();
            assert!((1..=20).contains(&below), "{below}");
            assert!((1..=20).contains(&above), "{above}");
        }
    }

    #[test]
    fn almost_constant_patches_stay_numbers() {
        for seed in 0..50 {
            let mut patch = vec![-1.0; 1000];
            contrast(&mut patch, &mut Rng::new(seed));
            assert!(patch.iter().all(|v| *v == 0.1));
            gamma(&mut patch, &mut Rng::new(seed));
            assert!(patch.iter().all(|v| *v == 0.1));
            patch.fill(-1.0);
            patch[0] = 1.0;
            contrast(&mut patch, &mut Rng::new(seed));
            gamma(&mut patch, &mut Rng::new(seed));
            assert!(patch.iter().all(|v| (0.0..=1.0).contains(v)));
            assert!(patch[0] > 0.9 && patch[1] <= 0.1);
        }
    }

    #[test]
    fn gamma_keeps_the_ends_and_the_order() {
        let mut seen = (f32::INFINITY, 0f32);
        for seed in 0..200 {
            let mut patch: Vec<f32> = (0..=100).map(|i| 0.2 + i as f32 / 200.0).collect();
            gamma(&mut patch, &mut Rng::new(seed));
            assert!((patch[0] - 0.2).abs() < 1e-6 && (patch[100] - 0.7).abs() < 1e-6);
            assert!(patch.is_sorted());
            let exponent = ((patch[50] - 0.2) / 0.5).ln() / 0.5f32.ln();
            assert!((0.69..1.51).contains(&exponent), "{exponent}");
            seen = (seen.0.min(exponent), seen.1.max(exponent));
        }
        assert!(seen.0 < 0.75 && seen.1 > 1.45);
    }
}
