//! Softmax over the last axis of `[rows, dim]`.

use super::Isa;
use super::math::{exp, sums};
use super::simd::{Output, per_isa};

/// Elements per task, about.
const CHUNK: usize = 16 * 1024;

fn chunk(len: usize, dim: usize) -> usize {
    assert!(
        dim > 0 && len.is_multiple_of(dim),
        "softmax: {len} values for rows of {dim}"
    );
    (CHUNK / dim).max(1) * dim
}

/// `e^x / sum(e^x)` per row of `dim` values.
pub fn softmax(x: &[f32], dim: usize) -> Vec<f32> {
    softmax_on(Isa::best(), x, dim)
}

fn softmax_on(isa: Isa, x: &[f32], dim: usize) -> Vec<f32> {
    let chunk = chunk(x.len(), dim);
    // SAFETY: `forward` writes all of `y`.
    unsafe {
        Output::in_chunks(x.len(), chunk, |i, y| {
            forward(isa, &x[i * chunk..][..y.len()], dim, y)
        })
    }
}

/// The gradient of the input, from the result `y` and the gradient of it.
pub fn softmax_backward(y: &[f32], dy: &[f32], dim: usize) -> Vec<f32> {
    softmax_backward_on(Isa::best(), y, dy, dim)
}

fn softmax_backward_on(isa: Isa, y: &[f32], dy: &[f32], dim: usize) -> Vec<f32> {
    assert_eq!(y.len(), dy.len(), "softmax: length of the gradient");
    let chunk = chunk(y.len(), dim);
    // SAFETY: `backward` writes all of `dx`.
    unsafe {
        Output::in_chunks(y.len(), chunk, |i, dx| {
            backward(
                isa,
                &y[i * chunk..][..dx.len()],
                &dy[i * chunk..][..dx.len()],
                dim,
                dx,
            )
        })
    }
}

/// The largest number.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    const LANES: usize = 32;
    const FEW: usize = 8;
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, x);
        }
    }
    let (blocks, rest) = rest.as_chunks::<FEW>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, x);
        }
    }
    // Halves, so that the last steps are few.
    let mut few: [f32; FEW] = std::array::from_fn(|i| {
        larger(
            larger(lanes[i], lanes[i + FEW]),
            larger(lanes[i + 2 * FEW], lanes[i + 3 * FEW]),
        )
    });
    for half in [4, 2, 1] {
        for i in 0..half {
            few[i] = larger(few[i], few[i + half]);
        }
    }
    rest.iter().fold(few[0], |a, &b| larger(a, b))
}

per_isa! {
    fn forward(x: &[f32], dim: usize, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)) {
            let top = largest(x);
            for (y, &x) in y.iter_mut().zip(x) {
                // The exponential stops at e^-87; what is masked out by -infinity must be 0.
                let d = x - top;
                *y = if d < -87.0 { 0.0 } else { exp::<FMA>(d) };
            }
            let [sum] = sums([&*y], |v| v);
            let scale = (1.0 / sum) as f32;
            for y in y.iter_mut() {
                *y *= scale;
            }
        }
    }
}

per_isa! {
    fn backward(y: &[f32], dy: &[f32], dim: usize, dx: &mut [f32]) {
        for ((y, dy), dx) in y.chunks_exact(dim).zip(dy.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)) {
            let [dot] = sums([y, dy], |[y, dy]| [y * dy]);
            let dot = dot as f32;
            for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = y * (dy - dot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, relative_error};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn matches_the_definition(rows in 1usize..40, dim in 1usize..250, seed in 0u64..1000) {
            let f = f64::from;
            let x: Vec<f32> = noise(seed, rows * dim).iter().map(|v| v * 10.0).collect();
            let dy = noise(seed + 1, rows * dim);
            let (mut want, mut want_dx) = (vec![], vec![]);
            for (x, dy) in x.chunks(dim).zip(dy.chunks(dim)) {
                let sum: f64 = x.iter().map(|&v| f(v).exp()).sum();
                let y: Vec<f64> = x.iter().map(|&v| f(v).exp() / sum).collect();
                let dot: f64 = y.iter().zip(dy).map(|(y, &d)| y * f(d)).sum();
                want_dx.extend(y.iter().zip(dy).map(|(y, &d)| y * (f(d) - dot)));
                want.extend(y);
            }
            for isa in Isa::available() {
                let y = softmax_on(isa, &x, dim);
                prop_assert!(relative_error(&y, &want, 0.1) < 2e-6);
                let dx = softmax_backward_on(isa, &y, &dy, dim);
                prop_assert!(dx.iter().zip(&want_dx).all(|(&a, b)| (f(a) - b).abs() < 1e-5));
            }
        }
    }

    #[test]
    fn masked_values_get_nothing() {
        assert_eq!(
            softmax(&[5.0, f32::NEG_INFINITY, 5.0, -200.0], 4),
            [0.5, 0.0, 0.5, 0.0]
        );
        assert!(softmax(&[0.0, f32::NAN], 2).iter().all(|v| v.is_nan()));
    }
}
