//! Changes of the values of a training patch. Values lie around [-1, 1], arrays are `[z, y, x]`; with the neutral strength
//! each of these changes nothing.

use crate::rng::Rng;

/// Multiplies by `factor`; 1 is neutral.
pub fn contrast(input: &mut [f32], factor: f32) {
    input.iter_mut().for_each(|v| *v *= factor);
}

/// Adds `shift`; 0 is neutral.
pub fn brightness(input: &mut [f32], shift: f32) {
    input.iter_mut().for_each(|v| *v += shift);
}

/// Raises values, clamped to [-1, 1] and seen as 0 to 1, to `exponent`; 1 is neutral.
pub fn gamma(input: &mut [f32], exponent: f32) {
    for v in input {
        let unit = ((*v + 1.0) * 0.5).clamp(0.0, 1.0);
        *v = unit.powf(exponent) * 2.0 - 1.0;
    }
}

/// Adds independent normal noise of standard deviation `sigma`; 0 is neutral.
pub fn noise(input: &mut [f32], sigma: f64, rng: &mut Rng) {
    if sigma > 0.0 {
        input
            .iter_mut()
            .for_each(|v| *v += (rng.normal() * sigma) as f32);
    }
}

/// Gaussian blur of standard deviations `sigma` in voxels per axis; edges repeated; 0 is neutral.
pub fn blur(input: &mut [f32], size: [usize; 3], sigma: [f64; 3]) {
    for axis in 0..3 {
        if sigma[axis] <= 0.0 || size[axis] < 2 {
            continue;
        }
        let reach = (3.0 * sigma[axis]).ceil() as isize;
        let mut kernel: Vec<f32> = (-reach..=reach)
            .map(|n| (-0.5 * (n as f64 / sigma[axis]).powi(2)).exp() as f32)
            .collect();
        let total: f32 = kernel.iter().sum();
        kernel.iter_mut().for_each(|weight| *weight /= total);
        along(input, size, axis, |from, to| {
            let last = from.len() as isize - 1;
            for (n, value) in to.iter_mut().enumerate() {
                let at = |k: usize| from[(n as isize + k as isize - reach).clamp(0, last) as usize];
                *value = kernel.iter().enumerate().map(|(k, w)| w * at(k)).sum();
            }
        });
    }
}

/// As if the scanner had made voxels `factors` times as long per axis: values of the nearest coarse voxel's centre,
/// interpolated linearly between the centres; 1 is neutral.
pub fn low_resolution(input: &mut [f32], size: [usize; 3], factors: [f64; 3]) {
    for axis in 0..3 {
        let coarse = ((size[axis] as f64 / factors[axis]).round() as usize).max(1);
        if coarse >= size[axis] {
            continue;
        }
        let scale = size[axis] as f64 / coarse as f64;
        along(input, size, axis, |from, to| {
            let centre = |n: usize| from[(((n as f64 + 0.5) * scale) as usize).min(from.len() - 1)];
            for (n, value) in to.iter_mut().enumerate() {
                let position = ((n as f64 + 0.5) / scale - 0.5).clamp(0.0, (coarse - 1) as f64);
                let low = position as usize;
                let share = (position - low as f64) as f32;
                let (a, b) = (centre(low), centre((low + 1).min(coarse - 1)));
                *value = a + (b - a) * share;
            }
        });
    }
}

/// Replaces every line along an axis by what `change(old, new)` makes of it.
fn along(input: &mut [f32], size: [usize; 3], axis: usize, change: impl Fn(&[f32], &mut [f32])) {
    let length = size[axis];
    let stride: usize = size[axis + 1..].iter().product();
    let (mut from, mut to) = (vec![0.0; length], vec![0.0; length]);
    for block in input.chunks_exact_mut(length * stride) {
        for offset in 0..stride {
            let line = || (offset..).step_by(stride);
            from.iter_mut()
                .zip(line())
                .for_each(|(v, at)| *v = block[at]);
            change(&from, &mut to);
            to.iter().zip(line()).for_each(|(v, at)| block[at] = *v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    const SIZE: [usize; 3] = [3, 4, 6];

    fn patch(seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..72).map(|_| rng.range(-1.0, 1.0) as f32).collect()
    }

    proptest! {
        #[test]
        fn neutral_strengths_change_nothing(seed in any::<u64>()) {
            let before = patch(seed);
            let mut after = before.clone();
            contrast(&mut after, 1.0);
            brightness(&mut after, 0.0);
            noise(&mut after, 0.0, &mut Rng::new(seed));
            blur(&mut after, SIZE, [0.0; 3]);
            low_resolution(&mut after, SIZE, [1.0; 3]);
            prop_assert_eq!(&before, &after);
            gamma(&mut after, 1.0);
            for (a, b) in before.iter().zip(&after) {
                prop_assert!((a - b).abs() < 1e-6);
            }
        }

        #[test]
        fn no_strength_leaves_the_range_far_behind(
            seed in any::<u64>(), sigma in 0.0..2.0f64, factor in 1.0..3.0f64, exponent in 0.5..2.0f32,
        ) {
            let mut input = patch(seed);
            gamma(&mut input, exponent);
            blur(&mut input, SIZE, [sigma; 3]);
            low_resolution(&mut input, SIZE, [factor; 3]);
            prop_assert!(input.iter().all(|v| v.abs() <= 1.0 + 1e-5));
        }
    }

    #[test]
    fn blurring_keeps_constants_and_smooths_along_its_axis_only() {
        let mut constant = vec![0.25; 72];
        blur(&mut constant, SIZE, [0.5, 1.0, 2.0]);
        assert!(constant.iter().all(|v| (v - 0.25).abs() < 1e-6));
        let mut point = vec![0.0; 72];
        point[24 + 6 + 3] = 1.0;
        blur(&mut point, SIZE, [0.0, 0.0, 1.0]);
        assert!(point[33] < 0.5 && point[32] > 0.2 && (point[32] - point[34]).abs() < 1e-6);
        assert_eq!(point.iter().filter(|v| **v != 0.0).count(), 6);
    }

    #[test]
    fn low_resolution_keeps_slow_changes() {
        let mut ramp: Vec<f32> = (0..12).map(|x| x as f32 / 12.0).collect();
        low_resolution(&mut ramp, [1, 1, 12], [1.0, 1.0, 2.0]);
        for (x, v) in ramp.iter().enumerate() {
            assert!((v - x as f32 / 12.0).abs() < 0.12, "{x} {v}");
        }
        assert!(ramp.windows(2).all(|pair| pair[0] <= pair[1]));
    }
}
