//! The convolution by Winograd's method: transformed rows of all channels in cache, one matrix product per component, transform of the results.

use super::super::simd::{ranges, with_scratch};
use super::forward::Job;
use super::load::{Window, pack_pairs};
use super::plan::component_len;
use super::winograd::Winograd;
use std::ops::Range;

impl Job<'_> {
    /// Computes the rows `z`, `y` of one sample for the output channels of `blocks`.
    pub fn winograd_tile(
        &self,
        winograd: Winograd,
        sample: usize,
        z: Range<usize>,
        y: Range<usize>,
        blocks: Range<usize>,
    ) {
        let (micro, shape) = (self.weights.micro, self.shape);
        let [tile_z, tile_y] = winograd.outputs;
        let (tiles_z, tiles_y) = (z.len().div_ceil(tile_z), y.len().div_ceil(tile_y));
        let window = Window {
            z: z.start..z.start + tiles_z * tile_z,
            y: y.start..y.start + tiles_y * tile_y,
            pad: shape.pad(),
            size: [shape.depth, shape.height, shape.width],
        };
        let row = window.row();
        let columns = tiles_z * tiles_y * row;
        let components = winograd.components();
        let component = component_len(shape, micro.lanes, tiles_z * tiles_y);
        let ldc = columns.next_multiple_of(micro.lanes) + micro.lanes;
        let slots = self.weights.slots();
        let channels = self.plan.channels.min(slots);
        // A sum over all channels at once needs no memory beyond one block of rows.
        let kept_blocks = if channels == slots { 1 } else { blocks.len() };
        let block_len = components * micro.rows * ldc;
        let kernel_x = shape.kernel[2];
        let offsets: Vec<u32> = (0..channels)
            .flat_map(|c| (0..kernel_x).map(move |x| (c * components * component + x) as u32))
            .collect();
        let lens = [
            window.channel() + 2 * micro.lanes,
            channels * components * component,
            kept_blocks * block_len,
            shape.width,
            if self.weights.pairs {
                components * component
            } else {
                0
            },
        ];
        let transform = |padded: &[f32], to: &mut [f32]| {
            for tile in 0..tiles_z * tiles_y {
                let from = &padded
                    [tile / tiles_y * tile_z * window.plane() + tile % tiles_y * tile_y * row..];
                // SAFETY: the last row read starts at most `row` before the end of the channel (its padding included), and two vectors
                // follow it. `component` has room for the columns and one more vector; what a tile writes too far, the next overwrites.
                unsafe {
                    winograd.transform_input(
                        from.as_ptr(),
                        window.plane(),
                        row,
                        to[tile * row..].as_mut_ptr(),
                        component,
                        row + window.pad[2],
                    )
                };
            }
        };
        with_scratch(lens, |[padded, inputs, sums, unused_row, spare]| {
            for chunk in ranges(slots, channels) {
                let inputs_of = inputs.chunks_exact_mut(components * component);
                for (slot, to) in chunk.clone().zip(inputs_of) {
                    if !self.weights.pairs {
                        self.load_channel(sample, slot, &window, padded);
                        transform(padded, to);
                        continue;
                    }
                    self.load_channel(sample, 2 * slot, &window, padded);
                    transform(padded, spare);
                    if 2 * slot + 1 < shape.in_channels {
                        self.load_channel(sample, 2 * slot + 1, &window, padded);
                        transform(padded, to);
                    } else {
                        to.fill(0.0);
                    }
                    pack_pairs(self.weights.isa, &spare[..to.len()], to);
                }
                let steps = chunk.len() * kernel_x;
                for block in blocks.clone() {
                    let sums =
                        &mut sums[(block - blocks.start) % kept_blocks * block_len..][..block_len];
                    for (i, sums) in sums.chunks_exact_mut(micro.rows * ldc).enumerate() {
                        let weights = self.weights.block(block, i, chunk.start);
                        assert!(weights.len() >= steps * micro.rows);
                        let zeros = [0.0f32; 16];
                        let start = if chunk.start == 0 {
                            zeros.as_ptr()
                        } else {
                            std::ptr::null()
                        };
                        // SAFETY: weights: asserted. Input: whole vectors of columns and the taps beside them end within the component. Sums:
                        // `rows` x `ldc`, `ldc` being whole vectors. Start: no block has more than 16 rows.
                        unsafe {
                            micro.run(
                                columns,
                                weights.as_ptr(),
                                inputs[i * component..].as_ptr(),
                                &offsets[..steps],
                                sums.as_mut_ptr(),
                                ldc,
                                start,
                            )
                        };
                    }
                    if chunk.end == slots {
                        self.write_winograd(winograd, sample, &z, &y, block, sums, ldc, unused_row);
                    }
                }
            }
        });
    }

    /// Transforms the sums of a block to the output.
    #[allow(clippy::too_many_arguments)]
    fn write_winograd(
        &self,
        winograd: Winograd,
        sample: usize,
        z: &Range<usize>,
        y: &Range<usize>,
        block: usize,
        sums: &[f32],
        ldc: usize,
        unused_row: &mut [f32],
    ) {
        let [height, width] = [self.shape.height, self.shape.width];
        let rows = self.weights.micro.rows;
        let [tile_z, tile_y] = winograd.outputs;
        let tiles_y = y.len().div_ceil(tile_y);
        let row = width + self.shape.kernel[2] / 2;
        let first = block * rows;
        let mut to = Vec::with_capacity(tile_z * tile_y);
        let epilogue = self.epilogue.gelu || self.epilogue.residual.is_some();
        for (i, channel) in (first..self.shape.out_channels.min(first + rows)).enumerate() {
            for tile in 0..z.len().div_ceil(tile_z) * tiles_y {
                to.clear();
                for z_row in (z.start + tile / tiles_y * tile_z..).take(tile_z) {
                    for y_row in (y.start + tile % tiles_y * tile_y..).take(tile_y) {
                        to.push(if z_row < z.end && y_row < y.end {
                            // SAFETY: a task owns its rows of its channels; the slice ends here, the pointer is to a row of its own.
                            unsafe {
                                self.outputs.voxels(
                                    sample,
                                    channel,
                                    (z_row * height + y_row) * width,
                                    width,
                                )
                            }
                            .as_mut_ptr()
                        } else {
                            unused_row.as_mut_ptr()
                        });
                    }
                }
                let from = &sums[i * ldc + tile * row..];
                // SAFETY: the last columns read end within `ldc`, which has a vector to spare; the rows have `width` floats.
                unsafe {
                    winograd.transform_output(
                        from.as_ptr(),
                        rows * ldc,
                        self.start[channel],
                        &to,
                        width,
                    )
                };
                if !epilogue {
                    continue;
                }
                for z_row in (z.start + tile / tiles_y * tile_z..z.end).take(tile_z) {
                    for y_row in (y.start + tile % tiles_y * tile_y..y.end).take(tile_y) {
                        let from = (z_row * height + y_row) * width;
                        // SAFETY: as above; the pointers are not used any more.
                        let row = unsafe { self.outputs.voxels(sample, channel, from, width) };
                        self.finish(sample, channel, from, row);
                    }
                }
            }
        }
    }
}
