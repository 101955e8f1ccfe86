//! The implicit product on ordinary units: tiles of both sides in shared memory, eight voxels by four outputs per unit.
//!
//! Per step of four input channels a unit reads 12 vectors from shared memory for 128 multiply-adds.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::cubes;
use super::super::norm::prelu;
use super::{Activation, Map, pack::Packed};

/// Values of a vector.
const VECTOR: usize = 4;
/// Voxels of a unit.
const ROWS: usize = 8;

/// Sizes that the kernel is compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tiles {
    /// Kernel sides.
    pub kernel: [usize; 3],
    /// Units side by side: vectors of outputs of a tile.
    pub across: usize,
    /// Units one below the other; a tile has [`ROWS`] times as many voxels.
    pub down: usize,
    /// Vectors of input channels of a step.
    pub depth: usize,
    /// The input is normalised and activated as it is read.
    pub activated: bool,
}

/// Whether the kernel takes that many input channels.
pub fn fits(input: usize) -> bool {
    input.is_multiple_of(2 * VECTOR)
}

/// Where the voxels of a tile lie: depth and height in one number each of 16 bits, and the width; a voxel behind the last
/// lies outside every map.
#[cube]
pub fn place_voxels(
    rows_zy: &mut SharedMemory<u32>,
    rows_x: &mut SharedMemory<u32>,
    first: usize,
    voxels: usize,
    depth: u32,
    height: u32,
    width: u32,
    #[comptime] rows: usize,
    #[comptime] units: usize,
) {
    for i in range_stepped(UNIT_POS as usize, rows, units) {
        let place = (first + i) as u32;
        let y = place / width % height;
        let z = place / (width * height) % depth;
        let beyond = first + i >= voxels;
        rows_zy[i] = select(beyond, 0xff00ff00u32, (z << 16) | y);
        rows_x[i] = place % width;
    }
}

/// How far from its voxel a tap of a kernel reads, in z, y and x.
#[cube]
pub fn offset_of(tap: usize, #[comptime] kernel: [usize; 3]) -> (i32, i32, i32) {
    let [kd, kh, kw] = comptime![kernel];
    let dz = (tap / comptime![kh * kw]) as i32 - comptime![(kd / 2) as i32];
    let dy = (tap / kw % kh) as i32 - comptime![(kh / 2) as i32];
    let dx = (tap % kw) as i32 - comptime![(kw / 2) as i32];
    (dz, dy, dx)
}

/// Whether a voxel's neighbour lies in the map.
#[cube]
pub fn in_map(zy: u32, place_x: u32, offset: (i32, i32, i32), sides: (u32, u32, u32)) -> bool {
    let (dz, dy, dx) = offset;
    let (depth, height, width) = sides;
    let z = (zy >> 16) as i32 + dz;
    let y = (zy & 0xffffu32) as i32 + dy;
    let x = place_x as i32 + dx;
    z >= 0 && z < depth as i32 && y >= 0 && y < height as i32 && x >= 0 && x < width as i32
}

/// The number of a voxel's neighbour in the map.
#[cube]
pub fn moved(voxel: usize, offset: (i32, i32, i32), sides: (u32, u32, u32)) -> usize {
    let (dz, dy, dx) = offset;
    let (_depth, height, width) = sides;
    (voxel as i32 + (dz * height as i32 + dy) * width as i32 + dx) as usize
}

/// The vector of input channels `lane` of a voxel's neighbour, or zeros outside the map.
#[cube]
pub fn neighbour<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    scale: &Tensor<Vector<f32, N>>,
    shift: &Tensor<Vector<f32, N>>,
    slope: f32,
    voxel: usize,
    zy: u32,
    place_x: u32,
    offset: (i32, i32, i32),
    sides: (u32, u32, u32),
    lane: usize,
    lanes: usize,
    #[comptime] activated: bool,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::new(0.0f32);
    if in_map(zy, place_x, offset, sides) {
        let from = moved(voxel, offset, sides);
        value = Vector::cast_from(x[from * lanes + lane]);
        if activated {
            value = prelu::<N>(value * scale[lane] + shift[lane], slope);
        }
    }
    value
}

#[cube(launch_unchecked)]
fn product_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    weight: &Tensor<Vector<E, N>>,
    bias: &Tensor<Vector<f32, N>>,
    scale: &Tensor<Vector<f32, N>>,
    shift: &Tensor<Vector<f32, N>>,
    slope: &Tensor<f32>,
    out: &mut Tensor<E>,
    count: usize,
    column_tiles: usize,
    voxels: usize,
    lanes: usize,
    columns: usize,
    output: usize,
    depth: u32,
    height: u32,
    width: u32,
    #[comptime] tiles: Tiles,
    #[define(E)] _dtype: StorageType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let rows = comptime![tiles.down * ROWS];
    let units = comptime![tiles.down * tiles.across];
    let unit = UNIT_POS as usize;
    let column = unit % tiles.across;
    let line = unit / tiles.across;
    let first = CUBE_POS / column_tiles * rows;
    let first_column = CUBE_POS % column_tiles * tiles.across;

    let mut rows_zy = SharedMemory::<u32>::new(rows);
    let mut rows_x = SharedMemory::<u32>::new(rows);
    place_voxels(
        &mut rows_zy,
        &mut rows_x,
        first,
        voxels,
        depth,
        height,
        width,
        rows,
        units,
    );
    let mut left = SharedMemory::<Vector<f32, N>>::new(comptime![rows * tiles.depth]);
    let mut right =
        SharedMemory::<Vector<f32, N>>::new(comptime![tiles.depth * VECTOR * tiles.across]);

    let mut sums = Array::<Vector<f32, N>>::new(ROWS);
    let taps = comptime![tiles.kernel.iter().product::<usize>()];
    let bias = bias[min(first_column + column, columns - 1)];
    #[unroll]
    for i in 0..ROWS {
        sums[i] = bias;
    }
    let slope = slope[0];
    for tap in 0..taps {
        let offset = offset_of(tap, tiles.kernel);
        for step in range_stepped(0, lanes, tiles.depth) {
            sync_cube();
            for i in range_stepped(unit, comptime![rows * tiles.depth], units) {
                let row = i / tiles.depth;
                left[i] = neighbour::<E, N>(
                    x,
                    scale,
                    shift,
                    slope,
                    first + row,
                    rows_zy[row],
                    rows_x[row],
                    offset,
                    (depth, height, width),
                    step + i % tiles.depth,
                    lanes,
                    tiles.activated,
                );
            }
            for i in range_stepped(unit, comptime![tiles.depth * VECTOR * tiles.across], units) {
                let row = (tap * lanes + step) * VECTOR + i / tiles.across;
                let at = min(first_column + i % tiles.across, columns - 1);
                right[i] = Vector::cast_from(weight[row * columns + at]);
            }
            sync_cube();
            #[unroll]
            for k in 0..tiles.depth {
                let mut b = Array::<Vector<f32, N>>::new(VECTOR);
                #[unroll]
                for j in 0..VECTOR {
                    b[j] = right[(k * VECTOR + j) * tiles.across + column];
                }
                #[unroll]
                for i in 0..ROWS {
                    let a = left[(line + i * tiles.down) * tiles.depth + k];
                    #[unroll]
                    for j in 0..VECTOR {
                        sums[i] += Vector::new(a[j]) * b[j];
                    }
                }
            }
        }
    }
    #[unroll]
    for i in 0..ROWS {
        let voxel = first + line + i * tiles.down;
        if voxel < voxels {
            #[unroll]
            for j in 0..VECTOR {
                let at = (first_column + column) * VECTOR + j;
                if at < output {
                    out[voxel * output + at] = E::cast_from(sums[i][j]);
                }
            }
        }
    }
}

pub fn launch<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Activation<R>,
    activated: bool,
    packed: &Packed<R>,
    out: CubeTensor<R>,
    map: Map,
) {
    let lanes = x.meta.num_elements() / map.voxels() / VECTOR;
    let columns = packed.output.div_ceil(VECTOR);
    let across = if columns <= 16 { columns } else { 16 };
    let down = match across {
        0..=8 => 32,
        _ => 16,
    };
    let tiles = Tiles {
        kernel: packed.kernel,
        across,
        down,
        depth: if lanes.is_multiple_of(4) { 4 } else { 2 },
        activated,
    };
    let column_tiles = columns.div_ceil(across);
    let count = map.voxels().div_ceil(down * ROWS) * column_tiles;
    let dim = CubeDim::new_1d((across * down) as u32);
    let dtype = x.dtype;
    // SAFETY: cubes behind the last return at once; a voxel behind the last lies outside the map for every tap and is not
    // written; columns are clamped to those that the packed weight has.
    unsafe {
        product_kernel::launch_unchecked(
            &out.client.clone(),
            cubes(&out, count, dim),
            dim,
            VECTOR,
            x.into_tensor_arg(),
            packed.matrix.clone().into_tensor_arg(),
            packed.bias.clone().into_tensor_arg(),
            activation.scale.into_tensor_arg(),
            activation.shift.into_tensor_arg(),
            activation.slope.into_tensor_arg(),
            out.into_tensor_arg(),
            count,
            column_tiles,
            map.voxels(),
            lanes,
            packed.columns / VECTOR,
            packed.output,
            map.depth as u32,
            map.height as u32,
            map.width as u32,
            tiles,
            dtype.into(),
        );
    }
}
