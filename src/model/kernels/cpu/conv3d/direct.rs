//! The convolution by its definition: padded copies of a few rows of all channels in cache, then register tiles over output positions.

use super::super::simd::{ranges, with_scratch};
use super::Conv3dShape;
use super::forward::Job;
use super::load::Window;
use std::ops::Range;

/// Positions of a task as the inner kernel sees them: runs of `len` columns, each starting at `from` in the padded copy (or the gathered matrix).
pub struct Columns {
    pub runs: usize,
    pub len: usize,
    /// Distance between runs in the input and in the sums.
    pub from_step: usize,
    pub to_step: usize,
}

impl Job<'_> {
    /// Computes the rows `z`, `y` of one sample for the output channels of `blocks`.
    pub fn direct_tile(
        &self,
        sample: usize,
        z: Range<usize>,
        y: Range<usize>,
        blocks: Range<usize>,
    ) {
        let (micro, shape) = (self.weights.micro, self.shape);
        let window = Window {
            z: z.clone(),
            y: y.clone(),
            pad: shape.pad(),
            size: [shape.depth, shape.height, shape.width],
        };
        let taps = shape.taps();
        let tile_columns = micro.columns();
        let positions = z.len() * y.len() * shape.width;
        // Room after the end for the columns by which whole vectors go too far.
        let slack = tile_columns + micro.lanes + window.pad[2];
        let columns = if self.plan.gather {
            let runs = positions.div_ceil(tile_columns);
            Columns {
                runs,
                len: tile_columns,
                from_step: 0,
                to_step: tile_columns,
            }
        } else {
            let len = (y.len() * window.row()).next_multiple_of(micro.lanes);
            Columns {
                runs: z.len(),
                len,
                from_step: window.plane(),
                to_step: len,
            }
        };
        let ldc = columns.runs * columns.to_step;
        let slots = self.weights.slots();
        let channels = self.plan.channels.min(slots);
        // A whole-depth sum needs no memory beyond one block of rows.
        let kept_blocks = if channels == slots { 1 } else { blocks.len() };
        let gathered = if self.plan.gather {
            channels * taps * ldc
        } else {
            0
        };
        let lens = [
            channels * window.channel() + slack,
            gathered,
            kept_blocks * micro.rows * ldc,
            if self.weights.pairs {
                window.channel()
            } else {
                0
            },
        ];
        let offsets = self.offsets(&window, channels);
        with_scratch(lens, |[padded, matrix, sums, spare]| {
            for chunk in ranges(slots, channels) {
                for (slot, to) in chunk.clone().zip(padded.chunks_exact_mut(window.channel())) {
                    self.load(sample, slot, &window, spare, to);
                }
                if self.plan.gather {
                    gather(padded, &window, shape, chunk.len(), tile_columns, matrix);
                }
                let steps = chunk.len() * taps;
                for block in blocks.clone() {
                    let weights = self.weights.block(block, 0, chunk.start);
                    let start = if chunk.start == 0 {
                        self.start[block * micro.rows..].as_ptr()
                    } else {
                        std::ptr::null()
                    };
                    let sums = &mut sums[(block - blocks.start) % kept_blocks * micro.rows * ldc..]
                        [..micro.rows * ldc];
                    assert!(weights.len() >= steps * micro.rows);
                    for run in 0..columns.runs {
                        let from = if self.plan.gather {
                            &matrix[run * steps * tile_columns..]
                        } else {
                            &padded[run * columns.from_step..]
                        };
                        let len = if self.plan.gather {
                            (positions - run * tile_columns).min(columns.len)
                        } else {
                            columns.len
                        };
                        // SAFETY: weights: asserted. Input, gathered: a panel holds `steps` rows of `tile_columns`. Input, padded: a column is at
                        // most `len` = the rows of a plane, rounded up to a vector, so with the largest offset (last channel, last tap) it ends
                        // less than a vector behind that channel's last float, and `slack` floats follow. Sums: `rows` x `ldc`, and a run's
                        // columns rounded to vectors end within `to_step`. Start: a block has `rows` values.
                        unsafe {
                            micro.run(
                                len,
                                weights.as_ptr(),
                                from.as_ptr(),
                                &offsets[..steps],
                                sums.as_mut_ptr().add(run * columns.to_step),
                                ldc,
                                start,
                            )
                        };
                    }
                    if chunk.end == slots {
                        self.write(sample, &z, &y, block, sums, ldc, &columns, window.row());
                    }
                }
            }
        });
    }

    /// Where each (channel, tap) is read, from the first position.
    fn offsets(&self, window: &Window, channels: usize) -> Vec<u32> {
        let [kernel_z, kernel_y, kernel_x] = self.shape.kernel;
        let mut offsets = Vec::with_capacity(channels * self.shape.taps());
        for channel in 0..channels {
            for z in 0..kernel_z {
                for y in 0..kernel_y {
                    for x in 0..kernel_x {
                        let offset = if self.plan.gather {
                            offsets.len() * self.weights.micro.columns()
                        } else {
                            channel * window.channel() + z * window.plane() + y * window.row() + x
                        };
                        offsets.push(offset as u32);
                    }
                }
            }
        }
        offsets
    }

    /// Copies the sums of a block to the output, without the columns that are padding.
    #[allow(clippy::too_many_arguments)]
    pub fn write(
        &self,
        sample: usize,
        z: &Range<usize>,
        y: &Range<usize>,
        block: usize,
        sums: &[f32],
        ldc: usize,
        columns: &Columns,
        row: usize,
    ) {
        let [height, width] = [self.shape.height, self.shape.width];
        let first = block * self.weights.block_rows();
        for (channel, sums) in (first..self.shape.out_channels).zip(sums.chunks_exact(ldc)) {
            for (i, z) in z.clone().enumerate() {
                // SAFETY: a task owns its rows of its channels, and this is the only slice it holds.
                let to = unsafe {
                    self.outputs.voxels(
                        sample,
                        channel,
                        (z * height + y.start) * width,
                        y.len() * width,
                    )
                };
                if self.plan.gather {
                    to.copy_from_slice(&sums[i * to.len()..][..to.len()]);
                } else {
                    for (to, from) in to
                        .chunks_exact_mut(width)
                        .zip(sums[i * columns.to_step..].chunks(row))
                    {
                        to.copy_from_slice(&from[..width]);
                    }
                }
                self.finish(sample, channel, (z * height + y.start) * width, to);
            }
        }
    }
}

/// Copies the taps of all positions out of the padded channels: `[panel of positions][channel, tap][position in the panel]`.
fn gather(
    padded: &[f32],
    window: &Window,
    shape: Conv3dShape,
    channels: usize,
    panel: usize,
    matrix: &mut [f32],
) {
    let [kernel_z, kernel_y, kernel_x] = shape.kernel;
    let taps = shape.taps();
    // Runs of positions that are contiguous in the padded copy and lie in one panel: where from, panel, place in it, length.
    let mut runs = Vec::new();
    let mut position = 0;
    for z in 0..window.z.len() {
        for y in 0..window.y.len() {
            let mut x = 0;
            while x < shape.width {
                let len = (panel - position % panel).min(shape.width - x);
                runs.push((
                    z * window.plane() + y * window.row() + x,
                    position / panel,
                    position % panel,
                    len,
                ));
                x += len;
                position += len;
            }
        }
    }
    let steps = channels * taps;
    for (channel, padded) in padded
        .chunks_exact(window.channel())
        .take(channels)
        .enumerate()
    {
        let mut step = channel * taps;
        for z in 0..kernel_z {
            for y in 0..kernel_y {
                for x in 0..kernel_x {
                    let padded = &padded[z * window.plane() + y * window.row() + x..];
                    for &(from, panel_index, place, len) in &runs {
                        let to = &mut matrix[(panel_index * steps + step) * panel + place..][..len];
                        let from = &padded[from..][..len];
                        if len == 8 {
                            // A fixed length becomes two moves instead of a call.
                            to[..8].copy_from_slice(&from[..8]);
                        } else {
                            to.copy_from_slice(from);
                        }
                    }
                    step += 1;
                }
            }
        }
    }
}
