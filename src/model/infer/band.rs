//! Weighted sums of overlapping windows, held only for the slices that windows still reach.

use std::collections::VecDeque;

use rayon::prelude::*;

/// Running sums of `channels` values per voxel over a band of slices.
///
/// Memory is `(channels + 1) * (window depth + 1) * height * width` floats, whatever the number of slices.
pub struct Band {
    channels: usize,
    /// `[z, y, x]` of the whole grid.
    grid: [usize; 3],
    /// First slice that is held.
    first: usize,
    /// `[slice][channel][y][x]` sums, in slice order from `first`.
    sums: VecDeque<Vec<f32>>,
    /// `[slice][y][x]` weights.
    weights: VecDeque<Vec<f32>>,
}

impl Band {
    /// An empty band on `grid` `[z, y, x]`.
    pub fn new(channels: usize, grid: [usize; 3]) -> Self {
        Self {
            channels,
            grid,
            first: 0,
            sums: VecDeque::new(),
            weights: VecDeque::new(),
        }
    }

    /// `[z, y, x]` of the whole grid.
    pub fn grid(&self) -> [usize; 3] {
        self.grid
    }

    /// Adds a window's values `[channels, d, h, w]` at `start` (may reach over the grid's edge), weighted voxel by voxel.
    pub fn add(&mut self, start: [isize; 3], window: [usize; 3], values: &[f32], weights: &[f32]) {
        self.accumulate(start, window, values, weights, true);
    }

    /// Adds the change of a window's values to what was added before; the weights stay.
    pub fn change(
        &mut self,
        start: [isize; 3],
        window: [usize; 3],
        difference: &[f32],
        weights: &[f32],
    ) {
        self.accumulate(start, window, difference, weights, false);
    }

    fn accumulate(
        &mut self,
        start: [isize; 3],
        window: [usize; 3],
        values: &[f32],
        weights: &[f32],
        counts: bool,
    ) {
        let [_, height, width] = self.grid;
        let plane = height * width;
        let inside = |axis: usize| {
            let from = (-start[axis]).max(0) as usize;
            let to =
                (self.grid[axis] as isize - start[axis]).clamp(0, window[axis] as isize) as usize;
            from..to.max(from)
        };
        let (rows_z, rows_y, cols) = (inside(0), inside(1), inside(2));
        let last = (start[0] + rows_z.end as isize) as usize;
        while self.first + self.sums.len() < last {
            self.sums.push_back(vec![0.0; self.channels * plane]);
            self.weights.push_back(vec![0.0; plane]);
        }
        let (first, channels) = (self.first, self.channels);
        let [_, window_h, window_w] = window;
        let slices = self
            .sums
            .make_contiguous()
            .par_iter_mut()
            .zip(self.weights.make_contiguous());
        slices.enumerate().for_each(|(i, (sums, totals))| {
            let z = (first + i) as isize - start[0];
            if z < rows_z.start as isize || z >= rows_z.end as isize {
                return;
            }
            let z = z as usize;
            for y in rows_y.clone() {
                let row = (z * window_h + y) * window_w;
                let weight = &weights[row + cols.start..row + cols.end];
                let at = (start[1] + y as isize) as usize * width
                    + (start[2] + cols.start as isize) as usize;
                if counts {
                    for (total, w) in totals[at..].iter_mut().zip(weight) {
                        *total += w;
                    }
                }
                for channel in 0..channels {
                    let row = ((channel * window[0] + z) * window_h + y) * window_w;
                    let value = &values[row + cols.start..row + cols.end];
                    let sums = &mut sums[channel * plane + at..];
                    for ((sum, v), w) in sums.iter_mut().zip(value).zip(weight) {
                        *sum += v * w;
                    }
                }
            }
        });
    }

    /// The sums `[channel][y][x]` and weights `[y][x]` of a slice; none when no window came near it, or when it was
    /// forgotten.
    pub fn slice(&self, z: usize) -> Option<(&[f32], &[f32])> {
        let i = z.checked_sub(self.first)?;
        Some((self.sums.get(i)?, self.weights.get(i)?))
    }

    /// Forgets the slices below `z`.
    pub fn forget_below(&mut self, z: usize) {
        while self.first < z {
            self.sums.pop_front();
            self.weights.pop_front();
            self.first += 1;
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let slices = self.sums.iter().chain(&self.weights);
        slices.map(Vec::len).sum::<usize>() * size_of::<f32>()
    }
}
