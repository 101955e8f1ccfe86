//! The convolution by its definition on matrix units: as [`super::direct`], with whole groups of channels per instruction. Columns are output positions;
//! a step is a tap and a group of channels, whose rows lie at one distance in the padded copy, which is what the units read.

use super::super::amx::{STRIDE, Tiles};
use super::super::simd::{ranges, with_scratch};
use super::direct::Columns;
use super::forward::Job;
use super::load::Window;
use std::ops::Range;

impl Job<'_> {
    /// Computes the rows `z`, `y` of one sample for the output channels of `blocks`.
    pub fn amx_tile(
        &self,
        tiles: Tiles,
        sample: usize,
        z: Range<usize>,
        y: Range<usize>,
        blocks: Range<usize>,
    ) {
        let shape = self.shape;
        let window = Window {
            z: z.clone(),
            y: y.clone(),
            pad: shape.pad(),
            size: [shape.depth, shape.height, shape.width],
        };
        let (taps, slots) = (shape.taps(), self.weights.slots());
        let len = (y.len() * window.row()).next_multiple_of(STRIDE);
        let columns = Columns {
            runs: z.len(),
            len,
            from_step: window.plane(),
            to_step: len,
        };
        let ldc = columns.runs * columns.to_step;
        let channels = self.plan.channels;
        let kept_blocks = if channels >= slots { 1 } else { blocks.len() };
        let (rows, channel) = (tiles.block_rows(), window.channel());
        let lens = [
            // Room after the end for the columns by which whole strides go too far.
            channels.min(slots).next_multiple_of(tiles.depth) * channel + STRIDE + window.pad[2],
            kept_blocks * rows * ldc,
            channel,
        ];
        let offsets = self.step_offsets(tiles, &window, channels.min(slots));
        with_scratch(lens, |[padded, sums, spare]| {
            for chunk in ranges(slots, channels) {
                let groups = chunk.len().div_ceil(tiles.depth);
                let whole = groups * tiles.depth;
                for (i, to) in padded.chunks_exact_mut(channel).take(whole).enumerate() {
                    if i < chunk.len() {
                        self.load(sample, chunk.start + i, &window, spare, to);
                    } else {
                        // Multiplied by weights that are zero, which only a number undoes.
                        to.fill(0.0);
                    }
                }
                // What lies behind the last channel is read into columns that nobody looks at.
                for block in blocks.clone() {
                    let weights = self.weights.block(block, 0, chunk.start);
                    assert!(weights.len() >= groups * taps * tiles.depth * rows);
                    let sums = &mut sums[(block - blocks.start) % kept_blocks * rows * ldc..]
                        [..rows * ldc];
                    if chunk.start == 0 {
                        let start = &self.start[block * rows..][..rows];
                        for (sums, &start) in sums.chunks_exact_mut(ldc).zip(start) {
                            sums.fill(start);
                        }
                    }
                    for run in 0..columns.runs {
                        // SAFETY: weights: asserted. Input: a column is at most `len`, the rows of a plane rounded up to a stride, so with the
                        // largest offset (last group, last tap) and its last slot it ends less than a stride behind that channel's last
                        // float, and a stride follows. Sums: `rows` x `ldc`, and a run's columns end within `to_step`, a whole stride.
                        unsafe {
                            tiles.run(
                                columns.len,
                                weights.as_ptr(),
                                padded[run * columns.from_step..].as_ptr(),
                                &offsets[..groups * taps],
                                channel,
                                sums.as_mut_ptr().add(run * columns.to_step),
                                ldc,
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

    /// Where the first slot of each (group of slots, tap) is read, from the first position.
    fn step_offsets(&self, tiles: Tiles, window: &Window, slots: usize) -> Vec<u32> {
        let [kernel_z, kernel_y, kernel_x] = self.shape.kernel;
        let mut offsets = Vec::with_capacity(slots.div_ceil(tiles.depth) * self.shape.taps());
        for group in 0..slots.div_ceil(tiles.depth) {
            for z in 0..kernel_z {
                for y in 0..kernel_y {
                    for x in 0..kernel_x {
                        let tap = z * window.plane() + y * window.row() + x;
                        offsets.push((group * tiles.depth * window.channel() + tap) as u32);
                    }
                }
            }
        }
        offsets
    }
}
