//! Fully connected layers on rows of channels: products of matrices with the inner kernel of the convolutions.

use std::ops::Range;

use super::Isa;
use super::micro::{Kernel, transpose};
use super::simd::{Output, ranges, with_scratch};

/// Floats of the right factor, and of a task's result, that are to stay in the second-level cache.
const KEPT: usize = 128 * 1024;

/// `x[rows, in] * weight[out, in]^T + bias[out]`: `[rows, out]`.
pub fn linear(x: &[f32], weight: &[f32], bias: &[f32], input: usize) -> Vec<f32> {
    linear_on(Isa::best(), x, weight, bias, input)
}

fn linear_on(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], input: usize) -> Vec<f32> {
    let output = bias.len();
    let mut right = vec![0.0; weight.len()];
    transpose(isa, weight, input, output, input, &mut right, output);
    let sides = [x.len() / input.max(1), input, output];
    product(isa, Left::Rows(x), &right, sides, Some(bias))
}

/// Gradient of [`linear`] for its input, `grad[rows, out] * weight[out, in]`: `[rows, in]`.
pub fn linear_input_grad(weight: &[f32], grad: &[f32], input: usize) -> Vec<f32> {
    input_grad_on(Isa::best(), weight, grad, input)
}

fn input_grad_on(isa: Isa, weight: &[f32], grad: &[f32], input: usize) -> Vec<f32> {
    let output = weight.len() / input.max(1);
    let sides = [grad.len() / output.max(1), output, input];
    product(isa, Left::Rows(grad), weight, sides, None)
}

/// Gradient of [`linear`] for its weight, `grad[rows, out]^T * x[rows, in]`: `[out, in]`.
pub fn linear_weight_grad(x: &[f32], grad: &[f32], input: usize) -> Vec<f32> {
    weight_grad_on(Isa::best(), x, grad, input)
}

fn weight_grad_on(isa: Isa, x: &[f32], grad: &[f32], input: usize) -> Vec<f32> {
    let rows = x.len() / input.max(1);
    let sides = [grad.len() / rows.max(1), rows, input];
    product(isa, Left::Terms(grad), x, sides, None)
}

/// The left factor of a product.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// `[rows, terms]`.
    Rows(&'a [f32]),
    /// `[terms, rows]`.
    Terms(&'a [f32]),
}

impl Left<'_> {
    /// `count` rows from `row` on as the kernel reads them: all rows of a term, `step` floats from one term to the next.
    fn pack(
        self,
        isa: Isa,
        [row, count]: [usize; 2],
        [rows, terms]: [usize; 2],
        part: Range<usize>,
        packed: &mut [f32],
        step: usize,
    ) {
        match self {
            Self::Rows(x) => {
                let x = &x[row * terms + part.start..];
                transpose(isa, x, terms, count, part.len(), packed, step);
            }
            Self::Terms(x) => {
                for (term, packed) in part.zip(packed.chunks_exact_mut(step)) {
                    packed[..count].copy_from_slice(&x[term * rows + row..][..count]);
                }
            }
        }
    }
}

/// `left[rows, terms] * right[terms, columns]`, plus a bias per column. Each value is summed term by term, so neither blocks nor threads show.
fn product(
    isa: Isa,
    left: Left<'_>,
    right: &[f32],
    [rows, terms, columns]: [usize; 3],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let micro = Kernel::for_rows(isa, rows);
    let wide = columns.next_multiple_of(micro.lanes);
    if wide != columns {
        let right = widened(right, columns, wide);
        let bias = bias.map(|bias| widened(bias, columns, wide));
        let y = product(isa, left, &right, [rows, terms, wide], bias.as_deref());
        let narrow = y.chunks_exact(wide).flat_map(|row| &row[..columns]);
        return narrow.copied().collect();
    }
    if rows * columns == 0 {
        return Vec::new();
    }
    let depth = (KEPT / columns).clamp(32, terms.max(32));
    let offsets: Vec<u32> = (0..depth).map(|term| (term * columns) as u32).collect();
    let share = rows.div_ceil(4 * rayon::current_num_threads());
    let most = (2 * KEPT / columns).max(1);
    let chunk = share.min(most).next_multiple_of(micro.rows);
    let task = |index: usize, y: &mut [f32]| {
        match bias {
            Some(bias) => {
                for y in y.chunks_exact_mut(columns) {
                    y.copy_from_slice(bias);
                }
            }
            None => y.fill(0.0),
        }
        let lens = [depth * micro.rows, micro.rows * columns];
        with_scratch(lens, |[packed, last]| {
            for part in ranges(terms, depth) {
                let right = &right[part.start * columns..part.end * columns];
                let offsets = &offsets[..part.len()];
                for (block, y) in y.chunks_mut(micro.rows * columns).enumerate() {
                    let row = index * chunk + block * micro.rows;
                    let own = [row, y.len() / columns];
                    left.pack(isa, own, [rows, terms], part.clone(), packed, micro.rows);
                    if own[1] == micro.rows {
                        add(micro, packed, right, offsets, y, columns);
                    } else {
                        last[..y.len()].copy_from_slice(y);
                        add(micro, packed, right, offsets, last, columns);
                        y.copy_from_slice(&last[..y.len()]);
                    }
                }
            }
        });
    };
    // SAFETY: each task first fills its part.
    unsafe { Output::in_chunks(rows * columns, chunk * columns, task) }
}

/// Adds a product of packed rows to a block of the result.
fn add(
    micro: Kernel,
    packed: &[f32],
    right: &[f32],
    offsets: &[u32],
    y: &mut [f32],
    columns: usize,
) {
    assert!(
        columns.is_multiple_of(micro.lanes)
            && packed.len() >= offsets.len() * micro.rows
            && right.len() >= offsets.len() * columns
            && y.len() >= micro.rows * columns
    );
    let (w, x, c) = (packed.as_ptr(), right.as_ptr(), y.as_mut_ptr());
    // SAFETY: the lengths are asserted above, and the last offset is that of the last term.
    unsafe { micro.run(columns, w, x, offsets, c, columns, std::ptr::null()) }
}

/// Rows of `columns` set apart to `wide`, zeros between them.
fn widened(x: &[f32], columns: usize, wide: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / columns.max(1) * wide];
    for (y, x) in y.chunks_exact_mut(wide).zip(x.chunks_exact(columns.max(1))) {
        y[..columns].copy_from_slice(x);
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, relative_error};
    use super::*;
    use proptest::prelude::*;

    /// By the definition, in float64.
    fn plain(
        [rows, terms, columns]: [usize; 3],
        term: impl Fn(usize, usize, usize) -> f64,
    ) -> Vec<f64> {
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        places
            .map(|(row, column)| (0..terms).map(|at| term(row, at, column)).sum())
            .collect()
    }

    fn check(rows: usize, input: usize, output: usize, seed: u64) {
        let (x, weight) = (noise(seed, rows * input), noise(seed + 1, output * input));
        let (bias, grad) = (noise(seed + 2, output), noise(seed + 3, rows * output));
        let f = f64::from;
        let y = plain([rows, input, output], |row, at, column| {
            f(x[row * input + at]) * f(weight[column * input + at]) + f(bias[column]) / input as f64
        });
        let dx = plain([rows, output, input], |row, at, column| {
            f(grad[row * output + at]) * f(weight[at * input + column])
        });
        let dw = plain([output, rows, input], |row, at, column| {
            f(grad[at * output + row]) * f(x[at * input + column])
        });
        for isa in Isa::available() {
            let close = |got: Vec<f32>, want: &[f64], terms: usize| {
                let error = relative_error(&got, want, (terms as f64).sqrt() / 3.0);
                assert!(error < 2e-6, "{isa:?} {rows} {input} {output}: {error}");
            };
            close(linear_on(isa, &x, &weight, &bias, input), &y, input);
            close(input_grad_on(isa, &weight, &grad, input), &dx, output);
            close(weight_grad_on(isa, &x, &grad, input), &dw, rows);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn products_are_those_of_the_definition(
            rows in 1usize..70, input in 1usize..70, output in 1usize..70, seed in 0u64..99,
        ) {
            check(rows, input, output, seed);
        }
    }

    #[test]
    fn long_sums_and_several_blocks() {
        check(1500, 48, 64, 1);
        check(40, 96, 3000, 2);
        check(3, 5000, 32, 3);
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let (rows, input, output) = (500, 48, 96);
        let (x, grad) = (noise(1, rows * input), noise(2, rows * output));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let weight = linear_weight_grad(&x, &grad, input);
                let y = linear(&x, &weight, &grad[..output], input);
                (linear_input_grad(&weight, &grad, input), weight, y)
            })
        };
        let one = run(1);
        assert_eq!(one, run(3));
        assert_eq!(one, run(8));
    }

    #[test]
    fn nothing_times_something_is_nothing() {
        assert!(linear(&[], &[1.0; 8], &[0.5; 2], 4).is_empty());
        assert!(linear_input_grad(&[1.0; 8], &[], 4).is_empty());
    }
}
