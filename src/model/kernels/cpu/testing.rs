//! Helpers for the kernels' tests.

/// `len` reproducible values in [-1, 1).
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The largest difference, divided by the largest magnitude of the reference or by `usual`, whichever is larger. `usual` is what the magnitude is
/// by chance: sums of many terms may cancel, and their rounding does not shrink with them.
pub fn relative_error(got: &[f32], want: &[f64], usual: f64) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(usual, |m, v| m.max(v.abs()));
    let differences = got
        .iter()
        .zip(want)
        .map(|(&g, &w)| (f64::from(g) - w).abs());
    differences.fold(
        0.0,
        |m, d| if d.is_nan() { f64::INFINITY } else { d.max(m) },
    ) / scale
}
