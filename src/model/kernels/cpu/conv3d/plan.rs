//! How a convolution is cut into tasks.

use super::super::micro::Kernel;
use super::Conv3dShape;
use super::winograd::Winograd;
#[cfg(target_arch = "x86_64")]
use crate::model::kernels::cpu::amx::{COLUMNS, STRIDE, Tiles};

/// Floats of the padded copy (or gathered matrix) that one task holds at a time: with the weights of a block it stays in a second-level cache
/// of 512 KiB and up.
const WORKING_SET: usize = 96 * 1024;

/// The same where there are matrix units: such processors have second-level caches of 2 MiB.
#[cfg(target_arch = "x86_64")]
const TILES_WORKING_SET: usize = 96 * 1024;

/// The cut of a convolution. It decides speed alone, never a result: every output is summed over (channel, tap) in that order in any case.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Planes and rows of output per task.
    pub planes: usize,
    pub rows: usize,
    /// Input channels that are loaded at a time.
    pub channels: usize,
    /// Whether the taps are gathered into a matrix without the padding. Narrow volumes gain from it: their padded rows are half padding.
    pub gather: bool,
    /// Parts into which the output channels are cut, so that small volumes give enough tasks.
    pub groups: usize,
}

impl Plan {
    // Each picks the cut with the smallest estimated time. The estimates count processor cycles roughly: one vector multiplication is 1.

    pub fn winograd(shape: Conv3dShape, micro: Kernel, winograd: Winograd, threads: usize) -> Self {
        let [tile_z, tile_y] = winograd.outputs;
        let mut best = Self {
            planes: tile_z,
            rows: tile_y,
            channels: 1,
            gather: false,
            groups: 1,
        };
        let mut best_cost = f64::INFINITY;
        for planes in (1..=shape.depth.div_ceil(tile_z).min(8)).map(|n| n * tile_z) {
            for rows in (1..=shape.height.div_ceil(tile_y)).map(|n| n * tile_y) {
                let (plan, cost) = estimate_winograd(shape, micro, winograd, threads, planes, rows);
                if cost < best_cost {
                    (best, best_cost) = (plan, cost);
                }
            }
        }
        best
    }

    pub fn direct(shape: Conv3dShape, micro: Kernel, threads: usize) -> Self {
        let mut best = Self {
            planes: 1,
            rows: 1,
            channels: 1,
            gather: false,
            groups: 1,
        };
        let mut best_cost = f64::INFINITY;
        for planes in 1..=shape.depth.min(8) {
            for rows in 1..=shape.height {
                for gather in [false, true] {
                    let (plan, cost) = estimate(shape, micro, threads, planes, rows, gather);
                    if cost < best_cost {
                        (best, best_cost) = (plan, cost);
                    }
                }
            }
        }
        best
    }

    /// For matrix units.
    #[cfg(target_arch = "x86_64")]
    pub fn tiles(shape: Conv3dShape, tiles: Tiles, threads: usize) -> Self {
        let mut best = Self {
            planes: 1,
            rows: 1,
            channels: tiles.depth,
            gather: false,
            groups: 1,
        };
        let mut best_cost = f64::INFINITY;
        for planes in 1..=shape.depth.min(8) {
            for rows in 1..=shape.height {
                let (plan, cost) = estimate_tiles(shape, tiles, threads, planes, rows);
                if cost < best_cost {
                    (best, best_cost) = (plan, cost);
                }
            }
        }
        best
    }
}

fn estimate(
    shape: Conv3dShape,
    micro: Kernel,
    threads: usize,
    planes: usize,
    rows: usize,
    gather: bool,
) -> (Plan, f64) {
    let [pad_z, pad_y, pad_x] = shape.kernel.map(|k| k / 2);
    let (inputs, taps) = (shape.in_channels.max(1), shape.taps());
    let padded_rows = (planes + 2 * pad_z) * (rows + 2 * pad_y);
    let padded = padded_rows * (shape.width + pad_x);
    let vectors = if gather {
        (planes * rows * shape.width).div_ceil(micro.lanes)
    } else {
        planes * (rows * (shape.width + pad_x)).div_ceil(micro.lanes)
    };
    let per_channel = if gather {
        taps * vectors * micro.lanes + padded
    } else {
        padded
    };
    let channels = (WORKING_SET / per_channel).clamp(1, inputs);

    let blocks = shape.out_channels.div_ceil(micro.rows).max(1);
    let tiles = shape.batch * shape.depth.div_ceil(planes) * shape.height.div_ceil(rows);
    let groups = (3 * threads).div_ceil(tiles.max(1)).clamp(1, blocks);
    let plan = Plan {
        planes,
        rows,
        channels,
        gather,
        groups,
    };

    let row_vectors = (shape.width as f64 / micro.lanes as f64).max(0.5);
    let load = (inputs * padded_rows) as f64 * (4.0 * row_vectors + 8.0);
    let collect = if gather {
        (inputs * taps * planes * rows) as f64 * (2.0 * row_vectors + 4.0)
    } else {
        0.0
    };
    let products = (inputs * taps * vectors * micro.rows * blocks) as f64;
    let weights = (inputs * taps * micro.rows * blocks) as f64 / 6.0;
    let partial = (inputs.div_ceil(channels) * 2 * vectors * micro.rows * blocks) as f64;
    let spill = if channels * taps < 64 && channels < inputs {
        1.5
    } else {
        1.0
    };
    let over = if per_channel > WORKING_SET { 2.0 } else { 1.0 };
    let one_tile = (load + collect) * groups as f64 + (products + weights + partial) * spill * over;
    let tasks = (tiles * groups) as f64;
    let rounds = (tasks / threads as f64).ceil() * threads as f64 / tasks.max(1.0);
    (plan, one_tile * tiles as f64 * rounds)
}

#[cfg(target_arch = "x86_64")]
fn estimate_tiles(
    shape: Conv3dShape,
    tiles: Tiles,
    threads: usize,
    planes: usize,
    rows: usize,
) -> (Plan, f64) {
    let [pad_z, pad_y, pad_x] = shape.kernel.map(|k| k / 2);
    let (slots, taps) = (shape.in_channels.max(1), shape.taps());
    let (block_rows, depth) = (tiles.block_rows(), tiles.depth);
    let padded_rows = (planes + 2 * pad_z) * (rows + 2 * pad_y);
    let padded = padded_rows * (shape.width + pad_x);
    let columns = planes * (rows * (shape.width + pad_x)).next_multiple_of(STRIDE);
    let channels =
        (TILES_WORKING_SET / padded / depth * depth).clamp(depth, slots.next_multiple_of(depth));

    let blocks = shape.out_channels.div_ceil(block_rows).max(1);
    let volumes = shape.batch * shape.depth.div_ceil(planes) * shape.height.div_ceil(rows);
    let groups = (3 * threads).div_ceil(volumes.max(1)).clamp(1, blocks);
    let plan = Plan {
        planes,
        rows,
        channels,
        gather: false,
        groups,
    };

    let row_vectors = (shape.width as f64 / COLUMNS as f64).max(0.5);
    let chunks = slots.div_ceil(channels);
    let kept = if chunks == 1 {
        1
    } else {
        blocks.div_ceil(groups)
    };
    let load = (slots * padded_rows) as f64 * (12.0 * row_vectors + 24.0);
    let steps = slots.div_ceil(depth) * taps * blocks;
    // Two columns of tiles: products by rows of the sums, loads by rows of what is loaded.
    let products = (steps * columns / STRIDE) as f64 * (2 * block_rows + depth + 8) as f64;
    // What the weights cost on their way from a slower cache.
    let weights = (steps * block_rows * depth) as f64 / 8.0;
    let partial = (chunks * block_rows * blocks * columns / COLUMNS) as f64 * 3.0;
    let over = if channels.min(slots) * padded + kept * block_rows * columns > 2 * TILES_WORKING_SET
    {
        2.0
    } else {
        1.0
    };
    let one = load * groups as f64 + (products + weights + partial) * over;
    let tasks = (volumes * groups) as f64;
    let rounds = (tasks / threads as f64).ceil() * threads as f64 / tasks.max(1.0);
    (plan, one * volumes as f64 * rounds)
}

/// Distance between the components of one channel, for a tile of `rows` component rows.
pub fn component_len(shape: Conv3dShape, lanes: usize, rows: usize) -> usize {
    let pad = shape.kernel[2] / 2;
    (rows * (shape.width + pad) + pad).next_multiple_of(lanes) + lanes
}

fn estimate_winograd(
    shape: Conv3dShape,
    micro: Kernel,
    winograd: Winograd,
    threads: usize,
    planes: usize,
    rows: usize,
) -> (Plan, f64) {
    let [pad_z, pad_y, pad_x] = shape.kernel.map(|k| k / 2);
    let (inputs, components) = (shape.in_channels.max(1), winograd.components());
    let component_rows = planes / winograd.outputs[0] * (rows / winograd.outputs[1]);
    let padded_rows = (planes + 2 * pad_z) * (rows + 2 * pad_y);
    let component = component_len(shape, micro.lanes, component_rows);
    let channels = (WORKING_SET / (components * component)).clamp(1, inputs);
    let vectors = (component_rows * (shape.width + pad_x)).div_ceil(micro.lanes);

    let blocks = shape.out_channels.div_ceil(micro.rows).max(1);
    let tiles = shape.batch * shape.depth.div_ceil(planes) * shape.height.div_ceil(rows);
    let groups = (3 * threads).div_ceil(tiles.max(1)).clamp(1, blocks);
    let kept = if channels == inputs {
        1
    } else {
        blocks.div_ceil(groups)
    };

    let row_vectors = (shape.width + pad_x).div_ceil(micro.lanes) as f64;
    let load = (inputs * padded_rows) as f64 * (4.0 * row_vectors + 8.0);
    let transform = (inputs * component_rows * components) as f64 * row_vectors * 3.0;
    let steps = components * inputs * shape.kernel[2] * micro.rows * blocks;
    let products = (steps * vectors) as f64;
    let weights = steps as f64 / 6.0;
    let partial =
        (inputs.div_ceil(channels) * components * micro.rows * blocks * vectors * 3) as f64;
    let result = (component_rows * components * micro.rows * blocks) as f64 * row_vectors * 3.0;
    let over = if channels * components * component > WORKING_SET
        || kept * components * micro.rows * component > 2 * WORKING_SET
    {
        2.0
    } else {
        1.0
    };
    let one_tile =
        (load + transform) * groups as f64 + (products + weights + partial) * over + result;
    let tasks = (tiles * groups) as f64;
    let rounds = (tasks / threads as f64).ceil() * threads as f64 / tasks.max(1.0);
    (
        Plan {
            planes,
            rows,
            channels,
            gather: false,
            groups,
        },
        one_tile * tiles as f64 * rounds,
    )
}
