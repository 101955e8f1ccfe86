//! Overlapping windows into one label map, holding logits only for the slices that windows still reach, or all of them where
//! windows are to be exchanged later.

use rayon::prelude::*;

use super::band::Band;
use crate::model::kernels::windows::Between;

/// Running weighted sums of logits for a band of slices, turned into labels as soon as no window reaches them.
///
/// Memory is `classes * (window depth + 1) * height * width` floats, whatever the number of slices. Labels come out on a
/// grid of `output` voxels that begins at the same edge: logits are interpolated linearly between voxel centres first, so a model
/// that works on coarse voxels still gives smooth outlines.
pub struct Blend {
    classes: usize,
    /// Sums of logits on the network's grid.
    band: Band,
    output: [usize; 3],
    /// Output voxel size in network voxels, per axis.
    scale: [f64; 3],
    labels: Vec<u16>,
    /// Output slices done.
    done: usize,
}

impl Blend {
    /// A blend on `grid` `[z, y, x]` with labels for `output` `[z, y, x]`, whose voxels are `scale` network voxels long.
    pub fn new(classes: usize, grid: [usize; 3], output: [usize; 3], scale: [f64; 3]) -> Self {
        Self {
            classes,
            band: Band::new(classes, grid),
            output,
            scale,
            labels: vec![0; output.iter().product()],
            done: 0,
        }
    }

    /// Adds a window's logits `[classes, d, h, w]` at `start` (may reach over the grid's edge), weighted voxel by voxel.
    pub fn add(&mut self, start: [isize; 3], window: [usize; 3], logits: &[f32], weights: &[f32]) {
        self.band.add(start, window, logits, weights);
    }

    /// Adds the change of a window's logits to what was added before, in a blend of which nothing was forgotten.
    pub fn change(
        &mut self,
        start: [isize; 3],
        window: [usize; 3],
        difference: &[f32],
        weights: &[f32],
    ) {
        self.band.change(start, window, difference, weights);
    }

    /// No later window reaches slices below `z`: turns what is complete into labels and forgets it.
    pub fn finish_below(&mut self, z: usize) {
        let (grid_z, output_z) = (self.band.grid()[0], self.output[0]);
        while self.done < output_z {
            let (low, high, share) = between(self.done, self.scale[0], grid_z);
            if z < grid_z && high >= z {
                break;
            }
            self.label_slice(low, high, share);
            self.done += 1;
        }
        let needed = match self.done < output_z {
            true => between(self.done, self.scale[0], grid_z).0,
            false => grid_z,
        };
        self.band.forget_below(needed.min(z));
    }

    /// The labels, `[z, y, x]` of the output grid; voxels that no window covered are background.
    pub fn into_labels(mut self) -> Vec<u16> {
        self.finish_below(self.band.grid()[0]);
        self.labels
    }

    /// Labels anew the output slices that slices `from..to` of the network's grid take part in, in a blend of which nothing
    /// was forgotten.
    pub fn relabel(&mut self, from: usize, to: usize) {
        for z in 0..self.output[0] {
            let (low, high, share) = between(z, self.scale[0], self.band.grid()[0]);
            if high >= from && low < to {
                self.done = z;
                self.label_slice(low, high, share);
            }
        }
    }

    /// The labels so far.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// The probability of a class (softmax of the mean logits) for each voxel of the output grid, in a blend of which
    /// nothing was forgotten; 0 where no window covered.
    pub fn probability(&self, class: usize) -> Vec<f32> {
        let [_, out_h, out_w] = self.output;
        let mut found = vec![0.0; self.labels.len()];
        for (z, out) in found.chunks_exact_mut((out_h * out_w).max(1)).enumerate() {
            let (low, high, share) = between(z, self.scale[0], self.band.grid()[0]);
            let Some(rows) = self.rows(low, high, share) else {
                continue;
            };
            out.par_chunks_mut(out_w).enumerate().for_each(|(y, row)| {
                let (values, covered) = rows.at(y);
                for (x, p) in row.iter_mut().enumerate().filter(|(x, _)| covered[*x]) {
                    let logits = || values.iter().skip(x).step_by(out_w);
                    let most = logits().copied().fold(f32::MIN, f32::max);
                    let all: f32 = logits().map(|l| (l - most).exp()).sum();
                    *p = (values[class * out_w + x] - most).exp() / all;
                }
            });
        }
        found
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.band.bytes() + self.labels.len() * size_of::<u16>()
    }

    fn label_slice(&mut self, low: usize, high: usize, share: f32) {
        let [_, out_h, out_w] = self.output;
        let at = self.done * out_h * out_w;
        // Taken out, because the rows borrow the rest.
        let mut labels = std::mem::take(&mut self.labels);
        let out = &mut labels[at..][..out_h * out_w];
        if let Some(rows) = self.rows(low, high, share) {
            out.par_chunks_mut(out_w).enumerate().for_each(|(y, row)| {
                let (values, covered) = rows.at(y);
                let mut best = values[..out_w].to_vec();
                row.fill(0);
                for class in 1..rows.classes {
                    let values = &values[class * out_w..][..out_w];
                    for ((label, best), value) in row.iter_mut().zip(&mut best).zip(values) {
                        if *value > *best {
                            (*label, *best) = (class as u16, *value);
                        }
                    }
                }
                for (label, _) in row.iter_mut().zip(covered).filter(|(_, covered)| !covered) {
                    *label = 0;
                }
            });
        }
        self.labels = labels;
    }

    /// The output slice between two slices of the network's grid; none when no window came near (only air).
    fn rows(&self, low: usize, high: usize, share: f32) -> Option<Rows<'_>> {
        let [_, height, width] = self.band.grid();
        let slice = |z: usize| self.band.slice(z);
        Some(Rows {
            classes: self.classes,
            size: [height, width],
            out_w: self.output[2],
            scale: [self.scale[1], self.scale[2]],
            low: slice(low).or(slice(high))?,
            high: slice(high).or(slice(low))?,
            share,
        })
    }
}

/// Mean logits of one output slice, row by row.
struct Rows<'a> {
    classes: usize,
    /// `[y, x]` of the network's grid.
    size: [usize; 2],
    out_w: usize,
    scale: [f64; 2],
    /// Sums and weights of the two slices.
    low: (&'a [f32], &'a [f32]),
    high: (&'a [f32], &'a [f32]),
    /// Of the second slice.
    share: f32,
}

impl Rows<'_> {
    /// Mean logits `[class][x]` of output row `y`, and where there are any.
    fn at(&self, y: usize) -> (Vec<f32>, Vec<bool>) {
        let (classes, [height, width], share) = (self.classes, self.size, self.share);
        let plane = height * width;
        let (y0, y1, share_y) = between(y, self.scale[0], height);
        let corners = [
            (self.low, y0, (1.0 - share) * (1.0 - share_y)),
            (self.low, y1, (1.0 - share) * share_y),
            (self.high, y0, share * (1.0 - share_y)),
            (self.high, y1, share * share_y),
        ];
        // One row of every class, interpolated across slices and rows.
        let mut rows = vec![0f32; classes * width];
        let mut covered = vec![0f32; width];
        for ((sums, weights), y, part) in corners {
            if part == 0.0 {
                continue;
            }
            for x in 0..width {
                let weight = weights[y * width + x];
                if weight > 0.0 {
                    covered[x] += part;
                    for class in 0..classes {
                        rows[class * width + x] +=
                            part / weight * sums[class * plane + y * width + x];
                    }
                }
            }
        }
        let taps: Vec<_> = (0..self.out_w)
            .map(|x| between(x, self.scale[1], width))
            .collect();
        let values = rows.chunks_exact(width).flat_map(|row| {
            taps.iter()
                .map(move |&(x0, x1, share_x)| row[x0] * (1.0 - share_x) + row[x1] * share_x)
        });
        let there = taps
            .iter()
            .map(|&(x0, x1, _)| covered[x0] + covered[x1] > 0.0);
        (values.collect(), there.collect())
    }
}

/// The two voxels of an axis of `size` voxels between whose centres voxel `i` of an axis with voxels of `scale` such
/// voxels lies, and the share of the second. Both axes begin at the same edge.
pub fn between(i: usize, scale: f64, size: usize) -> Between {
    let position = ((i as f64 + 0.5) * scale - 0.5).clamp(0.0, (size - 1) as f64);
    let low = position as usize;
    (low, (low + 1).min(size - 1), (position - low as f64) as f32)
}

#[cfg(test)]
mod tests {
    use super::super::windows::{gaussian, starts};
    use super::*;
    use proptest::prelude::*;

    /// Logits that say the class of a voxel by its place.
    fn truth(z: usize, y: usize, x: usize) -> u16 {
        ((z / 3 + y / 4 + x / 5) % 3) as u16
    }

    fn run(grid: [usize; 3], window: [usize; 3], output: [usize; 3]) -> Vec<u16> {
        let weights = gaussian(window);
        let scale = [0, 1, 2].map(|axis| grid[axis] as f64 / output[axis] as f64);
        let mut blend = Blend::new(3, grid, output, scale);
        for z in starts(grid[0], window[0]) {
            blend.finish_below(z.max(0) as usize);
            for y in starts(grid[1], window[1]) {
                for x in starts(grid[2], window[2]) {
                    let mut logits = vec![0f32; 3 * weights.len()];
                    for (i, _) in weights.iter().enumerate() {
                        let at = [
                            i / (window[1] * window[2]),
                            i / window[2] % window[1],
                            i % window[2],
                        ];
                        let [gz, gy, gx] =
                            [at[0] as isize + z, at[1] as isize + y, at[2] as isize + x];
                        if gz >= 0 && gy >= 0 && gx >= 0 {
                            let class = truth(gz as usize, gy as usize, gx as usize);
                            logits[usize::from(class) * weights.len() + i] = 5.0;
                        }
                    }
                    blend.add([z, y, x], window, &logits, &weights);
                }
            }
        }
        blend.into_labels()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn windows_that_agree_give_what_they_say(z in 1usize..20, y in 1usize..20, x in 1usize..20, half in 1usize..5) {
            let labels = run([z, y, x], [half * 2, 8, 6], [z, y, x]);
            for (i, label) in labels.into_iter().enumerate() {
                prop_assert_eq!(label, truth(i / (y * x), i / x % y, i % x));
            }
        }
    }

    #[test]
    fn labels_grow_with_the_grid() {
        let labels = run([12, 12, 12], [8, 8, 8], [24, 24, 24]);
        let right = labels
            .iter()
            .enumerate()
            .filter(|&(i, &label)| label == truth(i / 576 / 2, i / 24 % 24 / 2, i % 24 / 2))
            .count();
        assert!(right as f64 / labels.len() as f64 > 0.8, "{right}");
    }

    #[test]
    fn exchanged_windows_give_what_a_new_blend_gives() {
        let (grid, output, window) = ([10, 12, 14], [20, 12, 7], [4, 6, 6]);
        let scale = [0, 1, 2].map(|axis| grid[axis] as f64 / output[axis] as f64);
        let weights = gaussian(window);
        let logits = |n: usize| -> Vec<f32> {
            let mut rng = crate::rng::Rng::new(n as u64);
            (0..3 * weights.len())
                .map(|_| rng.normal() as f32)
                .collect()
        };
        let places: Vec<[isize; 3]> = starts(grid[0], window[0])
            .into_iter()
            .flat_map(|z| starts(grid[1], window[1]).into_iter().map(move |y| (z, y)))
            .flat_map(|(z, y)| {
                starts(grid[2], window[2])
                    .into_iter()
                    .map(move |x| [z, y, x])
            })
            .collect();
        let blend = |of: &dyn Fn(usize) -> usize| {
            let mut blend = Blend::new(3, grid, output, scale);
            for (n, place) in places.iter().enumerate() {
                blend.add(*place, window, &logits(of(n)), &weights);
            }
            blend.relabel(0, grid[0]);
            blend
        };
        // Windows 7 and 8 answer differently from now on.
        let new = |n: usize| if n == 7 || n == 8 { n + 1000 } else { n };
        let (mut changed, fresh) = (blend(&|n| n), blend(&new));
        assert!(changed.labels() != fresh.labels());
        for n in [7, 8] {
            let (old, new) = (logits(n), logits(new(n)));
            let difference: Vec<f32> = new.iter().zip(old).map(|(new, old)| new - old).collect();
            changed.change(places[n], window, &difference, &weights);
            let z = places[n][0].max(0) as usize;
            changed.relabel(z, z + window[0]);
        }
        assert!(changed.labels() == fresh.labels());
        let mut total = vec![0.0; fresh.labels().len()];
        for class in 0..3 {
            let (new, old) = (fresh.probability(class), changed.probability(class));
            for (n, (new, old)) in new.into_iter().zip(old).enumerate() {
                assert!((new - old).abs() < 1e-4);
                assert!(usize::from(fresh.labels()[n]) != class || new > 1.0 / 3.0);
                total[n] += new;
            }
        }
        assert!(total.into_iter().all(|t| (t - 1.0).abs() < 1e-5));
    }

    #[test]
    fn what_no_window_covers_is_background() {
        let blend = Blend::new(2, [4, 4, 4], [8, 8, 8], [0.5; 3]);
        assert!(blend.into_labels().iter().all(|&l| l == 0));
    }
}
