//! The gradient of the weights: the inner kernel with (tap along x, input channel) as columns and output positions as steps, for each tap along
//! z and y. It needs the input with channels last and the output's gradient with a block of channels last, both made per tile in cache.

use super::super::micro::{Kernel, transpose};
use super::super::simd::{Isa, Output, per_isa, ranges, with_scratch};
use super::load::{Sources, Window, load_padded, of_channel};
use super::packed::pays;
use super::plan::component_len;
use super::winograd::Winograd;
use super::{Conv3dShape, Prologue};
use rayon::prelude::*;
use std::ops::Range;

/// Floats of the channels-last copy of the input that one task holds at a time.
const WORKING_SET: usize = 128 * 1024;
/// Limits of the partial sums over space: count, and floats of all together.
const MAX_PARTS: usize = 32;
const MAX_PARTS_FLOATS: usize = 16 << 20;
/// Below so many voxels the longer sums cost more than the saved products.
const WINOGRAD_VOXELS: usize = 4096;

/// The gradients of weights `[out_channels, in_channels, kz, ky, kx]` and bias `[out_channels]`.
///
/// `inputs`, `prologue`: those of the forward convolution. `dy`: `[batch, out_channels, depth, height, width]`.
pub fn conv3d_backward_weights(
    inputs: &[(&[f32], usize)],
    dy: &[f32],
    prologue: Option<Prologue<'_>>,
    shape: Conv3dShape,
) -> (Vec<f32>, Vec<f32>) {
    backward_weights_on(
        Isa::best(),
        pays(shape, WINOGRAD_VOXELS),
        inputs,
        dy,
        prologue,
        shape,
    )
}

pub(super) fn backward_weights_on(
    isa: Isa,
    fast: bool,
    inputs: &[(&[f32], usize)],
    dy: &[f32],
    prologue: Option<Prologue<'_>>,
    shape: Conv3dShape,
) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(
        dy.len(),
        shape.batch * shape.out_channels * shape.voxels(),
        "conv3d: length of the output's gradient"
    );
    if let Some(p) = prologue {
        assert_eq!(
            (p.scale.len(), p.shift.len()),
            (shape.in_channels, shape.in_channels),
            "conv3d: length of the prologue"
        );
    }
    let db = (0..shape.out_channels)
        .into_par_iter()
        .map(|channel| bias_gradient(isa, dy, shape, channel))
        .collect();
    if shape.weights() == 0 || shape.batch * shape.voxels() == 0 {
        return (vec![0.0; shape.weights()], db);
    }
    let winograd = Winograd::for_kernel(isa, shape.kernel).filter(|_| fast);
    let job = Job::new(isa, winograd, inputs, dy, prologue, shape);
    (job.run(), db)
}

fn bias_gradient(isa: Isa, dy: &[f32], shape: Conv3dShape, channel: usize) -> f32 {
    let voxels = shape.voxels();
    (0..shape.batch)
        .map(|sample| {
            sum(
                isa,
                &dy[(sample * shape.out_channels + channel) * voxels..][..voxels],
            )
        })
        .sum::<f64>() as f32
}

per_isa! {
    fn sum(values: &[f32]) -> f64 {
        let mut total = 0.0;
        for chunk in values.chunks(4096) {
            let mut lanes = [0.0f32; 32];
            let (whole, rest) = chunk.as_chunks::<32>();
            for values in whole {
                for (lane, value) in lanes.iter_mut().zip(values) {
                    *lane += value;
                }
            }
            total += lanes.iter().chain(rest).map(|&v| f64::from(v)).sum::<f64>();
        }
        total
    }
}

pub struct Job<'a> {
    pub isa: Isa,
    pub micro: Kernel,
    winograd: Option<Winograd>,
    pub sources: Sources<'a>,
    pub dy: &'a [f32],
    pub prologue: Option<Prologue<'a>>,
    pub shape: Conv3dShape,
    /// Input channels taken at a time.
    channels: usize,
    tiles: Vec<(usize, Window)>,
    /// Floats per row of the partial sums.
    pub ldc: usize,
}

impl<'a> Job<'a> {
    fn new(
        isa: Isa,
        winograd: Option<Winograd>,
        inputs: &[(&'a [f32], usize)],
        dy: &'a [f32],
        prologue: Option<Prologue<'a>>,
        shape: Conv3dShape,
    ) -> Self {
        let micro = Kernel::for_rows(isa, shape.out_channels);
        let (channels, planes, rows) = match winograd {
            None => {
                let channels = channels_at_a_time(shape.in_channels, 64);
                let (planes, rows) = tile(shape, channels);
                (channels, planes, rows)
            }
            Some(winograd) => {
                let one_row = winograd.components() * component_len(shape, micro.lanes, 1);
                let channels =
                    channels_at_a_time(shape.in_channels, (WORKING_SET / one_row).clamp(16, 64));
                let (planes, rows) = winograd_tile(shape, winograd, micro.lanes, channels);
                (channels, planes, rows)
            }
        };
        let size = [shape.depth, shape.height, shape.width];
        let mut tiles = Vec::new();
        for sample in 0..shape.batch {
            for z in ranges(shape.depth, planes) {
                for y in ranges(shape.height, rows) {
                    tiles.push((
                        sample,
                        Window {
                            z: z.clone(),
                            y,
                            pad: shape.pad(),
                            size,
                        },
                    ));
                }
            }
        }
        let ldc = (channels * shape.kernel[2]).next_multiple_of(micro.lanes);
        Self {
            isa,
            micro,
            winograd,
            sources: Sources::new(inputs, shape),
            dy,
            prologue,
            shape,
            channels,
            tiles,
            ldc,
        }
    }

    fn run(&self) -> Vec<f32> {
        let shape = self.shape;
        let blocks = shape.out_channels.div_ceil(self.micro.rows);
        let chunks: Vec<_> = ranges(shape.in_channels, self.channels).collect();
        let block_len = self.matrices() * self.micro.rows * self.ldc;
        let part_len = chunks.len() * blocks * block_len;
        let parts = self
            .tiles
            .len()
            .min(MAX_PARTS)
            .min(MAX_PARTS_FLOATS / part_len)
            .max(1);
        let part_tiles: Vec<_> = (0..parts)
            .map(|part| self.tiles.len() * part / parts..self.tiles.len() * (part + 1) / parts)
            .collect();
        let sums = Output::new(parts * part_len);

        let together =
            (parts * chunks.len() * blocks / (4 * rayon::current_num_threads())).clamp(1, blocks);
        let mut tasks = Vec::new();
        for part in 0..parts {
            for chunk in 0..chunks.len() {
                for blocks in ranges(blocks, together) {
                    tasks.push((part, chunk, blocks));
                }
            }
        }
        tasks.into_par_iter().for_each(|(part, chunk, of_blocks)| {
            // SAFETY: each task has its own part, chunk and blocks.
            let sums = unsafe {
                sums.slice(
                    part * part_len + (chunk * blocks + of_blocks.start) * block_len,
                    of_blocks.len() * block_len,
                )
            };
            for (i, (sample, window)) in self.tiles[part_tiles[part].clone()].iter().enumerate() {
                let (chunk, blocks) = (chunks[chunk].clone(), of_blocks.clone());
                match self.winograd {
                    None => self.tile(*sample, window, chunk, blocks, i == 0, sums),
                    Some(winograd) => {
                        self.winograd_tile(winograd, *sample, window, chunk, blocks, i == 0, sums)
                    }
                }
            }
        });
        // SAFETY: the tasks cover all parts, chunks and blocks, and the first tile of each writes every element.
        let sums = unsafe { sums.finish() };
        self.collect(&sums, blocks, block_len, part_len)
    }

    /// Matrices `[row][tap x, channel]` per block: one per tap along z and y, or per component.
    fn matrices(&self) -> usize {
        self.winograd
            .map_or(self.shape.kernel[0] * self.shape.kernel[1], |w| {
                w.components()
            })
    }

    /// What a matrix contributes to the tap `[z, y]`.
    fn coefficient(&self, matrix: usize, tap: [usize; 2]) -> f32 {
        match self.winograd {
            Some(winograd) => winograd.coefficient(matrix, tap),
            None if matrix == tap[0] * self.shape.kernel[1] + tap[1] => 1.0,
            None => 0.0,
        }
    }

    /// Adds the products of one tile to `sums`, or sets it to them if this is the `first`: `[block][tap z, y][row][tap x, channel]`.
    fn tile(
        &self,
        sample: usize,
        window: &Window,
        chunk: Range<usize>,
        blocks: Range<usize>,
        first: bool,
        sums: &mut [f32],
    ) {
        let (micro, shape) = (self.micro, self.shape);
        let [kernel_z, kernel_y, kernel_x] = shape.kernel;
        let (channels, len) = (chunk.len(), window.channel());
        let positions = window.z.len() * window.y.len() * shape.width;
        let zeros = [0.0f32; 16];
        let start = if first {
            zeros.as_ptr()
        } else {
            std::ptr::null()
        };
        let mut offsets = Vec::with_capacity(positions);
        for z in 0..window.z.len() {
            for y in 0..window.y.len() {
                let row = (z * window.plane() + y * window.row()) * channels;
                offsets.extend((0..shape.width).map(|x| (row + x * channels) as u32));
            }
        }
        let columns = channels * kernel_x;
        let slack = kernel_x * channels + self.ldc;
        with_scratch(
            [
                16.min(channels) * len,
                len * channels + slack,
                positions * micro.rows,
            ],
            |[few, last, gradient]| {
                for group in ranges(channels, 16) {
                    for (channel, to) in group.clone().zip(few.chunks_exact_mut(len)) {
                        let channel = chunk.start + channel;
                        load_padded(
                            self.isa,
                            self.sources.volume(sample, channel),
                            window,
                            of_channel(self.prologue, channel),
                            to,
                        );
                    }
                    transpose(
                        self.isa,
                        few,
                        len,
                        group.len(),
                        len,
                        &mut last[group.start..],
                        channels,
                    );
                }
                let block_len = sums.len() / blocks.len();
                for (block, sums) in blocks.zip(sums.chunks_exact_mut(block_len)) {
                    self.load_gradient(sample, window, block, gradient);
                    for (tap, sums) in sums.chunks_exact_mut(micro.rows * self.ldc).enumerate() {
                        let (z, y) = (tap / kernel_y, tap % kernel_y);
                        debug_assert!(z < kernel_z);
                        let from = &last[(z * window.plane() + y * window.row()) * channels..];
                        // SAFETY: gradient: `rows` floats per position. Input: the last position's columns end at most a row's padding and a vector
                        // behind the last float of the copy, and `slack` floats follow. Sums: `rows` x `ldc`, `ldc` being whole vectors.
                        // Start: no tile has more than 16 rows.
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
            },
        );
    }

    /// The gradient of a block of output channels at the positions of a tile, `[position][row]`.
    fn load_gradient(&self, sample: usize, window: &Window, block: usize, to: &mut [f32]) {
        let (shape, rows) = (self.shape, self.micro.rows);
        let voxels = shape.voxels();
        let first = block * rows;
        let present = rows.min(shape.out_channels - first);
        if present < rows {
            to.fill(0.0);
        }
        let plane = window.y.len() * shape.width;
        for (z, to) in window.z.clone().zip(to.chunks_exact_mut(plane * rows)) {
            let from = &self.dy[(sample * shape.out_channels + first) * voxels
                + (z * shape.height + window.y.start) * shape.width..];
            transpose(self.isa, from, voxels, present, plane, to, rows);
        }
    }

    /// Adds the parts up, in their order, into `[out][in][kz][ky][kx]`.
    fn collect(&self, sums: &[f32], blocks: usize, block_len: usize, part_len: usize) -> Vec<f32> {
        let shape = self.shape;
        let [kernel_z, kernel_y, kernel_x] = shape.kernel;
        let taps = shape.taps();
        let write = |out: usize, dw: &mut [f32]| {
            let (block, row) = (out / self.micro.rows, out % self.micro.rows);
            let mut totals = vec![0.0f32; self.matrices() * self.ldc];
            let mut tap = vec![0.0f32; self.ldc];
            for (index, chunk) in ranges(shape.in_channels, self.channels).enumerate() {
                for (matrix, total) in totals.chunks_exact_mut(self.ldc).enumerate() {
                    let at = (index * blocks + block) * block_len
                        + (matrix * self.micro.rows + row) * self.ldc;
                    total.fill(0.0);
                    for part in sums.chunks_exact(part_len) {
                        total
                            .iter_mut()
                            .zip(&part[at..])
                            .for_each(|(total, part)| *total += part);
                    }
                }
                for (z, y) in (0..kernel_z).flat_map(|z| (0..kernel_y).map(move |y| (z, y))) {
                    tap.fill(0.0);
                    for (matrix, total) in totals.chunks_exact(self.ldc).enumerate() {
                        let coefficient = self.coefficient(matrix, [z, y]);
                        if coefficient != 0.0 {
                            tap.iter_mut()
                                .zip(total)
                                .for_each(|(tap, total)| *tap += coefficient * total);
                        }
                    }
                    for (x, tap) in tap.chunks_exact(chunk.len()).take(kernel_x).enumerate() {
                        for (channel, tap) in chunk.clone().zip(tap) {
                            dw[channel * taps + (z * kernel_y + y) * kernel_x + x] = *tap;
                        }
                    }
                }
            }
        };
        // SAFETY: `write` writes every tap of every input channel of its output channel.
        unsafe { Output::in_chunks(shape.weights(), shape.in_channels * taps, write) }
    }
}

/// The planes and rows of a tile: as large as the working set allows, with the least padding. It depends on the shape alone, because it decides
/// the order of summation.
fn tile(shape: Conv3dShape, channels: usize) -> (usize, usize) {
    let [pad_z, pad_y, pad_x] = shape.pad();
    let mut best = (1, 1);
    let mut best_ratio = f64::INFINITY;
    for planes in 1..=shape.depth.min(8) {
        for rows in 1..=shape.height {
            let padded = (planes + 2 * pad_z) * (rows + 2 * pad_y) * (shape.width + pad_x);
            let tiles = shape.depth.div_ceil(planes) * shape.height.div_ceil(rows);
            let ratio = (padded * tiles) as f64 / shape.voxels() as f64;
            if padded * channels <= WORKING_SET && ratio < best_ratio {
                (best, best_ratio) = ((planes, rows), ratio);
            }
        }
    }
    best
}

/// As [`tile`], for Winograd's method.
fn winograd_tile(
    shape: Conv3dShape,
    winograd: Winograd,
    lanes: usize,
    channels: usize,
) -> (usize, usize) {
    let [tile_z, tile_y] = winograd.outputs;
    let [pad_z, pad_y, _] = shape.pad();
    let mut best = (tile_z, tile_y);
    let mut best_ratio = f64::INFINITY;
    for tiles_z in 1..=shape.depth.div_ceil(tile_z).min(8) {
        for tiles_y in 1..=shape.height.div_ceil(tile_y) {
            let (planes, rows) = (tiles_z * tile_z, tiles_y * tile_y);
            let floats =
                winograd.components() * component_len(shape, lanes, tiles_z * tiles_y) * channels;
            let padded = (planes + 2 * pad_z)
                * (rows + 2 * pad_y)
                * shape.depth.div_ceil(planes)
                * shape.height.div_ceil(rows);
            let ratio = padded as f64 / (shape.depth * shape.height) as f64;
            if floats <= WORKING_SET && ratio < best_ratio {
                (best, best_ratio) = ((planes, rows), ratio);
            }
        }
    }
    best
}

/// Cuts channels into about equal parts of at most `most`, in steps of 8.
fn channels_at_a_time(channels: usize, most: usize) -> usize {
    let parts = channels.div_ceil(most).max(1);
    channels.div_ceil(parts).next_multiple_of(8).min(channels)
}
