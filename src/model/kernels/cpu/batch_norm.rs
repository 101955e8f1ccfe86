//! Batch normalisation fused with a PReLU of one slope. Nothing normalised is stored: the backward pass computes it again from the input.
//!
//! Tensors are `[batch, channels, voxels...]`. With `xhat = (x - mean) / sqrt(var + epsilon)` the result is `prelu(gamma * xhat + beta)`.

use super::Isa;
use super::math::sums;
use super::simd::{Output, per_isa, ranges};
use rayon::prelude::*;

/// Elements per task; sums are cut at its multiples, so it is part of the result's rounding.
const STRETCH: usize = 64 * 1024;

/// Sizes of one normalised tensor `[batch, channels, voxels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchNormShape {
    pub batch: usize,
    pub channels: usize,
    /// Voxels of one channel of one sample.
    pub voxels: usize,
}

impl BatchNormShape {
    fn len(&self) -> usize {
        self.batch * self.channels * self.voxels
    }

    /// The parts of one channel over the batch, as ranges of the whole tensor.
    fn stretches(&self, channel: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let shape = *self;
        (0..self.batch).flat_map(move |sample| {
            let start = (sample * shape.channels + channel) * shape.voxels;
            ranges(shape.voxels, STRETCH).map(move |r| start + r.start..start + r.end)
        })
    }

    /// `sum_part` of every stretch of every channel, in parallel; added up per channel in order by `add`.
    fn reduce<T: Send + Default>(
        &self,
        sum_part: impl Fn(usize, std::ops::Range<usize>) -> T + Sync,
        add: impl Fn(&mut T, T),
    ) -> Vec<T> {
        let tasks: Vec<_> = (0..self.channels)
            .flat_map(|channel| self.stretches(channel).map(move |r| (channel, r)))
            .collect();
        let parts: Vec<(usize, T)> = tasks
            .into_par_iter()
            .map(|(channel, r)| (channel, sum_part(channel, r)))
            .collect();
        let mut totals: Vec<T> = (0..self.channels).map(|_| T::default()).collect();
        for (channel, part) in parts {
            add(&mut totals[channel], part);
        }
        totals
    }
}

/// The parameters of a normalisation with PReLU: `gamma` and `beta` per channel, one slope.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub slope: f32,
    pub epsilon: f32,
}

/// Mean and biased variance of each channel, over the batch and the voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub mean: Vec<f32>,
    pub var: Vec<f32>,
}

/// What the backward pass gives.
#[derive(Clone, Debug)]
pub struct BatchNormGradients {
    /// `[batch, channels, voxels]`.
    pub dx: Vec<f32>,
    pub dgamma: Vec<f32>,
    pub dbeta: Vec<f32>,
    pub dslope: f32,
}

/// Count, mean and sum of squared distances from the mean of some values.
#[derive(Clone, Copy, Default)]
struct Partial {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Partial {
    /// Joins the values of two sets (Chan, Golub and LeVeque 1979).
    fn join(&mut self, other: Self) {
        let count = self.count + other.count;
        if count > 0.0 {
            let distance = other.mean - self.mean;
            self.squares += other.squares + distance * distance * self.count * other.count / count;
            self.mean += distance * other.count / count;
            self.count = count;
        }
    }
}

per_isa! {
    /// Two passes per piece that fits the first-level cache, one pass over memory.
    fn partial(values: &[f32]) -> Partial {
        let mut total = Partial::default();
        for piece in values.chunks(4096) {
            let count = piece.len() as f64;
            let [sum] = sums([piece], |v| v);
            let mean = (sum / count) as f32;
            let [rest, squares] = sums([piece], |[v]| {
 let d = v - mean;
                [d, d * d]
            });
            // The sum of the distances makes good for the rounding of the mean.
            let correction = rest / count;
            total.join(Partial { count, mean: f64::from(mean) + correction, squares: squares - correction * rest });
        }
        total
    }
}

/// Mean and biased variance of `x`. With these and [`fold`], the convolution that follows can normalise while it reads.
pub fn moments(x: &[f32], shape: BatchNormShape) -> Moments {
    moments_on(Isa::best(), x, shape)
}

fn moments_on(isa: Isa, x: &[f32], shape: BatchNormShape) -> Moments {
    assert_eq!(x.len(), shape.len(), "batch norm: length of the input");
    let totals = shape.reduce(|_, r| partial(isa, &x[r]), Partial::join);
    Moments {
        mean: totals.iter().map(|t| t.mean as f32).collect(),
        var: totals
            .iter()
            .map(|t| (t.squares / t.count.max(1.0)) as f32)
            .collect(),
    }
}

/// The normalisation as `x * scale + shift`, per channel.
pub fn fold(norm: BatchNorm<'_>, moments: &Moments) -> (Vec<f32>, Vec<f32>) {
    let channels = norm.gamma.len();
    assert_eq!(
        (norm.beta.len(), moments.mean.len(), moments.var.len()),
        (channels, channels, channels),
        "batch norm: channels"
    );
    (0..channels)
        .map(|c| {
            let scale = f64::from(norm.gamma[c])
                / (f64::from(moments.var[c]) + f64::from(norm.epsilon)).sqrt();
            (
                scale as f32,
                (f64::from(norm.beta[c]) - f64::from(moments.mean[c]) * scale) as f32,
            )
        })
        .unzip()
}

/// `prelu(x * scale[c] + shift[c])`: the normalisation with given moments (evaluation), folded by [`fold`].
pub fn scale_shift_prelu(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    slope: f32,
    shape: BatchNormShape,
) -> Vec<f32> {
    scale_shift_prelu_on(Isa::best(), x, scale, shift, slope, shape)
}

fn scale_shift_prelu_on(
    isa: Isa,
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    slope: f32,
    shape: BatchNormShape,
) -> Vec<f32> {
    assert_eq!(x.len(), shape.len(), "batch norm: length of the input");
    assert_eq!(
        (scale.len(), shift.len()),
        (shape.channels, shape.channels),
        "batch norm: channels"
    );
    // SAFETY: `affine_prelu` writes all of `y`.
    unsafe {
        Output::in_chunks(x.len(), STRETCH, |index, y| {
            let mut at = index * STRETCH;
            let mut rest = y;
            while !rest.is_empty() {
                let plane = at / shape.voxels;
                let (y, tail) =
                    rest.split_at_mut(((plane + 1) * shape.voxels - at).min(rest.len()));
                let c = plane % shape.channels;
                affine_prelu(isa, &x[at..at + y.len()], scale[c], shift[c], slope, y);
                at += y.len();
                rest = tail;
            }
        })
    }
}

per_isa! {
    fn affine_prelu(x: &[f32], scale: f32, shift: f32, slope: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let z = x * scale + shift;
            *y = if z > 0.0 { z } else { z * slope };
        }
    }
}

/// Training: normalises with the moments of `x` itself; returns the result and those moments (for the running averages and the backward pass).
pub fn batch_norm_prelu(
    x: &[f32],
    norm: BatchNorm<'_>,
    shape: BatchNormShape,
) -> (Vec<f32>, Moments) {
    batch_norm_prelu_on(Isa::best(), x, norm, shape)
}

fn batch_norm_prelu_on(
    isa: Isa,
    x: &[f32],
    norm: BatchNorm<'_>,
    shape: BatchNormShape,
) -> (Vec<f32>, Moments) {
    let moments = moments_on(isa, x, shape);
    let (scale, shift) = fold(norm, &moments);
    (
        scale_shift_prelu_on(isa, x, &scale, &shift, norm.slope, shape),
        moments,
    )
}

/// Gradients in training, from the input `x` of the normalisation, the gradient `dy` of the result of the PReLU, and the moments of `x`.
pub fn batch_norm_prelu_backward(
    x: &[f32],
    dy: &[f32],
    norm: BatchNorm<'_>,
    moments: &Moments,
    shape: BatchNormShape,
) -> BatchNormGradients {
    backward_on(Isa::best(), x, dy, norm, moments, shape)
}

/// One channel's constants of the backward pass.
#[derive(Clone, Copy)]
struct Channel {
    mean: f32,
    rstd: f32,
    gamma: f32,
    beta: f32,
    slope: f32,
}

fn backward_on(
    isa: Isa,
    x: &[f32],
    dy: &[f32],
    norm: BatchNorm<'_>,
    moments: &Moments,
    shape: BatchNormShape,
) -> BatchNormGradients {
    assert_eq!(
        (x.len(), dy.len()),
        (shape.len(), shape.len()),
        "batch norm: lengths of the input and the gradient"
    );
    assert_eq!(
        (
            norm.gamma.len(),
            norm.beta.len(),
            moments.mean.len(),
            moments.var.len()
        ),
        (
            shape.channels,
            shape.channels,
            shape.channels,
            shape.channels
        )
    );
    let channel = |c: usize| Channel {
        mean: moments.mean[c],
        rstd: (1.0 / (f64::from(moments.var[c]) + f64::from(norm.epsilon)).sqrt()) as f32,
        gamma: norm.gamma[c],
        beta: norm.beta[c],
        slope: norm.slope,
    };
    let totals = shape.reduce(
        |c, r| gradient_sums(isa, &x[r.clone()], &dy[r], channel(c)),
        |total: &mut [f64; 3], part| total.iter_mut().zip(part).for_each(|(t, p)| *t += p),
    );
    let count = (shape.batch * shape.voxels).max(1) as f64;
    let dx = Output::new(x.len());
    let tasks: Vec<_> = (0..shape.channels)
        .flat_map(|c| shape.stretches(c).map(move |r| (c, r)))
        .collect();
    tasks.into_par_iter().for_each(|(c, r)| {
        // SAFETY: the stretches of all channels do not overlap.
        let dx = unsafe { dx.slice(r.start, r.len()) };
        let [dbeta, dgamma, _] = totals[c].map(|t| (t / count) as f32);
        gradient(isa, &x[r.clone()], &dy[r], channel(c), dbeta, dgamma, dx);
    });
    BatchNormGradients {
        // SAFETY: the stretches cover the tensor, and `gradient` writes each whole.
        dx: unsafe { dx.finish() },
        dbeta: totals.iter().map(|t| t[0] as f32).collect(),
        dgamma: totals.iter().map(|t| t[1] as f32).collect(),
        dslope: totals.iter().map(|t| t[2]).sum::<f64>() as f32,
    }
}

per_isa! {
    /// The sums of the gradients of beta, gamma and slope.
    fn gradient_sums(x: &[f32], dy: &[f32], c: Channel) -> [f64; 3] {
        sums([x, dy], |[x, dy]| {
            let xhat = (x - c.mean) * c.rstd;
            let z = c.gamma * xhat + c.beta;
            let dz = if z > 0.0 { dy } else { dy * c.slope };
            let dslope = if z > 0.0 { 0.0 } else { dy * z };
            [dz, dz * xhat, dslope]
        })
    }
}

per_isa! {
    fn gradient(x: &[f32], dy: &[f32], c: Channel, mean_dz: f32, mean_dz_xhat: f32, dx: &mut [f32]) {
        let scale = c.gamma * c.rstd;
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            let xhat = (x - c.mean) * c.rstd;
            let z = c.gamma * xhat + c.beta;
            let dz = if z > 0.0 { dy } else { dy * c.slope };
            *dx = scale * (dz - mean_dz - xhat * mean_dz_xhat);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, relative_error};
    use super::*;
    use proptest::prelude::*;

    fn check(isa: Isa, shape: BatchNormShape, seed: u64) {
        let x: Vec<f32> = noise(seed, shape.len()).iter().map(|v| 3.0 + v).collect();
        let dy = noise(seed + 1, shape.len());
        let (gamma, beta) = (
            noise(seed + 2, shape.channels),
            noise(seed + 3, shape.channels),
        );
        let norm = BatchNorm {
            gamma: &gamma,
            beta: &beta,
            slope: 0.2,
            epsilon: 1e-5,
        };
        let count = (shape.batch * shape.voxels) as f64;
        let of = |i: usize| i / shape.voxels % shape.channels;
        let f = f64::from;
        let (mut mean, mut var) = (vec![0.0; shape.channels], vec![0.0; shape.channels]);
        x.iter()
            .enumerate()
            .for_each(|(i, &x)| mean[of(i)] += f(x) / count);
        x.iter()
            .enumerate()
            .for_each(|(i, &x)| var[of(i)] += (f(x) - mean[of(i)]).powi(2) / count);
        let xhat: Vec<f64> = x
            .iter()
            .enumerate()
            .map(|(i, &x)| (f(x) - mean[of(i)]) / (var[of(i)] + f(norm.epsilon)).sqrt())
            .collect();
        let z: Vec<f64> = xhat
            .iter()
            .enumerate()
            .map(|(i, &h)| h * f(gamma[of(i)]) + f(beta[of(i)]))
            .collect();
        // The slope jumps at 0: which side a value within rounding of it is on is not defined.
        if z.iter().any(|z| z.abs() < 1e-6) {
            return;
        }
        let want_y: Vec<f64> = z
            .iter()
            .map(|&z| if z > 0.0 { z } else { z * f(norm.slope) })
            .collect();
        let (mut dgamma, mut dbeta, mut dslope) =
            (vec![0.0; shape.channels], vec![0.0; shape.channels], 0.0);
        let dz: Vec<f64> = z
            .iter()
            .zip(&dy)
            .map(|(&z, &dy)| {
                if z > 0.0 {
                    f(dy)
                } else {
                    f(dy) * f(norm.slope)
                }
            })
            .collect();
        for i in 0..x.len() {
            dgamma[of(i)] += dz[i] * xhat[i];
            dbeta[of(i)] += dz[i];
            dslope += if z[i] > 0.0 { 0.0 } else { f(dy[i]) * z[i] };
        }
        let want_dx: Vec<f64> = (0..x.len())
            .map(|i| {
                let c = of(i);
                f(gamma[c]) / (var[c] + f(norm.epsilon)).sqrt()
                    * (dz[i] - dbeta[c] / count - xhat[i] * dgamma[c] / count)
            })
            .collect();

        let (y, moments) = batch_norm_prelu_on(isa, &x, norm, shape);
        let g = backward_on(isa, &x, &dy, norm, &moments, shape);
        assert!(relative_error(&moments.mean, &mean, 1.0) < 1e-6);
        assert!(relative_error(&moments.var, &var, 1e-3) < 1e-5);
        // Near-constant channels (few values) magnify the rounding of x - mean by 1 / sqrt(var + epsilon).
        let tolerance = if count < 8.0 { 1e-3 } else { 1e-5 };
        assert!(
            relative_error(&y, &want_y, 1.0) < tolerance,
            "y: {}",
            relative_error(&y, &want_y, 1.0)
        );
        assert!(relative_error(&g.dgamma, &dgamma, count.sqrt() / 2.0) < tolerance);
        assert!(relative_error(&g.dbeta, &dbeta, count.sqrt() / 2.0) < tolerance);
        assert!((f(g.dslope) - dslope).abs() < tolerance * (1.0 + dslope.abs()));
        let largest = gamma.iter().map(|g| g.abs()).fold(0.0, f32::max) / 1e-5f32.sqrt();
        let error =
            g.dx.iter()
                .zip(&want_dx)
                .fold(0.0f64, |m, (&a, b)| m.max((f(a) - b).abs()));
        let scale = if count < 8.0 {
            f(largest)
        } else {
            want_dx.iter().fold(0.0, |m: f64, v| m.max(v.abs()))
        };
        assert!(error <= tolerance * scale, "dx: {error} of {scale}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn matches_the_definition(batch in 1usize..4, channels in 1usize..6, voxels in 1usize..300, seed in 0u64..1000) {
            for isa in Isa::available() {
                check(isa, BatchNormShape { batch, channels, voxels }, seed);
            }
        }
    }

    #[test]
    fn matches_the_definition_when_cut() {
        for isa in Isa::available() {
            check(
                isa,
                BatchNormShape {
                    batch: 2,
                    channels: 3,
                    voxels: STRETCH + 4097,
                },
                5,
            );
        }
    }

    /// A large offset must not drown the variance.
    #[test]
    fn variance_of_a_large_mean() {
        let x: Vec<f32> = (0..100_000).map(|i| 10_000.0 + (i % 2) as f32).collect();
        let m = moments(
            &x,
            BatchNormShape {
                batch: 1,
                channels: 1,
                voxels: x.len(),
            },
        );
        assert_eq!((m.mean[0], m.var[0]), (10_000.5, 0.25));
    }
}
