//! Sums over the rows of `[rows, channels]`: every cube sums a chunk of rows, a second kernel sums the chunks, always in
//! the same order.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::layout::{channels_last, cubes, empty, over, sides, vector_of};

/// Units of a cube of the first pass.
const UNITS: usize = 256;
/// Chunks at most: enough for every processor of a large GPU, few for the second pass.
const MOST_CHUNKS: usize = 528;
/// Units of a cube of the second pass.
const FOLD: usize = 64;

/// How the rows are dealt to cubes.
pub struct ColumnLaunch {
    /// Lanes of one cube.
    pub width: usize,
    /// Cubes side by side, for all lanes.
    across: usize,
    /// Chunks of rows.
    pub chunks: usize,
    /// Rows of one.
    pub chunk: usize,
}

/// Deals `rows` rows of `lanes` vectors.
pub fn column_launch(rows: usize, lanes: usize) -> ColumnLaunch {
    let width = lanes.min(UNITS);
    let down = UNITS / width;
    let chunks = rows.div_ceil(down * 8).clamp(1, MOST_CHUNKS);
    ColumnLaunch {
        width,
        across: lanes.div_ceil(width),
        chunks,
        chunk: rows.div_ceil(chunks),
    }
}

impl ColumnLaunch {
    pub fn count(&self) -> CubeCount {
        CubeCount::Static(self.chunks as u32, self.across as u32, 1)
    }

    pub fn dim(&self) -> CubeDim {
        CubeDim::new_2d(self.width as u32, (UNITS / self.width) as u32)
    }
}

/// Sums what the units of a cube that share a lane have, and writes it as the cube's part: `[chunk][kind][lane]`.
#[cube]
pub fn fold_columns<N: Size>(
    sums: &mut Array<Vector<f32, N>>,
    parts: &mut Tensor<Vector<f32, N>>,
    lane: usize,
    lanes: usize,
    #[comptime] width: usize,
    #[comptime] kinds: usize,
) {
    let mut shared = SharedMemory::<Vector<f32, N>>::new(comptime![width * (UNITS / width)]);
    let x = UNIT_POS_X as usize;
    let y = UNIT_POS_Y as usize;
    #[unroll]
    for kind in 0..kinds {
        shared[y * width + x] = sums[kind];
        sync_cube();
        if y == 0 && lane < lanes {
            let mut total = Vector::<f32, N>::new(0.0f32);
            for other in 0..comptime![UNITS / width] {
                total += shared[other * width + x];
            }
            parts[(CUBE_POS_X as usize * kinds + kind) * lanes + lane] = total;
        }
        sync_cube();
    }
}

#[cube(launch)]
fn sum_few_kernel(parts: &Tensor<f32>, out: &mut Tensor<f32>, count: usize, len: usize) {
    let at = ABSOLUTE_POS;
    if at < len {
        let mut total = 0.0f32;
        for part in 0..count {
            total += parts[part * len + at];
        }
        out[at] = total;
    }
}

#[cube(launch)]
fn sum_many_kernel(parts: &Tensor<f32>, out: &mut Tensor<f32>, count: usize, len: usize) {
    let mut shared = SharedMemory::<f32>::new(FOLD);
    let at = CUBE_POS;
    let unit = UNIT_POS as usize;
    let mut total = 0.0f32;
    if at < len {
        for part in range_stepped(unit, count, FOLD) {
            total += parts[part * len + at];
        }
    }
    shared[unit] = total;
    sync_cube();
    if unit == 0 && at < len {
        let mut all = 0.0f32;
        for other in 0..FOLD {
            all += shared[other];
        }
        out[at] = all;
    }
}

/// `[parts, len]` to `[len]`.
pub fn sum_parts<R: CubeRuntime>(parts: CubeTensor<R>) -> CubeTensor<R> {
    let [count, len] = sides(&parts);
    let out = empty(&parts, [len], DType::F32);
    if count < 2 * FOLD {
        let (grid, dim) = over(&parts, len);
        sum_few_kernel::launch(
            &out.client,
            grid,
            dim,
            parts.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            count,
            len,
        );
    } else {
        let dim = CubeDim::new_1d(FOLD as u32);
        let grid = cubes(&parts, len, dim);
        sum_many_kernel::launch(
            &out.client,
            grid,
            dim,
            parts.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            count,
            len,
        );
    }
    out
}

#[cube(launch)]
fn column_sum_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    parts: &mut Tensor<Vector<f32, N>>,
    rows: usize,
    lanes: usize,
    chunk: usize,
    #[comptime] width: usize,
    #[define(E)] _dtype: StorageType,
) {
    let lane = CUBE_POS_Y as usize * width + UNIT_POS_X as usize;
    let mut sums = Array::<Vector<f32, N>>::new(1usize);
    sums[0] = Vector::new(0.0f32);
    if lane < lanes {
        let first = CUBE_POS_X as usize * chunk;
        let last = min(first + chunk, rows);
        for row in range_stepped(first + UNIT_POS_Y as usize, last, CUBE_DIM_Y as usize) {
            sums[0] += Vector::cast_from(x[row * lanes + lane]);
        }
    }
    fold_columns::<N>(&mut sums, parts, lane, lanes, width, 1usize);
}

/// Sums of the columns of a contiguous tensor whose last axis has `channels`: `[channels]` in float32.
pub fn column_sum<R: CubeRuntime>(x: CubeTensor<R>, channels: usize) -> CubeTensor<R> {
    let rows = x.meta.num_elements() / channels;
    let size = vector_of(channels);
    let launch = column_launch(rows, channels / size);
    let parts = empty(&x, [launch.chunks, channels], DType::F32);
    let dtype = x.dtype;
    column_sum_kernel::launch(
        &parts.client,
        launch.count(),
        launch.dim(),
        size,
        x.into_tensor_arg(),
        parts.clone().into_tensor_arg(),
        rows,
        channels / size,
        launch.chunk,
        launch.width,
        dtype.into(),
    );
    sum_parts(parts)
}

/// Sums of a map `[batch, channels, d, h, w]` over everything but the channel.
pub fn channel_sum<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = channels_last(x);
    let [_, _, _, _, channels] = sides(&x);
    column_sum(x, channels)
}
