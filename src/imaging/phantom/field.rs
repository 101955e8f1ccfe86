//! Smooth random fields and the blur of the scanner.

use rayon::prelude::*;

use crate::rng::Rng;

/// A smooth random function of space: a few waves of random direction, length and phase. Its
/// values have mean 0 and stay within a few standard deviations of 1.
pub(super) struct Field {
    waves: Vec<([f64; 3], f64)>,
    scale: f64,
}

impl Field {
    /// Waves between `shortest_mm` and twice that.
    pub fn new(rng: &mut Rng, shortest_mm: f64, count: usize) -> Self {
        let waves = (0..count)
            .map(|_| {
                let direction: [f64; 3] = std::array::from_fn(|_| rng.normal());
                let norm = direction
                    .iter()
                    .map(|v| v * v)
                    .sum::<f64>()
                    .sqrt()
                    .max(1e-9);
                let frequency = 1.0 / (shortest_mm * rng.range(1.0, 2.0));
                (direction.map(|v| v / norm * frequency), rng.uniform())
            })
            .collect();
        Self {
            waves,
            scale: (2.0 / count as f64).sqrt(),
        }
    }

    pub fn at(&self, p: [f64; 3]) -> f64 {
        let sum: f64 = self
            .waves
            .iter()
            .map(|(k, phase)| wave(k[0] * p[0] + k[1] * p[1] + k[2] * p[2] + phase))
            .sum();
        sum * self.scale
    }
}

/// A wave of period 1 made of parabolas: as smooth as this needs, and several times faster than a
/// sine.
fn wave(turns: f64) -> f64 {
    // To -0.5..=0.5; the cast drops the fraction towards zero.
    let shifted = turns + 0.5 + 1024.0;
    let t = shifted - (shifted as i64) as f64 - 0.5;
    t * (8.0 - 16.0 * t.abs())
}

/// Gaussian blur with standard deviations in voxels along `[z, y, x]`; edges continue outwards.
pub(super) fn blur(values: &mut Vec<f32>, shape: [usize; 3], sigma: [f64; 3]) {
    let strides = [shape[1] * shape[2], shape[2], 1];
    for axis in 0..3 {
        // A deviation this small leaves a kernel of one tap.
        if sigma[axis] < 0.2 || shape[axis] < 2 {
            continue;
        }
        let kernel = kernel(sigma[axis]);
        let radius = (kernel.len() / 2) as isize;
        let (size, stride) = (shape[axis] as isize, strides[axis]);
        let source = &*values;
        *values = (0..source.len())
            .into_par_iter()
            .with_min_len(1 << 14)
            .map(|at| {
                let position = (at / stride) as isize % size;
                let mut sum = 0.0;
                for (tap, weight) in kernel.iter().enumerate() {
                    let other = (position + tap as isize - radius).clamp(0, size - 1);
                    sum += weight
                        * source[(at as isize + (other - position) * stride as isize) as usize];
                }
                sum
            })
            .collect();
    }
}

fn kernel(sigma: f64) -> Vec<f32> {
    let radius = (3.0 * sigma).ceil() as i64;
    let weights: Vec<f64> = (-radius..=radius)
        .map(|n| (-0.5 * (n as f64 / sigma).powi(2)).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / sum) as f32).collect()
}
