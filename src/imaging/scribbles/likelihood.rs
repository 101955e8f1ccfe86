//! How much more likely an intensity is in the foreground than in the background, learned from painted voxels.

use serde::{Deserialize, Serialize};

/// How the distributions of intensities are described.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Histograms of so many bins, smoothed as far as few voxels make it necessary.
    Histogram {
        /// Number of bins, at least 2.
        bins: usize,
    },
    /// Mixtures of at most so many normal distributions.
    Mixture {
        /// Number of distributions, at least 1.
        components: usize,
    },
}

/// Bins on which mixtures are fitted and tabulated.
const FINE_BINS: usize = 512;
/// Widest kernel, as a share of the window.
const WIDEST: f64 = 1.0 / 16.0;
/// Rounds of expectation and maximisation.
const ROUNDS: usize = 40;
/// Share of a distribution that is spread evenly, so that nothing is impossible.
const EVEN: f64 = 0.02;
/// Painted voxels that one distribution of a mixture needs at least.
const VOXELS_PER_COMPONENT: f64 = 8.0;
/// Intensities alone never say more than this (a ratio of about 400).
const MOST: f64 = 6.0;

/// Logarithms of the ratio of both likelihoods, tabulated over a window of intensities.
#[derive(Debug, Clone)]
pub struct Likelihood {
    low: f32,
    bins_per_hu: f32,
    table: Vec<f32>,
}

impl Likelihood {
    /// Learns from the intensities of painted voxels; a side without any is taken to be anything. Intensities outside of
    /// `window` count as its ends.
    pub fn learn(
        method: Method,
        window: [f32; 2],
        foreground: impl Iterator<Item = f32>,
        background: impl Iterator<Item = f32>,
    ) -> Self {
        let bins = match method {
            Method::Histogram { bins } => bins.max(2),
            Method::Mixture { .. } => FINE_BINS,
        };
        let mut likelihood = Self {
            low: window[0],
            bins_per_hu: bins as f32 / (window[1] - window[0]),
            table: vec![0.0; bins],
        };
        let count = |values: &mut dyn Iterator<Item = f32>| {
            let mut counts = vec![0.0; bins];
            values.for_each(|hu| counts[likelihood.bin(hu)] += 1.0);
            counts
        };
        let (mut foreground, mut background) = (foreground, background);
        let sides = [count(&mut foreground), count(&mut background)];
        let [foreground, background] = sides.map(|counts| match Spread::of(&counts) {
            // Anything.
            None => vec![1.0 / bins as f64; bins],
            Some(spread) => {
                let parts = match method {
                    Method::Histogram { .. } => histogram(&counts, &spread),
                    Method::Mixture { components } => mixture(&counts, &spread, components),
                };
                probabilities(&parts, bins)
            }
        });
        for ((ratio, f), b) in likelihood.table.iter_mut().zip(foreground).zip(background) {
            *ratio = (f / b).ln().clamp(-MOST, MOST) as f32;
        }
        likelihood
    }

    fn bin(&self, hu: f32) -> usize {
        // A saturating cast; below the window is the first bin.
        (((hu - self.low) * self.bins_per_hu) as usize).min(self.table.len() - 1)
    }

    /// Natural logarithm of foreground over background likelihood of an intensity.
    pub fn log_ratio(&self, hu: f32) -> f32 {
        self.table[self.bin(hu)]
    }
}

/// How painted voxels are spread over the bins.
struct Spread {
    total: f64,
    variance: f64,
    /// Narrower than this, a distribution would describe single voxels (Silverman's rule for a kernel), in bins.
    kernel: f64,
}

impl Spread {
    /// None without any voxel.
    fn of(counts: &[f64]) -> Option<Self> {
        let moment = |of: &dyn Fn(f64) -> f64| -> f64 {
            let each = counts.iter().enumerate();
            each.map(|(bin, count)| of(bin as f64) * count).sum()
        };
        let total = moment(&|_| 1.0);
        let mean = moment(&|bin| bin) / total;
        let variance = moment(&|bin| (bin - mean).powi(2)) / total;
        let quartile = |share: f64| {
            let mut below = 0.0;
            let found = counts.iter().position(|count| {
                below += count;
                below >= share * total
            });
            found.unwrap_or_default() as f64
        };
        (total > 0.0).then(|| {
            // Of air and tissue together the deviation says nothing about either; the middle half is that of one of them.
            let middle = (quartile(0.75) - quartile(0.25)) / 1.34;
            let kernel = 1.06 * variance.sqrt().min(middle) * total.powf(-0.2);
            Self {
                total,
                variance,
                kernel: kernel.clamp(0.5, counts.len().max(16) as f64 * WIDEST),
            }
        })
    }
}

/// Probabilities of bins after normal distributions, of which a small share is spread evenly.
fn probabilities(parts: &[Normal], bins: usize) -> Vec<f64> {
    let even = 1.0 / bins as f64;
    let density = |bin: usize| -> f64 {
        let each = parts.iter();
        each.map(|part| part.share * part.density(bin as f64)).sum()
    };
    let densities: Vec<f64> = (0..bins).map(density).collect();
    let inside = densities.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let each = densities.iter();
    each.map(|density| (1.0 - EVEN) * density / inside + EVEN * even)
        .collect()
}

/// A histogram, smoothed as far as few voxels make it necessary.
fn histogram(counts: &[f64], spread: &Spread) -> Vec<Normal> {
    let there = counts.iter().enumerate().filter(|(_, count)| **count > 0.0);
    there
        .map(|(bin, count)| Normal {
            share: count / spread.total,
            mean: bin as f64,
            variance: spread.kernel.powi(2),
        })
        .collect()
}

/// A mixture of normal distributions, fitted by expectation and maximisation, which starts at quantiles.
fn mixture(counts: &[f64], spread: &Spread, components: usize) -> Vec<Normal> {
    let components = components
        .min((spread.total / VOXELS_PER_COMPONENT) as usize)
        .max(1);
    let quantile = |share: f64| {
        let mut below = 0.0;
        let found = counts.iter().position(|count| {
            below += count;
            below >= share * spread.total
        });
        found.unwrap_or_default() as f64
    };
    let narrowest = spread.kernel.powi(2);
    let mut parts: Vec<Normal> = (0..components)
        .map(|k| Normal {
            share: 1.0 / components as f64,
            mean: quantile((k as f64 + 0.5) / components as f64),
            variance: (spread.variance / (components * components) as f64).max(narrowest),
        })
        .collect();
    let mut belongs = vec![0.0; components];
    for _ in 0..ROUNDS {
        let mut sums = vec![[0.0; 3]; components];
        for (bin, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0.0) {
            let x = bin as f64;
            for (belongs, part) in belongs.iter_mut().zip(&parts) {
                *belongs = part.share * part.density(x) + f64::MIN_POSITIVE;
            }
            let all: f64 = belongs.iter().sum();
            for (sum, belongs) in sums.iter_mut().zip(&belongs) {
                let weight = count * belongs / all;
                sum[0] += weight;
                sum[1] += weight * x;
                sum[2] += weight * x * x;
            }
        }
        for (part, [weight, first, second]) in parts.iter_mut().zip(sums) {
            part.share = weight / spread.total;
            if weight > 1e-9 {
                part.mean = first / weight;
                part.variance = (second / weight - part.mean * part.mean).max(narrowest);
            }
        }
    }
    parts
}

/// One normal distribution, in bins.
struct Normal {
    share: f64,
    mean: f64,
    variance: f64,
}

impl Normal {
    fn density(&self, x: f64) -> f64 {
        let offset = x - self.mean;
        (-0.5 * offset * offset / self.variance).exp()
            / (std::f64::consts::TAU * self.variance).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const METHODS: [Method; 2] = [
        Method::Histogram { bins: 64 },
        Method::Mixture { components: 20 },
    ];

    fn draws(seed: u64, count: usize, mean: f64, deviation: f64) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..count)
            .map(|_| (mean + deviation * rng.normal()) as f32)
            .collect()
    }

    #[test]
    fn the_ratio_is_that_of_the_distributions() {
        let (liver, fat) = (draws(1, 4000, 110.0, 15.0), draws(2, 4000, 0.0, 25.0));
        for method in METHODS {
            let window = [-100.0, 200.0];
            let found =
                Likelihood::learn(method, window, liver.iter().copied(), fat.iter().copied());
            for hu in [61.0f32, 71.0, 81.0, 101.0, 121.0] {
                let normal = |mean: f32, deviation: f32| {
                    -0.5 * ((hu - mean) / deviation).powi(2) - deviation.ln()
                };
                let expected = (normal(110.0, 15.0) - normal(0.0, 25.0)).clamp(-6.0, 6.0);
                let ratio = found.log_ratio(hu);
                assert!(
                    (ratio - expected).abs() < 1.6,
                    "{method:?} {hu}: {ratio} {expected}"
                );
            }
            assert!(found.log_ratio(f32::MAX).is_finite());
        }
    }

    #[test]
    fn a_mixture_finds_both_heaps_and_the_gap_between() {
        let bright: Vec<f32> = draws(3, 500, 150.0, 8.0)
            .into_iter()
            .chain(draws(4, 500, -50.0, 8.0))
            .collect();
        let gray = draws(5, 500, 50.0, 10.0);
        for method in METHODS {
            let found = Likelihood::learn(
                method,
                [-100.0, 200.0],
                bright.iter().copied(),
                gray.iter().copied(),
            );
            assert!(
                found.log_ratio(150.0) > 2.0 && found.log_ratio(-50.0) > 2.0,
                "{method:?}"
            );
            assert!(found.log_ratio(50.0) < -2.0, "{method:?}");
        }
    }

    #[test]
    fn much_air_does_not_blur_a_little_tissue() {
        let air = draws(6, 2000, -1000.0, 15.0);
        let around: Vec<f32> = air.into_iter().chain(draws(7, 100, 30.0, 15.0)).collect();
        let organ = draws(8, 30, 90.0, 15.0);
        for method in METHODS {
            let window = [-1050.0, 130.0];
            let found = Likelihood::learn(
                method,
                window,
                organ.iter().copied(),
                around.iter().copied(),
            );
            assert!(found.log_ratio(90.0) > 1.0, "{method:?}");
            assert!(found.log_ratio(25.0) < -1.0, "{method:?}");
            assert!(found.log_ratio(-1000.0) < -2.0, "{method:?}");
        }
    }

    #[test]
    fn without_voxels_anything_is_possible() {
        for method in METHODS {
            let nothing =
                Likelihood::learn(method, [0.0, 1.0], std::iter::empty(), std::iter::empty());
            assert!((0..10).all(|v| nothing.log_ratio(v as f32 / 10.0) == 0.0));
            let one = Likelihood::learn(method, [0.0, 1.0], [0.5].into_iter(), std::iter::empty());
            assert!(
                one.log_ratio(0.5) > 0.0 && one.log_ratio(0.5).is_finite(),
                "{method:?}"
            );
        }
    }
}
