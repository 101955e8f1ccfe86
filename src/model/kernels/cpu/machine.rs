//! What this machine could do at most: the two numbers that every kernel is measured against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::amx::{STRIDE, Tiles};
use super::micro::Kernel;
use super::simd::zeroed;

/// How long a measurement repeats its work; the best repetition counts.
const PATIENCE: Duration = Duration::from_millis(400);

/// Multiplications and additions per second of the inner kernel on data that stays in the first-level cache, with all threads of rayon's current
/// pool; `bf16`: of pairs of bfloat16, on matrix units where there are any. `None` where the processor has no such products.
pub fn peak_operations_per_s(bf16: bool) -> Option<f64> {
    const ROWS: usize = 12;
    const STEPS: usize = 64;
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = bf16.then(|| Tiles::new(32, 16)).flatten() {
        return Some(tiles_operations_per_s(tiles));
    }
    let isa = Isa::best();
    let (kernel, per_product) = if bf16 {
        (Kernel::for_pairs(isa, ROWS)?, 4.0)
    } else {
        (Kernel::for_rows(isa, ROWS), 2.0)
    };
    let (columns, calls) = (kernel.columns(), 20_000);
    let offsets: Vec<u32> = (0..STEPS).map(|step| (step * columns) as u32).collect();
    let work = |_| {
        let (weights, input) = (vec![0f32; STEPS * kernel.rows], vec![0f32; STEPS * columns]);
        let (mut sums, start) = (vec![0f32; kernel.rows * columns], vec![0f32; kernel.rows]);
        for _ in 0..calls {
            // SAFETY: the weights have `rows` floats per step, every offset has `columns` floats behind it, the sums are `rows` x `columns`.
            unsafe {
                kernel.run(
                    columns,
                    weights.as_ptr(),
                    input.as_ptr(),
                    &offsets,
                    black_box(&mut sums).as_mut_ptr(),
                    columns,
                    start.as_ptr(),
                )
            };
        }
    };
    let threads = rayon::current_num_threads();
    let seconds = best(|| (0..threads).into_par_iter().for_each(work));
    let products = threads * calls * STEPS * kernel.rows * columns;
    Some(per_product * products as f64 / seconds)
}

/// The same for matrix units: pairs on tiles that stay in the first-level cache.
#[cfg(target_arch = "x86_64")]
fn tiles_operations_per_s(tiles: Tiles) -> f64 {
    const STEPS: usize = 8;
    let calls = 20_000;
    let (rows, depth) = (tiles.block_rows(), tiles.depth);
    let offsets = [0; STEPS];
    let work = |_| {
        let weights = vec![0f32; STEPS * rows * depth];
        let (input, mut sums) = (vec![0f32; depth * STRIDE], vec![0f32; rows * STRIDE]);
        for _ in 0..calls {
            // SAFETY: one stride of columns for every slot and row, and weights for every step.
            unsafe {
                tiles.run(
                    STRIDE,
                    weights.as_ptr(),
                    input.as_ptr(),
                    &offsets,
                    STRIDE,
                    black_box(&mut sums).as_mut_ptr(),
                    STRIDE,
                )
            };
        }
    };
    let threads = rayon::current_num_threads();
    let seconds = best(|| (0..threads).into_par_iter().for_each(work));
    4.0 * (threads * calls * STEPS * rows * depth * STRIDE) as f64 / seconds
}

/// Bytes per second of copying memory that is far larger than the caches, with all threads; reading and writing both count.
pub fn bandwidth_bytes_per_s() -> f64 {
    const LEN: usize = 64 << 20;
    let (from, mut to) = (zeroed(LEN), zeroed(LEN));
    let part = LEN.div_ceil(rayon::current_num_threads());
    let seconds = best(|| {
        let parts = to.par_chunks_mut(part).zip(from.par_chunks(part));
        parts.for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut to);
    });
    (2 * LEN * size_of::<f32>()) as f64 / seconds
}

/// The least seconds that `work` took.
fn best(mut work: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || started.elapsed() < PATIENCE {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}
