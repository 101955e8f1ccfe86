//! Products of 16x16 tiles out of shared memory, summed in float32: on the tensor units of a GPU, or the same arithmetic on
//! ordinary ones.
//!
//! [`Multiplier`] says how values are rounded before they are multiplied, and whether the instruction of the tensor units
//! is used. Everything around that instruction (loads, masks, layouts in shared memory, what happens to the sums) is one
//! code, so devices without tensor units can test it.
//!
//! A group of 32 units (a warp) owns a block of tiles. Its unit `l` handles, whenever values leave or enter a tile one by
//! one, row `l / 2` and the eight columns from `l % 2 * 8`.
//!
//! An H100 multiplies 990 TFLOP/s in bf16 or f16 and 495 in TF32, against 67 on ordinary units, and reads 3.35 TB/s: a
//! kernel is bound by memory below 295 operations per byte in bf16 and below 148 in TF32.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::{
    ir::{ElemType, FloatKind, features::MmaConfig},
    prelude::*,
};
use half::f16;

/// Rows and columns of a tile.
pub const SIDE: usize = 16;
/// Units that multiply together.
pub const GROUP: usize = 32;
/// Values of a tile that one of them handles.
pub const SHARE: usize = SIDE * SIDE / GROUP;
/// Distance of a tile's rows where its sums are put down.
pub const SUMS_STRIDE: usize = SIDE + 4;

/// What values are rounded to before they are multiplied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// 10 bits after the point, 5 of exponent.
    F16,
    /// 7 bits after the point, 8 of exponent.
    Bf16,
    /// 10 bits after the point, 8 of exponent, in 32 bits.
    Tf32,
}

impl Format {
    /// The format in which tensor units multiply maps of a type.
    fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::Tf32),
            DType::BF16 => Some(Self::Bf16),
            DType::F16 => Some(Self::F16),
            _ => None,
        }
    }

    fn element(self) -> ElemType {
        ElemType::Float(match self {
            Self::F16 => FloatKind::F16,
            Self::Bf16 => FloatKind::BF16,
            Self::Tf32 => FloatKind::TF32,
        })
    }
}

/// How tiles are multiplied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Multiplier {
    /// Of the factors.
    pub format: Format,
    /// On ordinary units: factors lie in shared memory as float32, rounded to the format.
    pub emulated: bool,
}

impl Multiplier {
    /// Terms that one instruction sums.
    pub fn depth(self) -> usize {
        match self.format {
            Format::Tf32 => 8,
            Format::F16 | Format::Bf16 => 16,
        }
    }

    /// The type of factors in shared memory.
    pub fn storage(self) -> StorageType {
        if self.emulated {
            ElemType::Float(FloatKind::F32).into()
        } else {
            self.format.element().into()
        }
    }
}

/// The tensor units for products of maps of this type, where the device has them and its groups are those of the kernels.
pub fn multiplier<R: CubeRuntime>(like: &CubeTensor<R>) -> Option<Multiplier> {
    #[cfg(test)]
    if let Some(forced) = emulation::current() {
        return forced;
    }
    let format = Format::of(like.dtype)?;
    let multiplier = Multiplier {
        format,
        emulated: false,
    };
    let properties = like.client.properties();
    let hardware = &properties.hardware;
    let groups = [hardware.plane_size_min, hardware.plane_size_max] == [GROUP as u32; 2];
    let wanted = MmaConfig {
        a_type: format.element().into(),
        b_type: format.element().into(),
        cd_type: ElemType::Float(FloatKind::F32).into(),
        m: SIDE as u32,
        n: SIDE as u32,
        k: multiplier.depth() as u32,
    };
    (groups && properties.features.matmul.cmma.contains(&wanted)).then_some(multiplier)
}

/// Values that are read from memory at once: 16 bytes where the device's vectors are that long.
pub fn load_vector<R: CubeRuntime>(like: &CubeTensor<R>) -> usize {
    let most = like.client.properties().hardware.max_vector_size;
    (16 / like.dtype.size()).min(most.max(1)).min(8)
}

/// Says how the operations of this thread's tests multiply.
#[cfg(test)]
pub mod emulation {
    use super::{Format, Multiplier};
    use std::cell::Cell;

    thread_local! {
        static FORCED: Cell<Option<Option<Multiplier>>> = const { Cell::new(None) };
    }

    pub fn current() -> Option<Option<Multiplier>> {
        FORCED.get()
    }

    /// Runs `body` with products in `format` on emulated tensor units.
    pub fn with<T>(format: Format, body: impl FnOnce() -> T) -> T {
        let emulated = Multiplier {
            format,
            emulated: true,
        };
        force(Some(emulated), body)
    }

    /// Runs `body` without tensor units.
    #[cfg(feature = "cuda-sources")]
    pub fn without<T>(body: impl FnOnce() -> T) -> T {
        force(None, body)
    }

    fn force<T>(multiplier: Option<Multiplier>, body: impl FnOnce() -> T) -> T {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                FORCED.set(None);
            }
        }
        let _reset = Reset;
        FORCED.set(Some(multiplier));
        body()
    }
}

/// Where the tiles of a product lie in shared memory. Strides are in values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Block {
    /// Tiles below each other, of the left side.
    pub down: usize,
    /// Tiles side by side, of the right side.
    pub across: usize,
    /// Terms.
    pub terms: usize,
    /// From one row of the left side to the next, or from one term to the next where `left_by_term`.
    pub left_stride: usize,
    /// From one term of the right side to the next, or from one column to the next where not `right_by_term`.
    pub right_stride: usize,
    /// The left side is stored term by term.
    pub left_by_term: bool,
    /// The right side is stored term by term.
    pub right_by_term: bool,
}

impl Block {
    /// Where a tile of the left side begins, from its first term on, in values.
    fn left_start(&self, tile: usize, term: usize) -> usize {
        if self.left_by_term {
            term * self.left_stride + tile * SIDE
        } else {
            tile * SIDE * self.left_stride + term
        }
    }

    /// Where a tile of the right side begins.
    fn right_start(&self, tile: usize, term: usize) -> usize {
        if self.right_by_term {
            term * self.right_stride + tile * SIDE
        } else {
            tile * SIDE * self.right_stride + term
        }
    }
}

/// Sums of a group's tiles.
#[derive(CubeType)]
pub struct Sums {
    fragments: Sequence<cmma::Matrix<f32>>,
    plain: Array<f32>,
}

/// Zeros for `count` tiles.
#[cube]
pub fn no_sums(#[comptime] count: usize, #[comptime] by: Multiplier) -> Sums {
    let mut fragments = Sequence::<cmma::Matrix<f32>>::new();
    let mut plain = Array::<f32>::new(comptime![if by.emulated { count * SHARE } else { 1 }]);
    if comptime![by.emulated] {
        for i in 0..comptime![count * SHARE] {
            plain[i] = 0.0f32;
        }
    } else {
        #[unroll]
        for _tile in 0..count {
            fragments.push(cmma::Matrix::<f32>::from_value(
                cmma::MatrixIdent::Accumulator,
                SIDE,
                SIDE,
                comptime![by.depth()],
                cmma::MatrixLayout::Undefined,
                0.0f32,
            ));
        }
    }
    Sums { fragments, plain }
}

/// Rounds as the format does.
#[cube]
pub fn round_to<N: Size>(value: Vector<f32, N>, #[comptime] format: Format) -> Vector<f32, N> {
    if comptime![format == Format::F16] {
        Vector::cast_from(Vector::<f16, N>::cast_from(value))
    } else if comptime![format == Format::Bf16] {
        let bits = Vector::<u32, N>::reinterpret(value);
        let odd = (bits >> Vector::new(16u32)) & Vector::new(1u32);
        let rounded = (bits + Vector::new(0x7fffu32) + odd) & Vector::new(0xffff0000u32);
        Vector::<f32, N>::reinterpret(rounded)
    } else {
        let bits = Vector::<u32, N>::reinterpret(value);
        let rounded = (bits + Vector::new(0x1000u32)) & Vector::new(0xffffe000u32);
        Vector::<f32, N>::reinterpret(rounded)
    }
}

/// A value as a factor.
#[cube]
pub fn factor<S: Float, N: Size>(
    value: Vector<f32, N>,
    #[comptime] by: Multiplier,
) -> Vector<S, N> {
    if comptime![by.emulated] {
        Vector::cast_from(round_to::<N>(value, by.format))
    } else {
        Vector::cast_from(value)
    }
}

/// A result as it will be stored, in float32: emulated tensor units round where a map of the format would.
#[cube]
pub fn result<N: Size>(value: Vector<f32, N>, #[comptime] by: Multiplier) -> Vector<f32, N> {
    if comptime![by.emulated && by.format != Format::Tf32] {
        round_to::<N>(value, by.format)
    } else {
        value
    }
}

/// One value of a vector whose place is not known before.
#[cube]
fn component<S: Float, N: Size>(vector: Vector<S, N>, at: usize) -> f32 {
    let mut value = 0.0f32;
    #[unroll]
    for i in 0..N::value() {
        value = select(at == i, f32::cast_from(vector[i]), value);
    }
    value
}

#[cube]
fn layout(#[comptime] rows: bool) -> cmma::MatrixLayout {
    if comptime![rows] {
        cmma::MatrixLayout::RowMajor
    } else {
        cmma::MatrixLayout::ColMajor
    }
}

/// Adds the product of a group's tiles, which begin at `left_at` and `right_at` (in vectors), to its sums.
#[cube]
pub fn multiply<S: Float, NL: Size, NR: Size>(
    left: &SharedMemory<Vector<S, NL>>,
    left_at: usize,
    right: &SharedMemory<Vector<S, NR>>,
    right_at: usize,
    sums: &mut Sums,
    #[comptime] block: Block,
    #[comptime] by: Multiplier,
) {
    if comptime![by.emulated] {
        multiply_plain::<S, NL, NR>(left, left_at, right, right_at, sums, block);
    } else {
        let depth = comptime![by.depth()];
        let left_vector = NL::value().comptime();
        let right_vector = NR::value().comptime();
        #[unroll]
        for k in 0..comptime![block.terms / by.depth()] {
            let mut lefts = Sequence::<cmma::Matrix<S>>::new();
            #[unroll]
            for i in 0..block.down {
                let tile = unsafe {
                    cmma::Matrix::<S>::uninitialized(
                        cmma::MatrixIdent::A,
                        SIDE,
                        SIDE,
                        depth,
                        layout(comptime![!block.left_by_term]),
                    )
                };
                let from = left_at + comptime![block.left_start(i, k * depth) / left_vector];
                cmma::load(
                    &tile,
                    &left.slice(from, from + 1),
                    comptime![block.left_stride as u32],
                );
                lefts.push(tile);
            }
            #[unroll]
            for j in 0..block.across {
                let tile = unsafe {
                    cmma::Matrix::<S>::uninitialized(
                        cmma::MatrixIdent::B,
                        SIDE,
                        SIDE,
                        depth,
                        layout(block.right_by_term),
                    )
                };
                let from = right_at + comptime![block.right_start(j, k * depth) / right_vector];
                cmma::load(
                    &tile,
                    &right.slice(from, from + 1),
                    comptime![block.right_stride as u32],
                );
                #[unroll]
                for i in 0..block.down {
                    let at = comptime![i * block.across + j];
                    cmma::execute::<S, S, f32, f32>(
                        &lefts[i],
                        &tile,
                        &sums.fragments[at],
                        &sums.fragments[at],
                    );
                }
            }
        }
    }
}

/// [`multiply`] on ordinary units: each makes its eight values of every tile.
#[cube]
fn multiply_plain<S: Float, NL: Size, NR: Size>(
    left: &SharedMemory<Vector<S, NL>>,
    left_at: usize,
    right: &SharedMemory<Vector<S, NR>>,
    right_at: usize,
    sums: &mut Sums,
    #[comptime] block: Block,
) {
    let lane = UNIT_POS as usize % GROUP;
    let row = lane / 2;
    let column = lane % 2 * SHARE;
    for i in 0..block.down {
        for j in 0..block.across {
            for k in 0..block.terms {
                let from = if comptime![block.left_by_term] {
                    k * block.left_stride + i * SIDE + row
                } else {
                    (i * SIDE + row) * block.left_stride + k
                };
                let a = component::<S, NL>(left[left_at + from / NL::value()], from % NL::value());
                #[unroll]
                for e in 0..SHARE {
                    let from = if comptime![block.right_by_term] {
                        k * block.right_stride + j * SIDE + column + e
                    } else {
                        (j * SIDE + column + e) * block.right_stride + k
                    };
                    let b = component::<S, NR>(
                        right[right_at + from / NR::value()],
                        from % NR::value(),
                    );
                    sums.plain[(i * block.across + j) * SHARE + e] += a * b;
                }
            }
        }
    }
}

/// Puts tile number `tile` of the sums down at `to`, row by row, [`SUMS_STRIDE`] apart.
#[cube]
pub fn put_down(
    sums: &Sums,
    #[comptime] tile: usize,
    shared: &mut SharedMemory<f32>,
    to: usize,
    #[comptime] by: Multiplier,
) {
    put_down_strided(sums, tile, shared, to, SUMS_STRIDE, by);
}

/// [`put_down`] with another distance of the rows.
#[cube]
fn put_down_strided(
    sums: &Sums,
    #[comptime] tile: usize,
    shared: &mut SharedMemory<f32>,
    to: usize,
    #[comptime] stride: usize,
    #[comptime] by: Multiplier,
) {
    if comptime![by.emulated] {
        let lane = UNIT_POS as usize % GROUP;
        let start = to + lane / 2 * stride + lane % 2 * SHARE;
        #[unroll]
        for e in 0..SHARE {
            shared[start + e] = sums.plain[tile * SHARE + e];
        }
    } else {
        cmma::store(
            &mut shared.slice_mut(to, to + comptime![SIDE * stride]),
            &sums.fragments[tile],
            comptime![stride as u32],
            cmma::MatrixLayout::RowMajor,
        );
    }
}

/// Puts `count` tiles of the sums down side by side, the first at `to`, rows `stride` apart.
#[cube]
pub fn put_down_row(
    sums: &Sums,
    shared: &mut SharedMemory<f32>,
    to: usize,
    #[comptime] count: usize,
    #[comptime] stride: usize,
    #[comptime] by: Multiplier,
) {
    #[unroll]
    for i in 0..count {
        put_down_strided(sums, i, shared, to + i * SIDE, stride, by);
    }
}

/// Waits until the units of a group see what the others have put into shared memory. Groups of ordinary units need not run
/// in step, so they wait for the whole cube: all groups must get here.
#[cube]
pub fn sync_group(#[comptime] by: Multiplier) {
    if comptime![by.emulated] {
        sync_cube();
    } else {
        sync_plane();
    }
}
