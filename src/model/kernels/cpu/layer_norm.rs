//! Layer normalisation over the last axis of `[rows, dim]`. The backward pass computes mean and deviation again: a row is in cache anyway.

use super::Isa;
use super::math::sums;
use super::simd::{Output, per_isa};
use rayon::prelude::*;

/// Rows whose parameter gradients are summed in `f32` by one task; part of the rounding of the result.
const ROWS: usize = 128;

/// Columns that one task normalises: a few kilobytes per row, so that all rows stay in a second-level cache.
const COLUMNS: usize = 128;

/// `gamma * (x - mean) / sqrt(var + epsilon) + beta` per row of `gamma.len()` values; `x`: `[rows, dim]`.
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32) -> Vec<f32> {
    layer_norm_on(Isa::best(), x, gamma, beta, epsilon)
}

fn layer_norm_on(isa: Isa, x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32) -> Vec<f32> {
    let dim = gamma.len();
    assert!(
        beta.len() == dim && dim > 0 && x.len().is_multiple_of(dim),
        "layer norm: {} values for rows of {dim}",
        x.len()
    );
    // SAFETY: `forward` writes all of `y`.
    unsafe {
        Output::in_chunks(x.len(), ROWS * dim, |i, y| {
            forward(
                isa,
                &x[i * ROWS * dim..][..y.len()],
                gamma,
                beta,
                epsilon,
                y,
            )
        })
    }
}

/// [`layer_norm`] of the columns of `x` `[dim, columns]`, into `y` of the same shape: tokens as voxels of a feature map.
pub fn layer_norm_columns(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, y: &mut [f32]) {
    let (isa, dim) = (Isa::best(), gamma.len());
    assert!(
        beta.len() == dim && dim > 0 && x.len().is_multiple_of(dim) && x.len() == y.len(),
        "layer norm: {} values for columns of {dim}",
        x.len()
    );
    let columns = x.len() / dim;
    let y = Output::over(y);
    (0..columns.div_ceil(COLUMNS))
        .into_par_iter()
        .for_each(|task| {
            let from = task * COLUMNS;
            let len = COLUMNS.min(columns - from);
            let row = |c: usize| &x[c * columns + from..][..len];
            let (mut mean, mut scale) = ([0f32; COLUMNS], [0f32; COLUMNS]);
            (0..dim).for_each(|c| add_row(isa, row(c), &mut mean));
            mean.iter_mut().for_each(|sum| *sum /= dim as f32);
            (0..dim).for_each(|c| add_squares(isa, row(c), &mean, &mut scale));
            for sum in &mut scale {
                *sum = 1.0 / (*sum / dim as f32 + epsilon).sqrt();
            }
            for c in 0..dim {
                // SAFETY: each task has its own columns.
                let y = unsafe { y.slice(c * columns + from, len) };
                normalise_row(isa, row(c), &mean, &scale, gamma[c], beta[c], y);
            }
        });
}

per_isa! {
    fn add_row(x: &[f32], sum: &mut [f32]) {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
}

per_isa! {
    fn add_squares(x: &[f32], mean: &[f32], sum: &mut [f32]) {
        for ((sum, x), mean) in sum.iter_mut().zip(x).zip(mean) {
            *sum += (x - mean) * (x - mean);
        }
    }
}

per_isa! {
    fn normalise_row(x: &[f32], mean: &[f32], scale: &[f32], gamma: f32, beta: f32, y: &mut [f32]) {
        for (((y, x), mean), scale) in y.iter_mut().zip(x).zip(mean).zip(scale) {
            *y = (x - mean) * scale * gamma + beta;
        }
    }
}

/// The gradients of input, gamma and beta from the input and the gradient of the result.
pub fn layer_norm_backward(
    x: &[f32],
    dy: &[f32],
    gamma: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    layer_norm_backward_on(Isa::best(), x, dy, gamma, epsilon)
}

fn layer_norm_backward_on(
    isa: Isa,
    x: &[f32],
    dy: &[f32],
    gamma: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let dim = gamma.len();
    assert!(
        dy.len() == x.len() && dim > 0 && x.len().is_multiple_of(dim),
        "layer norm: {} values for rows of {dim}",
        x.len()
    );
    let chunk = ROWS * dim;
    let dx = Output::new(x.len());
    let parts: Vec<Vec<f32>> = x
        .par_chunks(chunk)
        .zip(dy.par_chunks(chunk))
        .enumerate()
        .map(|(i, (x, dy))| {
            let mut parameters = vec![0.0; 2 * dim];
            let (dgamma, dbeta) = parameters.split_at_mut(dim);
            // SAFETY: each task has its own rows.
            backward(
                isa,
                x,
                dy,
                gamma,
                epsilon,
                unsafe { dx.slice(i * chunk, x.len()) },
                dgamma,
                dbeta,
            );
            parameters
        })
        .collect();
    let total = |at: usize| parts.iter().map(|p| f64::from(p[at])).sum::<f64>() as f32;
    let dgamma = (0..dim).into_par_iter().map(total).collect();
    let dbeta = (dim..2 * dim).into_par_iter().map(total).collect();
    // SAFETY: every row was written.
    (unsafe { dx.finish() }, dgamma, dbeta)
}

/// Mean and reciprocal deviation of a row.
#[inline(always)]
fn statistics(x: &[f32], epsilon: f32) -> (f32, f32) {
    let count = x.len() as f64;
    let [sum] = sums([x], |v| v);
    let mean = (sum / count) as f32;
    let [squares] = sums([x], |[v]| {
        let d = v - mean;
        [d * d]
    });
    (
        mean,
        (1.0 / (squares / count + f64::from(epsilon)).sqrt()) as f32,
    )
}

per_isa! {
    fn forward(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, y: &mut [f32]) {
        let dim = gamma.len();
        for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)) {
            let (mean, rstd) = statistics(x, epsilon);
            for (((y, &x), gamma), beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                *y = (x - mean) * rstd * gamma + beta;
            }
        }
    }
}

per_isa! {
    /// Adds to `dgamma` and `dbeta`.
    fn backward(x: &[f32], dy: &[f32], gamma: &[f32], epsilon: f32, dx: &mut [f32], dgamma: &mut [f32], dbeta: &mut [f32]) {
        let dim = gamma.len();
        let (dgamma, dbeta) = (&mut dgamma[..dim], &mut dbeta[..dim]);
        for ((x, dy), dx) in x.chunks_exact(dim).zip(dy.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)) {
            let (mean, rstd) = statistics(x, epsilon);
            let [mean_g, mean_gx] = sums([x, dy, gamma], |[x, dy, gamma]| {
 let g = dy * gamma;
 [g, g * (x - mean) * rstd]
            })
            .map(|s| (s / dim as f64) as f32);
            for i in 0..dim {
                let xhat = (x[i] - mean) * rstd;
                dx[i] = rstd * (dy[i] * gamma[i] - mean_g - xhat * mean_gx);
                dgamma[i] += dy[i] * xhat;
                dbeta[i] += dy[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, relative_error};
    use super::super::tokens::transpose;
    use super::*;
    use proptest::prelude::*;

    fn check(isa: Isa, rows: usize, dim: usize, seed: u64) {
        let epsilon = 1e-2; // keeps rows of one or two values well conditioned
        let (x, dy) = (noise(seed, rows * dim), noise(seed + 1, rows * dim));
        let (gamma, beta) = (noise(seed + 2, dim), noise(seed + 3, dim));
        let f = f64::from;
        let (mut y, mut dx) = (vec![], vec![]);
        let (mut dgamma, mut dbeta) = (vec![0.0; dim], vec![0.0; dim]);
        for (x, dy) in x.chunks(dim).zip(dy.chunks(dim)) {
            let n = dim as f64;
            let mean = x.iter().map(|&v| f(v)).sum::<f64>() / n;
            let var = x.iter().map(|&v| (f(v) - mean).powi(2)).sum::<f64>() / n;
            let rstd = 1.0 / (var + f(epsilon)).sqrt();
            let xhat: Vec<f64> = x.iter().map(|&v| (f(v) - mean) * rstd).collect();
            let g: Vec<f64> = dy.iter().zip(&gamma).map(|(&d, &g)| f(d) * f(g)).collect();
            let (mean_g, mean_gx) = (
                g.iter().sum::<f64>() / n,
                g.iter().zip(&xhat).map(|(g, x)| g * x).sum::<f64>() / n,
            );
            for i in 0..dim {
                y.push(xhat[i] * f(gamma[i]) + f(beta[i]));
                dx.push(rstd * (g[i] - mean_g - xhat[i] * mean_gx));
                dgamma[i] += f(dy[i]) * xhat[i];
                dbeta[i] += f(dy[i]);
            }
        }
        assert!(relative_error(&layer_norm_on(isa, &x, &gamma, &beta, epsilon), &y, 1.0) < 1e-5);
        let got = layer_norm_backward_on(isa, &x, &dy, &gamma, epsilon);
        // A row of one value has no gradient at all: compare with the size of what cancels.
        let scale = dx.iter().chain([&0.1]).fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(
            got.0
                .iter()
                .zip(&dx)
                .all(|(&a, b)| (f(a) - b).abs() < 1e-5 * scale)
        );
        assert!(
            got.1
                .iter()
                .zip(&dgamma)
                .all(|(&a, b)| (f(a) - b).abs() < 1e-5 * (1.0 + b.abs()))
        );
        assert!(relative_error(&got.2, &dbeta, (rows as f64).sqrt() / 2.0) < 1e-5);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn matches_the_definition(rows in 1usize..300, dim in 1usize..100, seed in 0u64..1000) {
            for isa in Isa::available() {
                check(isa, rows, dim, seed);
            }
        }
    }

    #[test]
    fn columns_are_rows_turned() {
        for (dim, columns) in [(5, 3), (128, 300), (33, 128)] {
            let (gamma, beta) = (noise(2, dim), noise(3, dim));
            let x = noise(1, dim * columns);
            let want = layer_norm(&transpose(&x, dim, columns), &gamma, &beta, 1e-5);
            let mut got = vec![f32::NAN; x.len()];
            layer_norm_columns(&x, &gamma, &beta, 1e-5, &mut got);
            for (got, want) in transpose(&got, dim, columns).iter().zip(&want) {
                assert!((got - want).abs() < 1e-5, "{got}, not {want}");
            }
        }
    }
}
