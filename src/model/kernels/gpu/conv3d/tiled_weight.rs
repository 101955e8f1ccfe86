//! Gradient of the weight on tensor units: `[taps * in, voxels]` times `[voxels, out]`, the voxels dealt to parts whose sums
//! are added in order afterwards. The left side is what the convolution read, normalised and activated again.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::{cubes, empty, vector_of};
use super::super::tiles::{
    Block, GROUP, Multiplier, SHARE, SIDE, SUMS_STRIDE, factor, load_vector, multiply, no_sums,
    put_down,
};
use super::product::{neighbour, offset_of};
use super::{Activation, Map};

/// Sizes that the kernel is compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tiles {
    /// Kernel sides.
    kernel: [usize; 3],
    /// Tiles of terms below each other: one line of groups, each with two of them.
    groups: usize,
    /// Tiles of output channels of a group.
    across: usize,
    /// Voxels of a step.
    voxels: usize,
    /// Values of the map, and of the gradient, that are read at once.
    vectors: [usize; 2],
    activated: bool,
    by: Multiplier,
}

/// Tiles of terms of a group.
const DOWN: usize = 2;

impl Tiles {
    fn units(&self) -> usize {
        self.groups * GROUP
    }

    fn terms(&self) -> usize {
        self.groups * DOWN * SIDE
    }

    fn columns(&self) -> usize {
        self.across * SIDE
    }

    fn left_stride(&self) -> usize {
        self.terms() + self.vectors[0]
    }

    fn right_stride(&self) -> usize {
        // Whatever the vectors of the gradient are, a row begins at a multiple of 16 bytes.
        self.columns() + 8
    }

    /// Vectors of a voxel's terms.
    fn left_row(&self) -> usize {
        self.terms() / self.vectors[0]
    }

    fn right_row(&self) -> usize {
        self.columns() / self.vectors[1]
    }

    fn block(&self) -> Block {
        Block {
            down: DOWN,
            across: self.across,
            terms: self.voxels,
            left_stride: self.left_stride(),
            right_stride: self.right_stride(),
            left_by_term: true,
            right_by_term: true,
        }
    }
}

#[cube(launch_unchecked)]
fn tiled_weight_kernel<E: Float, S: Float, N: Size, M: Size>(
    x: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, M>>,
    scale: &Tensor<Vector<f32, N>>,
    shift: &Tensor<Vector<f32, N>>,
    slope: &Tensor<f32>,
    parts: &mut Tensor<f32>,
    count: usize,
    term_tiles: usize,
    column_tiles: usize,
    voxels: usize,
    part_voxels: usize,
    lanes: usize,
    output: usize,
    depth: u32,
    height: u32,
    width: u32,
    #[comptime] tiles: Tiles,
    #[define(E, S)] _types: [StorageType; 2],
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let by = comptime![tiles.by];
    let units = comptime![tiles.units()];
    let unit = UNIT_POS as usize;
    let part = CUBE_POS / (term_tiles * column_tiles);
    let first_term = CUBE_POS / column_tiles % term_tiles * comptime![tiles.terms()];
    let first_column = CUBE_POS % column_tiles * comptime![tiles.columns()];
    let first = part * part_voxels;
    let last = min(first + part_voxels, voxels);

    let mut left = SharedMemory::<Vector<S, N>>::new_aligned(
        comptime![tiles.voxels * tiles.left_stride() / tiles.vectors[0]],
        32usize,
    );
    let mut right = SharedMemory::<Vector<S, M>>::new_aligned(
        comptime![tiles.voxels * tiles.right_stride() / tiles.vectors[1]],
        32usize,
    );
    let mut down =
        SharedMemory::<f32>::new_aligned(comptime![tiles.groups * SIDE * SUMS_STRIDE], 32usize);

    // This unit always reads the same vector of terms.
    let row_vectors = comptime![tiles.left_row()];
    let own = unit % row_vectors;
    let own_voxel = unit / row_vectors;
    let taps = comptime![tiles.kernel.iter().product::<usize>()];
    let term = first_term / N::value() + own;
    let tap = term / lanes;
    let lane = term % lanes;
    let offset = offset_of(tap, tiles.kernel);
    let slope = slope[0];
    let right_all = comptime![tiles.voxels * tiles.right_row()];

    let mut sums = no_sums(comptime![DOWN * tiles.across], by);
    let group = unit / GROUP;
    let left_start = group * comptime![DOWN * SIDE / tiles.vectors[0]];
    for step in range_stepped(first, last, tiles.voxels) {
        sync_cube();
        #[unroll]
        for i in 0..comptime![tiles.voxels * row_vectors / units] {
            let row = own_voxel + i * comptime![units / row_vectors];
            let voxel = step + row;
            let place = voxel as u32;
            let mut value = Vector::<f32, N>::new(0.0f32);
            if voxel < last && tap < taps {
                let y = place / width % height;
                let z = place / (width * height) % depth;
                value = neighbour::<E, N>(
                    x,
                    scale,
                    shift,
                    slope,
                    voxel,
                    (z << 16) | y,
                    place % width,
                    offset,
                    (depth, height, width),
                    lane,
                    lanes,
                    tiles.activated,
                );
            }
            let to = row * comptime![tiles.left_stride() / tiles.vectors[0]] + own;
            left[to] = factor::<S, N>(value, by);
        }
        for at in range_stepped(unit, right_all, units) {
            let row = at / comptime![tiles.right_row()];
            let lane = at % comptime![tiles.right_row()];
            let column = first_column / M::value() + lane;
            let voxel = step + row;
            let mut value = Vector::<f32, M>::new(0.0f32);
            if voxel < last && column < output {
                value = Vector::cast_from(grad[voxel * output + column]);
            }
            let to = row * comptime![tiles.right_stride() / tiles.vectors[1]] + lane;
            right[to] = factor::<S, M>(value, by);
        }
        sync_cube();
        multiply::<S, N, M>(
            &left,
            left_start,
            &right,
            0usize,
            &mut sums,
            comptime![tiles.block()],
            by,
        );
    }

    let place = group * comptime![SIDE * SUMS_STRIDE];
    let lane = unit % GROUP;
    let terms = taps * lanes * N::value();
    let channels = output * M::value();
    #[unroll]
    for i in 0..DOWN {
        #[unroll]
        for j in 0..tiles.across {
            sync_cube();
            put_down(&sums, comptime![i * tiles.across + j], &mut down, place, by);
            sync_cube();
            let term = first_term + (group * DOWN + i) * SIDE + lane / 2;
            let column = first_column + j * SIDE + lane % 2 * SHARE;
            let from = place + lane / 2 * SUMS_STRIDE + lane % 2 * SHARE;
            if term < terms {
                #[unroll]
                for e in 0..SHARE {
                    if column + e < channels {
                        parts[(part * terms + term) * channels + column + e] = down[from + e];
                    }
                }
            }
        }
    }
}

/// The sums of each part, `[part, tap, in, out]` in float32.
pub fn launch<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Activation<R>,
    activated: bool,
    grad: CubeTensor<R>,
    kernel: [usize; 3],
    [input, output]: [usize; 2],
    map: Map,
    by: Multiplier,
) -> CubeTensor<R> {
    let vector = load_vector(&x);
    let grad_vector = vector_of(output);
    let taps: usize = kernel.iter().product();
    let tiles = Tiles {
        kernel,
        groups: 4,
        across: output.div_ceil(SIDE).min(4),
        voxels: 4 * vector,
        vectors: [vector, grad_vector],
        activated,
        by,
    };
    let term_tiles = (taps * input).div_ceil(tiles.terms());
    let column_tiles = output.div_ceil(tiles.columns());
    let processors = x.client.properties().hardware.num_streaming_multiprocessors;
    // Two cubes for each processor, and parts long enough to be worth the sums that they write.
    let wanted = (2 * processors.unwrap_or(1) as usize).div_ceil(term_tiles * column_tiles);
    let longest = map.voxels().div_ceil(8 * tiles.voxels);
    let parts = wanted.clamp(1, longest.max(1));
    let part_voxels = map.voxels().div_ceil(parts).next_multiple_of(tiles.voxels);
    let parts = map.voxels().div_ceil(part_voxels);
    let out = empty(&x, [parts, taps, input, output], DType::F32);
    let count = parts * term_tiles * column_tiles;
    let dim = CubeDim::new_1d(tiles.units() as u32);
    let types = [x.dtype.into(), by.storage()];
    // SAFETY: cubes behind the last return at once; voxels behind the part's last and terms behind the last tap are zeros
    // that are not read; only terms and channels that there are get written.
    unsafe {
        tiled_weight_kernel::launch_unchecked(
            &out.client,
            cubes(&out, count, dim),
            dim,
            vector,
            grad_vector,
            x.into_tensor_arg(),
            grad.into_tensor_arg(),
            activation.scale.into_tensor_arg(),
            activation.shift.into_tensor_arg(),
            activation.slope.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            count,
            term_tiles,
            column_tiles,
            map.voxels(),
            part_voxels,
            input / vector,
            output / grad_vector,
            map.depth as u32,
            map.height as u32,
            map.width as u32,
            tiles,
            types,
        );
    }
    out
}
