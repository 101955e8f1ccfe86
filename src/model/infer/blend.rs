//! Overlapping windows into one label map, holding logits only for the slices that windows still reach.

use rayon::prelude::*;

use super::band::Band;

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

    fn label_slice(&mut self, low: usize, high: usize, share: f32) {
        let [_, height, width] = self.band.grid();
        let [_, out_h, out_w] = self.output;
        let [_, scale_y, scale_x] = self.scale;
        let plane = height * width;
        let slice = |z: usize| self.band.slice(z);
        // No window came near (only air): the slice stays background.
        let (Some(low), Some(high)) = (slice(low).or(slice(high)), slice(high).or(slice(low)))
        else {
            return;
        };
        let classes = self.classes;
        let out = &mut self.labels[self.done * out_h * out_w..][..out_h * out_w];
        out.par_chunks_mut(out_w).enumerate().for_each(|(y, row)| {
            let (y0, y1, share_y) = between(y, scale_y, height);
            let corners = [
                (low, y0, (1.0 - share) * (1.0 - share_y)),
                (low, y1, (1.0 - share) * share_y),
                (high, y0, share * (1.0 - share_y)),
                (high, y1, share * share_y),
            ];
            // One row of every class, interpolated across slices and rows, of mean logits.
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
            for (x, label) in row.iter_mut().enumerate() {
                let (x0, x1, share_x) = between(x, scale_x, width);
                if covered[x0] + covered[x1] == 0.0 {
                    continue;
                }
                let value = |class: usize| {
                    let row = &rows[class * width..];
                    row[x0] * (1.0 - share_x) + row[x1] * share_x
                };
                let mut best = (0, value(0));
                for class in 1..classes {
                    let candidate = value(class);
                    if candidate > best.1 {
                        best = (class, candidate);
                    }
                }
                *label = best.0 as u16;
            }
        });
    }
}

/// The two voxels of an axis of `size` voxels between whose centres voxel `i` of an axis with voxels of `scale` such
/// voxels lies, and the share of the second. Both axes begin at the same edge.
fn between(i: usize, scale: f64, size: usize) -> (usize, usize, f32) {
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
    fn what_no_window_covers_is_background() {
        let blend = Blend::new(2, [4, 4, 4], [8, 8, 8], [0.5; 3]);
        assert!(blend.into_labels().iter().all(|&l| l == 0));
    }
}
