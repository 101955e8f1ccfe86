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
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
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

/// Sums of `N` terms over the elements of `K` slices of one length: in `f32` per lane over a few thousand elements, in `f64` beyond, in an order
/// that does not depend on the instruction set's width. `terms` must be free of branches, so that it becomes vector code.
#[inline(always)]
pub(super) fn sums<const K: usize, const N: usize>(
    slices: [&[f32]; K],
    terms: impl Fn([f32; K]) -> [f32; N],
) -> [f64; N] {
    const LANES: usize = 32;
    const FEW: usize = 8;
    const STRETCH: usize = 4096;
    let len = slices.iter().map(|s| s.len()).min().unwrap_or(0);
    let mut total = [0.0f64; N];
    for from in (0..len).step_by(STRETCH) {
        let stretch = slices.map(|s| &s[from..len.min(from + STRETCH)]);
        let mut lanes = [[0.0f32; LANES]; N];
        let rest = add_blocks::<K, N, LANES, LANES>(stretch, &terms, &mut lanes);
        let rest = add_blocks::<K, N, FEW, LANES>(rest, &terms, &mut lanes);
        add_blocks::<K, N, 1, LANES>(rest, &terms, &mut lanes);
        for (total, lanes) in total.iter_mut().zip(lanes) {
            let few: [f32; FEW] = std::array::from_fn(|i| {
                (lanes[i] + lanes[i + FEW]) + (lanes[i + 2 * FEW] + lanes[i + 3 * FEW])
            });
            *total += few.iter().map(|&v| f64::from(v)).sum::<f64>();
        }
    }
    total
}

/// Adds the terms of all whole blocks of `B` elements to the first lanes; returns what is left of the slices.
#[inline(always)]
fn add_blocks<'a, const K: usize, const N: usize, const B: usize, const LANES: usize>(
    slices: [&'a [f32]; K],
    terms: &impl Fn([f32; K]) -> [f32; N],
    lanes: &mut [[f32; LANES]; N],
) -> [&'a [f32]; K] {
    let blocks = slices.map(|s| s.as_chunks::<B>().0);
    let count = blocks.iter().map(|b| b.len()).min().unwrap_or(0);
    for i in 0..count {
        let block = blocks.map(|b| &b[i]);
        for lane in 0..B {
            for (lanes, term) in lanes.iter_mut().zip(terms(block.map(|b| b[lane]))) {
                lanes[lane] += term;
            }
        }
    }
    slices.map(|s| &s[count * B..])
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
                assert!(
                    (f64::from(got) - want).abs() <= 2.5e-7 * want,
                    "exp({x}) = {got}, not {want}"
                );
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
                assert!(
                    (f64::from(got) - want).abs() <= 5e-7,
                    "erfc({x}) = {got}, not {want}"
                );
            }
        }
        assert!(erfc_abs::<true>(5.0).0.abs() < 1e-7 && erfc_abs::<true>(1e20).0 == 0.0);
    }

    #[test]
    fn sums_of_any_length() {
        for len in [0, 1, 31, 32, 33, 4095, 4096, 4097, 10_000] {
            let values: Vec<f32> = (0..len).map(|i| (i % 7) as f32).collect();
            let [count, total] = sums([&values], |[v]| [1.0, v]);
            assert_eq!(
                (count, total),
                (len as f64, (0..len).map(|i| (i % 7) as f64).sum())
            );
        }
    }
}
