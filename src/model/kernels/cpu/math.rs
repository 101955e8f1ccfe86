//! Elementary functions written so that a loop over them becomes vector code.

use super::simd::mul_add;

/// `e^x` within 2 units in the last place for -87 <= x <= 88; below that range the value at -87 (about 1e-38), above it the value at 88. NaN gives NaN.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const TO_INTEGER: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has so few bits that its product with the exponent is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Written so that NaN stays.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, TO_INTEGER);
    let exponent = shifted - TO_INTEGER;
    let r = mul_add::<FMA>(exponent, -LN2_LOW, mul_add::<FMA>(exponent, -LN2_HIGH, x));
    // Taylor's series; |r| <= ln 2 / 2, so the first term left out is below 6e-9.
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = mul_add::<FMA>(p, r, coefficient);
    }
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// `(erfc(|u|), e^(-u^2))`. The first within 2e-7 absolute: formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions.
#[inline(always)]
pub(super) fn erfc_abs<const FMA: bool>(u: f32) -> (f32, f32) {
    let density = exp::<FMA>(-u * u);
    let t = 1.0 / mul_add::<FMA>(u.abs(), 0.327_591_1, 1.0);
    let mut p = 1.061_405_4;
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = mul_add::<FMA>(p, t, coefficient);
    }
    (p * t * density, density)
}

/// Sums of `N` terms per element over `0..len`: in `f32` per lane over a few thousand elements, in `f64` beyond, in an order that does not depend
/// on the instruction set's width. `terms(i)` must be cheap and free of branches, so that it becomes vector code.
#[inline(always)]
pub(super) fn sums<const N: usize>(len: usize, terms: impl Fn(usize) -> [f32; N]) -> [f64; N] {
    const LANES: usize = 32;
    const STRETCH: usize = 4096;
    let mut total = [0.0f64; N];
    let mut from = 0;
    while from < len {
        let to = len.min(from + STRETCH);
        let mut lanes = [[0.0f32; LANES]; N];
        let whole = (to - from) / LANES;
        for block in 0..whole {
            let at = from + block * LANES;
            for lane in 0..LANES {
                let terms = terms(at + lane);
                for n in 0..N {
                    lanes[n][lane] += terms[n];
                }
            }
        }
        for i in from + whole * LANES..to {
            let terms = terms(i);
            for n in 0..N {
                lanes[n][i % LANES] += terms[n];
            }
        }
        for n in 0..N {
            total[n] += lanes[n].iter().map(|&v| f64::from(v)).sum::<f64>();
        }
        from = to;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential() {
        for i in -86_999..88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                assert!((f64::from(got) - want).abs() <= 2.5e-7 * want, "exp({x}) = {got}, not {want}");
            }
        }
        assert!(exp::<true>(-1e30) < 1e-37 && exp::<true>(f32::NEG_INFINITY) < 1e-37);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn error_function() {
        // Taylor's series in f64 for small arguments; beyond 3.9 the function is below 4e-8.
        let erf = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        };
        for i in 0..3900 {
            let x = i as f32 * 1e-3;
            let want = 1.0 - erf(f64::from(x));
            for got in [erfc_abs::<true>(-x).0, erfc_abs::<false>(x).0] {
                assert!((f64::from(got) - want).abs() <= 5e-7, "erfc({x}) = {got}, not {want}");
            }
        }
        assert!(erfc_abs::<true>(5.0).0.abs() < 1e-7 && erfc_abs::<true>(1e20).0 == 0.0);
    }

    #[test]
    fn sums_of_any_length() {
        for len in [0, 1, 31, 32, 33, 4095, 4096, 4097, 10_000] {
            let [count, total] = sums(len, |i| [1.0, (i % 7) as f32]);
            assert_eq!((count, total), (len as f64, (0..len).map(|i| (i % 7) as f64).sum()));
        }
    }
}
