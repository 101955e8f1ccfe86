//! The implicit product on tensor units: tiles of both sides in shared memory in the format of the products, sums in
//! registers, two stages so that the next tiles are read while the present ones are multiplied.
//!
//! Terms are numbered through, tap by tap (`tap * in + channel`), and filled up with zeros once at the end, so that 24
//! channels cost no padding per tap.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::{cubes, empty, vector_of};
use super::super::norm::prelu;
use super::super::rows::gelu;
use super::super::tiles::{
    Block, GROUP, Multiplier, SHARE, SIDE, SUMS_STRIDE, factor, load_vector, multiply, no_sums,
    put_down, result,
};
use super::product::{in_map, moved, offset_of, place_voxels};
use super::{Activation, Map, pack::Packed};

/// What is done to the product's values before they are stored, after the bias was added.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Finish {
    /// Nothing.
    Store,
    /// GELU, the exact one.
    Gelu,
    /// Another tensor is added.
    Add,
    /// Columns are taps of a transposed convolution of this kernel, its channels side by side: each voxel becomes a block.
    Spread([usize; 3]),
}

impl Finish {
    /// Sides of the block that a voxel becomes.
    pub fn block(self) -> [usize; 3] {
        match self {
            Self::Spread(block) => block,
            _ => [1; 3],
        }
    }
}

/// Sizes that the kernel is compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tiles {
    /// Kernel sides.
    kernel: [usize; 3],
    /// Groups below each other and side by side.
    groups: [usize; 2],
    /// Tiles of a group.
    tiles: [usize; 2],
    /// Terms of a step.
    terms: usize,
    /// Values that are read at once.
    vector: usize,
    activated: bool,
    /// The input is two maps side by side.
    joined: bool,
    finish: Finish,
    by: Multiplier,
}

impl Tiles {
    fn units(&self) -> usize {
        self.groups[0] * self.groups[1] * GROUP
    }

    fn rows(&self) -> usize {
        self.groups[0] * self.tiles[0] * SIDE
    }

    fn columns(&self) -> usize {
        self.groups[1] * self.tiles[1] * SIDE
    }

    /// Rows are set apart by one vector more than they hold, so that neighbouring rows lie in different banks.
    fn left_stride(&self) -> usize {
        self.terms + self.vector
    }

    fn right_stride(&self) -> usize {
        self.columns() + self.vector
    }

    /// Vectors of a stage.
    fn left(&self) -> usize {
        self.rows() * self.left_stride() / self.vector
    }

    fn right(&self) -> usize {
        self.terms * self.right_stride() / self.vector
    }

    /// Vectors that each unit reads of a step.
    fn left_reads(&self) -> usize {
        (self.rows() * self.terms / self.vector).div_ceil(self.units())
    }

    fn right_reads(&self) -> usize {
        (self.columns() * self.terms / self.vector).div_ceil(self.units())
    }

    fn block(&self) -> Block {
        Block {
            down: self.tiles[0],
            across: self.tiles[1],
            terms: self.terms,
            left_stride: self.left_stride(),
            right_stride: self.right_stride(),
            left_by_term: false,
            right_by_term: true,
        }
    }
}

/// Whether the kernel takes that many input channels.
pub fn fits(input: usize) -> bool {
    input.is_multiple_of(8)
}

#[cube(launch_unchecked)]
fn tiled_kernel<E: Float, S: Float, N: Size, M: Size>(
    x: &Tensor<Vector<E, N>>,
    joined: &Tensor<Vector<E, N>>,
    weight: &Tensor<Vector<E, N>>,
    bias: &Tensor<f32>,
    scale: &Tensor<Vector<f32, N>>,
    shift: &Tensor<Vector<f32, N>>,
    slope: &Tensor<f32>,
    added: &Tensor<Vector<E, M>>,
    out: &mut Tensor<Vector<E, M>>,
    count: usize,
    column_tiles: usize,
    voxels: usize,
    first_lanes: usize,
    lanes: usize,
    columns: usize,
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
    let rows = comptime![tiles.rows()];
    let units = comptime![tiles.units()];
    let unit = UNIT_POS as usize;
    let first = CUBE_POS / column_tiles * rows;
    let first_column = CUBE_POS % column_tiles * comptime![tiles.columns()];

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
    let mut left = SharedMemory::<Vector<S, N>>::new_aligned(comptime![2 * tiles.left()], 32usize);
    let mut right =
        SharedMemory::<Vector<S, N>>::new_aligned(comptime![2 * tiles.right()], 32usize);
    let mut down = SharedMemory::<f32>::new_aligned(
        comptime![tiles.groups[0] * tiles.groups[1] * SIDE * SUMS_STRIDE],
        32usize,
    );
    sync_cube();

    let slope = slope[0];
    let taps = comptime![tiles.kernel.iter().product::<usize>()];
    // What this unit reads of each step: always the same vector of terms, of rows `units / per_row` apart.
    let per_row = comptime![tiles.terms / tiles.vector];
    let own = unit % per_row;
    let own_row = unit / per_row;
    let all = taps * lanes;
    let steps = all.div_ceil(per_row);
    let right_all = comptime![tiles.columns() * tiles.terms / tiles.vector];
    let right_row = comptime![tiles.columns() / tiles.vector];
    let first_vector = first_column / tiles.vector;

    let mut lefts = Array::<Vector<S, N>>::new(comptime![tiles.left_reads()]);
    let mut rights = Array::<Vector<S, N>>::new(comptime![tiles.right_reads()]);
    let mut sums = no_sums(comptime![tiles.tiles[0] * tiles.tiles[1]], by);
    let group = unit / GROUP;
    let group_row = group / comptime![tiles.groups[1]];
    let group_column = group % comptime![tiles.groups[1]];
    let left_start =
        group_row * comptime![tiles.tiles[0] * SIDE * tiles.left_stride() / tiles.vector];
    let right_start = group_column * comptime![tiles.tiles[1] * SIDE / tiles.vector];

    // Step `steps` multiplies what step `steps - 1` has read.
    for step in 0..steps + 1 {
        if step < steps {
            let term = step * per_row + own;
            let tap = term / lanes;
            let lane = term % lanes;
            let offset = offset_of(tap, tiles.kernel);
            #[unroll]
            for i in 0..comptime![tiles.left_reads()] {
                let row = own_row + i * comptime![units / per_row];
                let mut value = Vector::<f32, N>::new(0.0f32);
                if tap < taps {
                    let sides = (depth, height, width);
                    if in_map(rows_zy[row], rows_x[row], offset, sides) {
                        let from = moved(first + row, offset, sides);
                        if comptime![tiles.joined] {
                            if lane < first_lanes {
                                value = Vector::cast_from(x[from * first_lanes + lane]);
                            } else {
                                let second = lanes - first_lanes;
                                let at = from * second + lane - first_lanes;
                                value = Vector::cast_from(joined[at]);
                            }
                        } else {
                            value = Vector::cast_from(x[from * lanes + lane]);
                        }
                        if comptime![tiles.activated] {
                            value = prelu::<N>(value * scale[lane] + shift[lane], slope);
                        }
                    }
                }
                lefts[i] = factor::<S, N>(value, by);
            }
            #[unroll]
            for i in 0..comptime![tiles.right_reads()] {
                let at = min(unit + i * units, comptime![right_all - 1]);
                let row = step * comptime![tiles.terms] + at / right_row;
                let column = min(first_vector + at % right_row, columns - 1);
                let value = Vector::<f32, N>::cast_from(weight[row * columns + column]);
                rights[i] = factor::<S, N>(value, by);
            }
        }
        if step > 0 {
            let stage = (step + 1) % 2;
            multiply::<S, N, N>(
                &left,
                stage * comptime![tiles.left()] + left_start,
                &right,
                stage * comptime![tiles.right()] + right_start,
                &mut sums,
                comptime![tiles.block()],
                by,
            );
        }
        if step < steps {
            let stage = step % 2;
            #[unroll]
            for i in 0..comptime![tiles.left_reads()] {
                let row = own_row + i * comptime![units / per_row];
                let to = row * comptime![tiles.left_stride() / tiles.vector] + own;
                left[stage * comptime![tiles.left()] + to] = lefts[i];
            }
            #[unroll]
            for i in 0..comptime![tiles.right_reads()] {
                let at = unit + i * units;
                if at < right_all {
                    let to = at / right_row * comptime![tiles.right_stride() / tiles.vector]
                        + at % right_row;
                    right[stage * comptime![tiles.right()] + to] = rights[i];
                }
            }
            sync_cube();
        }
    }

    let place = group * comptime![SIDE * SUMS_STRIDE];
    let lane = unit % GROUP;
    let out_vector = M::value().comptime();
    #[unroll]
    for i in 0..comptime![tiles.tiles[0]] {
        #[unroll]
        for j in 0..comptime![tiles.tiles[1]] {
            sync_cube();
            put_down(
                &sums,
                comptime![i * tiles.tiles[1] + j],
                &mut down,
                place,
                by,
            );
            sync_cube();
            let row = lane / 2;
            let column = lane % 2 * SHARE;
            let voxel = first + (group_row * comptime![tiles.tiles[0]] + i) * SIDE + row;
            let from = place + row * SUMS_STRIDE + column;
            let to = first_column + (group_column * comptime![tiles.tiles[1]] + j) * SIDE + column;
            if voxel < voxels {
                #[unroll]
                for part in 0..comptime![SHARE / out_vector] {
                    let vector = to / M::value() + part;
                    if vector < output {
                        let mut value = Vector::<f32, M>::new(0.0f32);
                        #[unroll]
                        for e in 0..M::value() {
                            value[e] =
                                down[from + part * M::value() + e] + bias[vector * M::value() + e];
                        }
                        if comptime![tiles.finish == Finish::Gelu] {
                            value = gelu::<M>(value);
                        }
                        if comptime![tiles.finish == Finish::Add] {
                            value += Vector::cast_from(added[voxel * output + vector]);
                        }
                        let mut at = voxel * output + vector;
                        if comptime![tiles.finish.block() != [1; 3]] {
                            let [bd, bh, bw] = comptime![tiles.finish.block()];
                            let channels = output / comptime![bd * bh * bw];
                            let tap = vector / channels;
                            let own = voxel - first;
                            let z = (rows_zy[own] >> 16) as usize;
                            let y = (rows_zy[own] & 0xffffu32) as usize;
                            let sample = voxel / (depth * height * width) as usize;
                            let z = (sample * depth as usize + z) * bd + tap / comptime![bh * bw];
                            let y = (z * height as usize * bh) + y * bh + tap / bw % bh;
                            let x = y * width as usize * bw + rows_x[own] as usize * bw + tap % bw;
                            at = x * channels + vector % channels;
                        }
                        out[at] = Vector::cast_from(result::<M>(value, by));
                    }
                }
            }
        }
    }
}

/// Groups and tiles of a cube for so many columns, those that read least first.
fn shapes(columns: usize) -> [([usize; 2], [usize; 2]); 3] {
    let across = columns.div_ceil(SIDE);
    // As many tiles side by side as waste the least.
    let per_group = |groups: usize, most: usize| {
        let waste = |size: &usize| across.next_multiple_of(groups * size) - across;
        (1..=most).rev().min_by_key(waste).unwrap_or(1)
    };
    let wide = if across.is_multiple_of(8) {
        4
    } else {
        per_group(2, 4)
    };
    let few = match across {
        1 => ([4, 1], [1, 1]),
        _ => ([2, 2], [2, per_group(2, 3)]),
    };
    [([4, 2], [2, wide]), ([4, 1], [2, per_group(1, 4)]), few]
}

impl Tiles {
    /// The largest that the device has shared memory for and that still give each of its processors work.
    fn choose(self, map: Map, columns: usize, processors: usize, shared: usize) -> Self {
        let candidates = shapes(columns).map(|(groups, tiles)| Self {
            groups,
            tiles,
            ..self
        });
        let cubes =
            |tiles: &Self| map.voxels().div_ceil(tiles.rows()) * columns.div_ceil(tiles.columns());
        let good = |tiles: &&Self| {
            let wasted = columns.next_multiple_of(tiles.columns()) - columns;
            8 * wasted <= columns && cubes(tiles) >= processors && tiles.shared_bytes() <= shared
        };
        *candidates.iter().find(good).unwrap_or(&candidates[2])
    }

    fn shared_bytes(&self) -> usize {
        let factors = 2 * self.vector * (self.left() + self.right());
        let sums = self.groups[0] * self.groups[1] * SIDE * SUMS_STRIDE;
        factors * self.by.storage().size() + 4 * (sums + 2 * self.rows())
    }
}

/// What surrounds a product.
pub struct Around<R: CubeRuntime> {
    /// The rest of the input's channels.
    pub joined: Option<CubeTensor<R>>,
    pub activation: Option<Activation<R>>,
    pub finish: Finish,
    /// What [`Finish::Add`] adds, of the result's shape and type.
    pub added: Option<CubeTensor<R>>,
}

/// The product of a map `[batch, d, h, w, in]`, stored in `out`.
pub fn launch<R: CubeRuntime>(
    x: CubeTensor<R>,
    around: Around<R>,
    packed: &Packed<R>,
    out: CubeTensor<R>,
    map: Map,
    by: Multiplier,
) {
    let vector = load_vector(&x);
    let properties = x.client.properties();
    let processors = properties.hardware.num_streaming_multiprocessors;
    let tiles = Tiles {
        kernel: packed.kernel,
        groups: [1, 1],
        tiles: [1, 1],
        terms: 4 * vector,
        vector,
        activated: around.activation.is_some(),
        joined: around.joined.is_some(),
        finish: around.finish,
        by,
    };
    let tiles = tiles.choose(
        map,
        packed.columns,
        processors.unwrap_or(1) as usize,
        properties.hardware.max_shared_memory_size,
    );
    let lanes_of = |x: &CubeTensor<R>| x.meta.num_elements() / map.voxels() / vector;
    let first_lanes = lanes_of(&x);
    let lanes = first_lanes + around.joined.as_ref().map_or(0, lanes_of);
    // The channels that lie side by side in the result.
    let channels = packed.output / around.finish.block().iter().product::<usize>();
    let out_vector = match vector_of(channels) {
        4 if vector == 8 && channels.is_multiple_of(8) => 8,
        size => size,
    };
    let nothing = || empty(&out, [8], out.dtype);
    let column_tiles = packed.columns.div_ceil(tiles.columns());
    let count = map.voxels().div_ceil(tiles.rows()) * column_tiles;
    let dim = CubeDim::new_1d(tiles.units() as u32);
    let types = [x.dtype.into(), by.storage()];
    let Activation {
        scale,
        shift,
        slope,
    } = around
        .activation
        .map_or_else(|| Activation::none(&x), Activation::full);
    // SAFETY: cubes behind the last return at once; a voxel behind the last lies outside the map for every tap and is not
    // written; columns are clamped to those that the packed weight has, and its rows are filled up to whole steps.
    unsafe {
        tiled_kernel::launch_unchecked(
            &out.client.clone(),
            cubes(&out, count, dim),
            dim,
            vector,
            out_vector,
            x.into_tensor_arg(),
            around.joined.unwrap_or_else(nothing).into_tensor_arg(),
            packed.matrix.clone().into_tensor_arg(),
            packed.bias.clone().into_tensor_arg(),
            scale.into_tensor_arg(),
            shift.into_tensor_arg(),
            slope.into_tensor_arg(),
            around.added.unwrap_or_else(nothing).into_tensor_arg(),
            out.clone().into_tensor_arg(),
            count,
            column_tiles,
            map.voxels(),
            first_lanes,
            lanes,
            packed.columns / vector,
            packed.output / out_vector,
            map.depth as u32,
            map.height as u32,
            map.width as u32,
            tiles,
            types,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tiles::Format;
    use super::*;

    #[test]
    fn tiles_fill_the_processors_or_are_small() {
        let tiles = Tiles {
            kernel: [3; 3],
            groups: [1, 1],
            tiles: [1, 1],
            terms: 32,
            vector: 8,
            activated: true,
            joined: false,
            finish: Finish::Store,
            by: Multiplier {
                format: Format::Bf16,
                emulated: false,
            },
        };
        let of = |voxels: usize, columns: usize| {
            let map = Map {
                batch: 1,
                depth: 1,
                height: 1,
                width: voxels,
            };
            tiles.choose(map, columns, 132, 227 << 10)
        };
        for (voxels, columns) in [
            (1 << 20, 32),
            (1 << 15, 128),
            (4096, 256),
            (512, 512),
            (27, 16),
            (1 << 18, 96),
            (1 << 15, 384),
        ] {
            let tiles = of(voxels, columns);
            let cubes = voxels.div_ceil(tiles.rows()) * columns.div_ceil(tiles.columns());
            assert!(
                cubes >= 132 || tiles.rows() == 64,
                "{voxels} {columns}: {tiles:?}"
            );
            assert!(tiles.units() <= 256 && tiles.shared_bytes() <= 64 << 10);
            // What a unit reads of a step are whole rows.
            assert_eq!(tiles.rows() * 4 % tiles.units(), 0);
        }
        assert_eq!(
            (of(1 << 20, 32).rows(), of(1 << 20, 32).columns()),
            (128, 32)
        );
        assert_eq!(
            (of(1 << 15, 384).rows(), of(1 << 15, 384).columns()),
            (128, 128)
        );
    }
}
