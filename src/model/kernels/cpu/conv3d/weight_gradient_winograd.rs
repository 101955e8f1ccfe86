//! The gradient of the weights by Winograd's method: input and output gradient transformed, one matrix product over positions per component.

use super::super::micro::transpose;
use super::super::simd::{ranges, with_scratch};
use super::load::{Window, load_padded, of_channel};
use super::plan::component_len;
use super::weight_gradient::Job;
use super::winograd::Winograd;
use std::ops::Range;

/// Channels that are transformed before they are transposed together.
const GROUP: usize = 4;

impl Job<'_> {
    /// Adds the products of one tile to `sums`, or sets it to them if this is the `first`: `[block][component][row][tap x, channel]`.
    #[allow(clippy::too_many_arguments)]
    pub fn winograd_tile(
        &self,
        winograd: Winograd,
        sample: usize,
        window: &Window,
        chunk: Range<usize>,
        blocks: Range<usize>,
        first: bool,
        sums: &mut [f32],
    ) {
        let (micro, shape) = (self.micro, self.shape);
        let [tile_z, tile_y] = winograd.outputs;
        let (tiles_z, tiles_y) = (
            window.z.len().div_ceil(tile_z),
            window.y.len().div_ceil(tile_y),
        );
        let tiles = tiles_z * tiles_y;
        let whole = Window {
            z: window.z.start..window.z.start + tiles_z * tile_z,
            y: window.y.start..window.y.start + tiles_y * tile_y,
            ..window.clone()
        };
        let (row, pad) = (whole.row(), whole.pad[2]);
        let (channels, components) = (chunk.len(), winograd.components());
        let component = component_len(shape, micro.lanes, tiles);
        let positions = tiles * shape.width;
        let zeros = [0.0f32; 16];
        let start = if first {
            zeros.as_ptr()
        } else {
            std::ptr::null()
        };
        let offsets: Vec<u32> = (0..tiles)
            .flat_map(|tile| (0..shape.width).map(move |x| ((tile * row + x) * channels) as u32))
            .collect();
        let columns = channels * shape.kernel[2];
        let stage = shape.width.next_multiple_of(micro.lanes) + micro.lanes;
        let lens = [
            whole.channel() + 2 * micro.lanes,
            GROUP * components * component,
            components * component * channels + self.ldc,
            micro.rows * components * stage,
            components * positions * micro.rows,
        ];
        with_scratch(lens, |[padded, few, last, staged, gradient]| {
            for group in ranges(channels, GROUP) {
                for (channel, to) in group
                    .clone()
                    .zip(few.chunks_exact_mut(components * component))
                {
                    let channel = chunk.start + channel;
                    load_padded(
                        self.isa,
                        self.sources.volume(sample, channel),
                        &whole,
                        of_channel(self.prologue, channel),
                        padded,
                    );
                    for tile in 0..tiles {
                        let from = &padded[tile / tiles_y * tile_z * whole.plane()
                            + tile % tiles_y * tile_y * row..];
                        // SAFETY: the last row read starts at most `row` before the end of the channel (its padding included), and two vectors
                        // follow it. `component` has room for the columns and one more vector; what a tile writes too far, the next overwrites.
                        unsafe {
                            winograd.transform_input(
                                from.as_ptr(),
                                whole.plane(),
                                row,
                                to[tile * row..].as_mut_ptr(),
                                component,
                                row + pad,
                            )
                        };
                    }
                }
                for i in 0..components {
                    let to = &mut last[i * component * channels + group.start..];
                    transpose(
                        self.isa,
                        &few[i * component..],
                        components * component,
                        group.len(),
                        tiles * row + pad,
                        to,
                        channels,
                    );
                }
            }
            let block_len = sums.len() / blocks.len();
            for (block, sums) in blocks.zip(sums.chunks_exact_mut(block_len)) {
                self.load_components(winograd, sample, window, block, stage, staged, gradient);
                for (i, sums) in sums.chunks_exact_mut(micro.rows * self.ldc).enumerate() {
                    let (gradient, from) = (
                        &gradient[i * positions * micro.rows..],
                        &last[i * component * channels..],
                    );
                    // SAFETY: gradient: `rows` floats per position. Input: a position's columns end, rounded up, at most `ldc` behind the
                    // component, and as many floats follow the last. Sums: `rows` x `ldc`, `ldc` being whole vectors. Start: no tile has more
                    // than 16 rows.
                    unsafe {
                        micro.run(
                            columns,
                            gradient.as_ptr(),
                            from.as_ptr(),
                            &offsets,
                            sums.as_mut_ptr(),
                            self.ldc,
                            start,
                        )
                    };
                }
            }
        });
    }

    /// The transformed gradient of a block of output channels, `[component][position][row]`.
    #[allow(clippy::too_many_arguments)]
    fn load_components(
        &self,
        winograd: Winograd,
        sample: usize,
        window: &Window,
        block: usize,
        stage: usize,
        staged: &mut [f32],
        to: &mut [f32],
    ) {
        let (shape, rows) = (self.shape, self.micro.rows);
        let [tile_z, tile_y] = winograd.outputs;
        let components = winograd.components();
        let first = block * rows;
        let present = rows.min(shape.out_channels - first);
        if present < rows {
            to.fill(0.0);
        }
        let zeros = vec![0.0f32; shape.width];
        let positions =
            window.z.len().div_ceil(tile_z) * window.y.len().div_ceil(tile_y) * shape.width;
        let mut from = Vec::with_capacity(tile_z * tile_y);
        let mut at = 0;
        for z in window.z.clone().step_by(tile_z) {
            for y in window.y.clone().step_by(tile_y) {
                for (channel, staged) in
                    (first..first + present).zip(staged.chunks_exact_mut(components * stage))
                {
                    from.clear();
                    for z in z..z + tile_z {
                        for y in y..y + tile_y {
                            from.push(if z < window.z.end && y < window.y.end {
                                let row = ((sample * shape.out_channels + channel) * shape.depth
                                    + z)
                                    * shape.height
                                    + y;
                                self.dy[row * shape.width..][..shape.width].as_ptr()
                            } else {
                                zeros.as_ptr()
                            });
                        }
                    }
                    // SAFETY: the rows have `width` floats; a stage has a vector more than that, rounded up.
                    unsafe {
                        winograd.transform_gradient(&from, staged.as_mut_ptr(), stage, shape.width)
                    };
                }
                for i in 0..components {
                    transpose(
                        self.isa,
                        &staged[i * stage..],
                        components * stage,
                        present,
                        shape.width,
                        &mut to[(i * positions + at) * rows..],
                        rows,
                    );
                }
                at += shape.width;
            }
        }
    }
}
