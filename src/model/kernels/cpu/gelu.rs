//! GELU with the error function (not the approximation by tanh).

use super::Isa;
use super::math::erfc_abs;
use super::simd::{Output, mul_add, per_isa};

const CHUNK: usize = 16 * 1024;

/// `x * (1 + erf(x / sqrt(2))) / 2`, any shape.
pub fn gelu(x: &[f32]) -> Vec<f32> {
    gelu_on(Isa::best(), x)
}

fn gelu_on(isa: Isa, x: &[f32]) -> Vec<f32> {
    // SAFETY: `forward` writes all of `y`.
    unsafe {
        Output::in_chunks(x.len(), CHUNK, |i, y| {
            forward(isa, &x[i * CHUNK..][..y.len()], y)
        })
    }
}

/// The gradient of the input, from the input and the gradient of the result.
pub fn gelu_backward(x: &[f32], dy: &[f32]) -> Vec<f32> {
    gelu_backward_on(Isa::best(), x, dy)
}

fn gelu_backward_on(isa: Isa, x: &[f32], dy: &[f32]) -> Vec<f32> {
    assert_eq!(x.len(), dy.len(), "gelu: length of the gradient");
    // SAFETY: `backward` writes all of `dx`.
    unsafe {
        Output::in_chunks(x.len(), CHUNK, |i, dx| {
            backward(
                isa,
                &x[i * CHUNK..][..dx.len()],
                &dy[i * CHUNK..][..dx.len()],
                dx,
            )
        })
    }
}

/// The normal distribution function at x, and `e^(-x^2 / 2)`. From the complement on the negative side, so that no digits cancel there.
#[inline(always)]
fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    let (complement, density) = erfc_abs::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2);
    let tail = 0.5 * complement;
    (if x > 0.0 { 1.0 - tail } else { tail }, density)
}

per_isa! {
    /// GELU of values in place.
    pub fn gelu_in_place(values: &mut [f32]) {
        for value in values {
            *value *= normal::<FMA>(*value).0;
        }
    }
}

per_isa! {
    fn forward(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * normal::<FMA>(x).0;
        }
    }
}

per_isa! {
    fn backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
        const INV_SQRT_2PI: f32 = 0.398_942_3;
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            let (distribution, density) = normal::<FMA>(x);
            *dx = dy * mul_add::<FMA>(x * INV_SQRT_2PI, density, distribution);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;

    /// By the trapezoidal rule on the density, from far left, in f64.
    #[test]
    fn matches_the_definition() {
        let step = 1e-4;
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (mut xs, mut want, mut slopes) = (vec![], vec![], vec![]);
        let mut distribution = 0.0;
        for i in -100_000i32..100_000 {
            let x = f64::from(i) * step;
            distribution += 0.5 * step * (density(x - step) + density(x));
            if i % 100 == 3 {
                xs.push(x as f32);
                want.push(x * distribution);
                slopes.push(distribution + x * density(x));
            }
        }
        let dy = noise(1, xs.len());
        for isa in Isa::available() {
            for (got, want) in gelu_on(isa, &xs).iter().zip(&want) {
                assert!(
                    (f64::from(*got) - want).abs() < 1e-6 * want.abs().max(1.0),
                    "{isa:?}: {got}, not {want}"
                );
            }
            for ((got, slope), dy) in gelu_backward_on(isa, &xs, &dy).iter().zip(&slopes).zip(&dy) {
                assert!(
                    (f64::from(*got) - slope * f64::from(*dy)).abs() < 1e-6,
                    "{isa:?}: {got}"
                );
            }
        }
    }

    #[test]
    fn far_values_and_other_lengths() {
        assert!(gelu(&[-1e30, -50.0]).iter().all(|y| y.abs() < 1e-30));
        assert_eq!(gelu(&[0.0, 50.0, 1e30]), [0.0, 50.0, 1e30]);
        assert!(gelu(&[f32::NAN])[0].is_nan());
        assert_eq!(
            gelu(&vec![1.5; CHUNK + 7]),
            vec![gelu(&[1.5])[0]; CHUNK + 7]
        );
    }
}
