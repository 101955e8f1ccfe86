//! Where the sliding window stands, and how much each of its voxels counts.

/// Window starts along one axis of `size` voxels for windows of `window`, overlapping by at least half, without
/// duplicates and evenly spread. An axis shorter than the window has one start, centred: it may be negative.
pub fn starts(size: usize, window: usize) -> Vec<isize> {
    if size <= window {
        return vec![-(((window - size) / 2) as isize)];
    }
    let stride = (window / 2).max(1);
    let gaps = (size - window).div_ceil(stride);
    (0..=gaps)
        .map(|i| ((size - window) * i / gaps) as isize)
        .collect()
}

/// Window starts along one axis of `size` voxels for windows of `window` that cover it with as few of them as possible,
/// evenly spread. An axis shorter than the window has one start, centred: it may be negative.
pub fn tiles(size: usize, window: usize) -> Vec<isize> {
    let gaps = size.div_ceil(window) - 1;
    if gaps == 0 {
        return starts(size, window);
    }
    (0..=gaps)
        .map(|i| ((size - window) * i / gaps) as isize)
        .collect()
}

/// Gaussian weight of each voxel of a window, centred, sigma an eighth of each side, largest 1 and never below 1e-3 so
/// that every covered voxel has a weight. `[depth, height, width]`.
pub fn gaussian(window: [usize; 3]) -> Vec<f32> {
    let axis = |size: usize| -> Vec<f64> {
        let (centre, sigma) = ((size as f64 - 1.0) / 2.0, size as f64 / 8.0);
        (0..size)
            .map(|i| (-0.5 * ((i as f64 - centre) / sigma).powi(2)).exp())
            .collect()
    };
    let [d, h, w] = window.map(axis);
    let mut weights = Vec::with_capacity(d.len() * h.len() * w.len());
    for z in &d {
        for y in &h {
            weights.extend(w.iter().map(|x| (z * y * x).max(1e-3) as f32));
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_window_stands_twice() {
        // 256 voxels, window 128, half overlap: 3 windows, not the 4 of a clamped range
        assert_eq!(starts(256, 128), [0, 64, 128]);
        assert_eq!(starts(128, 128), [0]);
        assert_eq!(starts(100, 128), [-14]);
    }

    proptest! {
        #[test]
        fn every_voxel_is_covered(size in 1usize..400, half in 1usize..80) {
            let window = half * 2;
            let starts = starts(size, window);
            prop_assert!(starts.windows(2).all(|s| s[0] < s[1] && s[1] - s[0] <= half as isize));
            prop_assert!(starts[0] <= 0);
            prop_assert!(starts[starts.len() - 1] + window as isize >= size as isize);
            let tiles = tiles(size, window);
            prop_assert!(tiles.windows(2).all(|s| s[0] < s[1] && s[1] - s[0] <= window as isize));
            prop_assert!(tiles[0] <= 0 && tiles.len() == size.div_ceil(window));
            prop_assert!(tiles[tiles.len() - 1] + window as isize >= size as isize);
        }
    }

    #[test]
    fn weights_are_largest_in_the_middle() {
        let weights = gaussian([4, 4, 4]);
        assert_eq!(weights.len(), 64);
        let middle = weights[(4 + 1) * 4 + 1];
        assert!(weights.iter().all(|&w| w > 0.0 && w <= middle));
        assert_eq!(weights[0], weights[63]);
    }
}
