//! The one inner kernel of all products: a tile of `ROWS` x `VECTORS` registers,
//! `c[row][col] += sum over step of w[step][row] * x[offsets[step] + col]`.
//!
//! With columns = output positions and steps = (input channel, tap) it is the convolution; with columns = (tap along x, input channel) and
//! steps = positions it is the gradient of the weights. The offsets make a padded volume (or a gathered matrix) look like a matrix.

use super::simd::{Isa, Level, Portable, Vector, per_isa};

/// See [`Kernel::run`] for the contract.
type Micro = unsafe fn(
    w: *const f32,
    x: *const f32,
    offsets: &[u32],
    c: *mut f32,
    ldc: usize,
    start: *const f32,
);

/// A family of register tiles with the same number of rows.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// Rows of a tile: the packed weights hold this many floats per step.
    pub rows: usize,
    /// Floats per vector.
    pub lanes: usize,
    /// `tiles[n - 1]` computes `n` vectors of columns.
    tiles: &'static [Micro],
}

impl Kernel {
    /// The tile shape that wastes least for so many rows.
    pub fn for_rows(isa: Isa, rows: usize) -> Self {
        match isa.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                const TWELVE: &[Micro] = &[avx512::<12, 1>, avx512::<12, 2>];
                const EIGHT: &[Micro] = &[avx512::<8, 1>, avx512::<8, 2>, avx512::<8, 3>];
                const FOUR: &[Micro] = &[
                    avx512::<4, 1>,
                    avx512::<4, 2>,
                    avx512::<4, 3>,
                    avx512::<4, 4>,
                    avx512::<4, 5>,
                    avx512::<4, 6>,
                ];
                let (rows, tiles) = match rows {
                    0..=4 => (4, FOUR),
                    _ if rows.next_multiple_of(12) <= rows.next_multiple_of(8) => (12, TWELVE),
                    _ => (8, EIGHT),
                };
                Self {
                    rows,
                    lanes: 16,
                    tiles,
                }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                const SIX: &[Micro] = &[avx2::<6, 1>, avx2::<6, 2>];
                const FOUR: &[Micro] = &[avx2::<4, 1>, avx2::<4, 2>, avx2::<4, 3>];
                let (rows, tiles) = if rows.next_multiple_of(6) <= rows.next_multiple_of(4) {
                    (6, SIX)
                } else {
                    (4, FOUR)
                };
                Self {
                    rows,
                    lanes: 8,
                    tiles,
                }
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => {
                use std::arch::aarch64::float32x4_t as Neon;
                // 24 of the 32 registers hold sums.
                const EIGHT: &[Micro] =
                    &[tile::<Neon, 8, 1>, tile::<Neon, 8, 2>, tile::<Neon, 8, 3>];
                const FOUR: &[Micro] = &[
                    tile::<Neon, 4, 1>,
                    tile::<Neon, 4, 2>,
                    tile::<Neon, 4, 3>,
                    tile::<Neon, 4, 4>,
                    tile::<Neon, 4, 5>,
                    tile::<Neon, 4, 6>,
                ];
                let (rows, tiles) = if rows.next_multiple_of(8) <= rows.next_multiple_of(4) {
                    (8, EIGHT)
                } else {
                    (4, FOUR)
                };
                Self {
                    rows,
                    lanes: 4,
                    tiles,
                }
            }
            Level::Portable => {
                const FOUR: &[Micro] = &[tile::<Portable, 4, 1>, tile::<Portable, 4, 2>];
                Self {
                    rows: 4,
                    lanes: 4,
                    tiles: FOUR,
                }
            }
        }
    }

    /// As [`Self::for_rows`], for factors that are pairs of bfloat16, both of which are multiplied in one step; none where the processor has no
    /// such products.
    pub fn for_pairs(isa: Isa, rows: usize) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if isa.has_bf16() {
            const TWELVE: &[Micro] = &[pairs::<12, 1>, pairs::<12, 2>];
            const EIGHT: &[Micro] = &[pairs::<8, 1>, pairs::<8, 2>, pairs::<8, 3>];
            const FOUR: &[Micro] = &[
                pairs::<4, 1>,
                pairs::<4, 2>,
                pairs::<4, 3>,
                pairs::<4, 4>,
                pairs::<4, 5>,
                pairs::<4, 6>,
            ];
            let f32 = Self::for_rows(isa, rows);
            let tiles = match f32.rows {
                4 => FOUR,
                8 => EIGHT,
                _ => TWELVE,
            };
            return Some(Self { tiles, ..f32 });
        }
        let _ = (isa, rows);
        None
    }

    /// The largest number of columns of one tile.
    pub fn columns(&self) -> usize {
        self.tiles.len() * self.lanes
    }

    /// Computes `cols` columns (rounded up to whole vectors) from `x` on. `start`: the value each row starts from, or null to continue from `c`.
    ///
    /// # Safety
    /// With `n` = `cols` rounded up to a multiple of `lanes`: `w` is valid for `offsets.len() * rows` floats, `x + offset` for `n` floats for every
    /// offset, `c + row * ldc` for reading and writing `n` floats for every row, and `start` (if not null) for `rows` floats.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn run(
        &self,
        cols: usize,
        w: *const f32,
        x: *const f32,
        offsets: &[u32],
        c: *mut f32,
        ldc: usize,
        start: *const f32,
    ) {
        let mut done = 0;
        while done < cols {
            let vectors = (cols - done).div_ceil(self.lanes).min(self.tiles.len());
            // SAFETY: the part of the contract for these columns. A kernel for an instruction set is reached only through its `Isa`.
            unsafe { self.tiles[vectors - 1](w, x.add(done), offsets, c.add(done), ldc, start) };
            done += vectors * self.lanes;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const ROWS: usize, const VECTORS: usize>(
    w: *const f32,
    x: *const f32,
    offsets: &[u32],
    c: *mut f32,
    ldc: usize,
    start: *const f32,
) {
    // SAFETY: the contract of `tile`.
    unsafe { tile::<std::arch::x86_64::__m512, ROWS, VECTORS>(w, x, offsets, c, ldc, start) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pairs<const ROWS: usize, const VECTORS: usize>(
    w: *const f32,
    x: *const f32,
    offsets: &[u32],
    c: *mut f32,
    ldc: usize,
    start: *const f32,
) {
    // SAFETY: the contract of `tile`.
    unsafe { tile::<super::simd::Pairs, ROWS, VECTORS>(w, x, offsets, c, ldc, start) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const ROWS: usize, const VECTORS: usize>(
    w: *const f32,
    x: *const f32,
    offsets: &[u32],
    c: *mut f32,
    ldc: usize,
    start: *const f32,
) {
    // SAFETY: the contract of `tile`.
    unsafe { tile::<std::arch::x86_64::__m256, ROWS, VECTORS>(w, x, offsets, c, ldc, start) }
}

/// # Safety
/// The contract of [`Kernel::run`] for `VECTORS` vectors; the caller is compiled for the instruction set of `V`.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const VECTORS: usize>(
    w: *const f32,
    x: *const f32,
    offsets: &[u32],
    c: *mut f32,
    ldc: usize,
    start: *const f32,
) {
    // SAFETY: every pointer stays in the ranges that the contract states.
    unsafe {
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = if start.is_null() {
                    V::load(c.add(row * ldc + v * V::LANES))
                } else {
                    V::splat(*start.add(row))
                };
            }
        }
        let mut w = w;
        for &offset in offsets {
            let x = x.add(offset as usize);
            let mut columns = [V::splat(0.0); VECTORS];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = V::load(x.add(v * V::LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let weight = V::splat(*w.add(row));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = sum.add_product(weight, column);
                }
            }
            w = w.add(ROWS);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(c.add(row * ldc + v * V::LANES));
            }
        }
    }
}

per_isa! {
    /// `to[i * to_step + row] = from[row * from_step + i]` for `rows` rows of `len`.
    pub fn transpose(from: &[f32], from_step: usize, rows: usize, len: usize, to: &mut [f32], to_step: usize) {
        let mut row = 0;
        // Four rows at a time: squares of 4 x 4 become shuffles.
        while row + 4 <= rows {
            let [a, b, c, d] = std::array::from_fn(|i| from[(row + i) * from_step..][..len].as_chunks::<4>().0);
            for (i, (((a, b), c), d)) in a.iter().zip(b).zip(c).zip(d).enumerate() {
                for j in 0..4 {
                    to[(4 * i + j) * to_step + row..][..4].copy_from_slice(&[a[j], b[j], c[j], d[j]]);
                }
            }
            for row in row..row + 4 {
                for i in len / 4 * 4..len {
                    to[i * to_step + row] = from[row * from_step + i];
                }
            }
            row += 4;
        }
        for row in row..rows {
            for (to, from) in to[row..].iter_mut().step_by(to_step).zip(&from[row * from_step..][..len]) {
                *to = *from;
            }
        }
    }
}
