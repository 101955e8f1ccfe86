//! Products of bfloat16 on the matrix units of Intel processors (Advanced Matrix Extensions: Intel 64 and IA-32 Architectures Software Developer's
//! Manual, volume 1, chapter 18; `TDPBF16PS` in volume 2): one instruction multiplies 16 rows of 16 pairs by 16 pairs of 16 columns, and adds
//! everything to 16 x 16 sums in float32.
//!
//! The compiler knows no intrinsics for them on the stable toolchain, so this is inline assembly. Only [`Tiles::run`] may rely on what the tile
//! registers hold; it configures them, uses them and gives them back.

use std::arch::asm;
use std::sync::OnceLock;

/// Columns of one tile of sums.
pub const COLUMNS: usize = 16;
/// Most rows of a tile, and most pairs along the sum.
const LARGEST: usize = 16;
/// Columns that [`Tiles::run`] computes at a time.
pub const STRIDE: usize = 2 * COLUMNS;

/// Whether this process may use the units: the processor has them, and the system lets us (Linux wants to be asked, because the registers
/// take 8 KiB in the state of every thread that uses them).
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_them() && permitted())
}

fn processor_has_them() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let leaves = std::arch::x86_64::__cpuid(0).eax;
    leaves >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx & (BF16 | TILE) == BF16 | TILE
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    unsafe extern "C" {
        fn syscall(number: i64, ...) -> i64;
    }
    // SAFETY: asks for a permission of this process and touches no memory; a system that does not know the request refuses it.
    unsafe { syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// How a matrix of `rows` x `slots` weights (a slot is a pair of bfloat16) is cut into tiles. Having one is the proof that the units may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Rows of a tile, 1 to 16.
    rows: usize,
    /// Tiles below each other that are computed together, 1 or 2.
    stack: usize,
    /// Slots of a tile, 1 to 16.
    pub depth: usize,
}

impl Tiles {
    /// The cut that wastes least; none where the units cannot be used. Neither number is 0.
    pub fn new(rows: usize, slots: usize) -> Option<Self> {
        if !available() {
            return None;
        }
        let stack = if rows <= LARGEST { 1 } else { 2 };
        let blocks = rows.div_ceil(stack * LARGEST);
        Some(Self {
            rows: rows.div_ceil(stack * blocks),
            stack,
            depth: slots.div_ceil(slots.div_ceil(LARGEST)),
        })
    }

    /// Rows that are computed together.
    pub fn block_rows(&self) -> usize {
        self.rows * self.stack
    }

    /// Where the weight of a row of a block and a slot of a group lies among the `block_rows * depth` weights of a step.
    pub fn place(&self, row: usize, slot: usize) -> usize {
        row * self.depth + slot
    }

    /// `c[row][col] += sum over step, slot of w[step][row][slot] * x[offsets[step] + slot * slot_len + col]` for the rows of a block and `cols` columns
    /// (rounded up to a multiple of [`STRIDE`]), where each `*` is the two products of a pair. A block of rows is `[row][slot]` per step.
    ///
    /// # Safety
    /// With `n` = `cols` rounded up: `w` is valid for `offsets.len() * block_rows * depth` floats, `x + offset + slot * slot_len` for `n` floats for every
    /// offset and each of the `depth` slots, `c + row * ldc` for reading and writing `n` floats for every row.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn run(
        &self,
        cols: usize,
        w: *const f32,
        x: *const f32,
        offsets: &[u32],
        slot_len: usize,
        c: *mut f32,
        ldc: usize,
    ) {
        let float = size_of::<f32>();
        let tile = self.rows * self.depth;
        let (shape, x_step, w_step, c_step) = (
            self.configuration(),
            slot_len * float,
            self.depth * float,
            ldc * float,
        );
        // SAFETY: a valid configuration (palette 1, at most 16 rows of at most 64 bytes); the units may be used, or there was no `Tiles`.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) &raw const shape, options(nostack, preserves_flags))
        };
        for from in (0..cols).step_by(STRIDE) {
            // SAFETY: the part of the contract for these columns. All tile registers are declared; the second stack of rows is touched only where
            // there is one.
            unsafe {
                let (x, c) = (x.add(from), c.add(from));
                if offsets.is_empty() {
                    continue;
                }
                if self.stack == 2 {
                    asm!(
                        "tileloadd tmm0, [{c} + {c_step}]",
                        "tileloadd tmm1, [{c} + {c_step} + 64]",
                        "tileloadd tmm2, [{below} + {c_step}]",
                        "tileloadd tmm3, [{below} + {c_step} + 64]",
                        "2:",
                        "mov {at:e}, dword ptr [{offset}]",
                        "lea {at}, [{x} + {at} * 4]",
                        "tileloadd tmm6, [{at} + {x_step}]",
                        "tileloadd tmm4, [{w} + {w_step}]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{at} + {x_step} + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "add {w}, {tile}",
                        "tileloadd tmm5, [{w} + {w_step}]",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        "add {w}, {tile}",
                        "add {offset}, 4",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{c} + {c_step}], tmm0",
                        "tilestored [{c} + {c_step} + 64], tmm1",
                        "tilestored [{below} + {c_step}], tmm2",
                        "tilestored [{below} + {c_step} + 64], tmm3",
                        c = in(reg) c,
                        below = in(reg) c.add(self.rows * ldc),
                        c_step = in(reg) c_step,
                        offset = inout(reg) offsets.as_ptr() => _,
                        steps = inout(reg) offsets.len() => _,
                        at = out(reg) _,
                        x = in(reg) x,
                        x_step = in(reg) x_step,
                        w = inout(reg) w => _,
                        w_step = in(reg) w_step,
                        tile = in(reg) tile * float,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack)
                    );
                } else {
                    asm!(
                        "tileloadd tmm0, [{c} + {c_step}]",
                        "tileloadd tmm1, [{c} + {c_step} + 64]",
                        "2:",
                        "mov {at:e}, dword ptr [{offset}]",
                        "lea {at}, [{x} + {at} * 4]",
                        "tileloadd tmm4, [{w} + {w_step}]",
                        "tileloadd tmm6, [{at} + {x_step}]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm7, [{at} + {x_step} + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "add {w}, {tile}",
                        "add {offset}, 4",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{c} + {c_step}], tmm0",
                        "tilestored [{c} + {c_step} + 64], tmm1",
                        c = in(reg) c,
                        c_step = in(reg) c_step,
                        offset = inout(reg) offsets.as_ptr() => _,
                        steps = inout(reg) offsets.len() => _,
                        at = out(reg) _,
                        x = in(reg) x,
                        x_step = in(reg) x_step,
                        w = inout(reg) w => _,
                        w_step = in(reg) w_step,
                        tile = in(reg) tile * float,
                        out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                        options(nostack)
                    );
                }
            }
        }
        // SAFETY: nothing needs what the tile registers hold; without this the system would keep saving them.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }

    /// Sums in tiles 0 to 3, weights in 4 and 5, columns in 6 and 7.
    fn configuration(&self) -> Configuration {
        let mut shape = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let (rows, depth) = (self.rows as u8, self.depth as u8);
        for tile in 0..8 {
            let (bytes, rows) = match tile {
                0..4 => (64, rows),
                4 | 5 => (4 * u16::from(depth), rows),
                _ => (64, depth),
            };
            (shape.row_bytes[tile], shape.rows[tile]) = (bytes, rows);
        }
        shape
    }
}

/// Operand of `LDTILECFG`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest bfloat16.
    fn rounded(value: f32) -> f32 {
        let bits = value.to_bits();
        f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    }

    fn pair(first: f32, second: f32) -> f32 {
        f32::from_bits(rounded(first).to_bits() >> 16 | rounded(second).to_bits())
    }

    #[test]
    fn tiles_multiply_pairs() {
        if !available() {
            eprintln!("skipped: this processor has no matrix units for bfloat16");
            return;
        }
        let value = |n: usize| ((n * 37 % 101) as f32 - 50.0) / 64.0;
        for (rows, slots, steps, cols) in [
            (3usize, 2usize, 1usize, 5usize),
            (1, 1, 1, 1),
            (8, 12, 1, 33),
            (24, 12, 5, 64),
            (48, 40, 3, 20),
            (17, 3, 2, 70),
        ] {
            let tiles = Tiles::new(rows, slots).unwrap();
            let (block, depth) = (tiles.block_rows(), tiles.depth);
            let n = cols.next_multiple_of(STRIDE);
            let slot_len = n + 5;
            let x_pair = |step: usize, slot: usize, col: usize| {
                let at = (step * depth + slot) * slot_len + col;
                [value(3 * at), value(5 * at + 1)]
            };
            let w_pair = |step: usize, row: usize, slot: usize| {
                let at = (step * block + row) * depth + slot;
                [value(7 * at + 2), value(11 * at)]
            };
            let mut x = vec![0.0; steps * depth * slot_len];
            let mut w = vec![0.0; steps * block * depth];
            for step in 0..steps {
                for slot in 0..depth {
                    for col in 0..n {
                        let [a, b] = x_pair(step, slot, col);
                        x[(step * depth + slot) * slot_len + col] = pair(a, b);
                    }
                    for row in 0..block {
                        let [a, b] = w_pair(step, row, slot);
                        w[step * block * depth + tiles.place(row, slot)] = pair(a, b);
                    }
                }
            }
            let offsets: Vec<u32> = (0..steps)
                .map(|step| (step * depth * slot_len) as u32)
                .collect();
            let mut c: Vec<f32> = (0..block * n).map(value).collect();
            let before = c.clone();
            // SAFETY: the buffers were made to measure.
            unsafe {
                tiles.run(
                    cols,
                    w.as_ptr(),
                    x.as_ptr(),
                    &offsets,
                    slot_len,
                    c.as_mut_ptr(),
                    n,
                )
            };
            for row in 0..block {
                for col in 0..n {
                    let mut want = f64::from(before[row * n + col]);
                    for step in 0..steps {
                        for slot in 0..depth {
                            let (x, w) = (x_pair(step, slot, col), w_pair(step, row, slot));
                            for (x, w) in x.into_iter().zip(w) {
                                want += f64::from(rounded(x)) * f64::from(rounded(w));
                            }
                        }
                    }
                    let got = f64::from(c[row * n + col]);
                    assert!(
                        (got - want).abs() < 1e-4,
                        "{got}, not {want}: {tiles:?} at {row}, {col}"
                    );
                }
            }
        }
    }
}
