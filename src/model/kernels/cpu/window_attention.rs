//! Attention within windows, `softmax(q k^T * scale + bias + mask) v`, with the scores of a few queries at a time in cache.
//!
//! `q`, `k`, `v` and the result are `[windows, heads, tokens, dim]`, where `windows` counts those of all samples of the batch.

use super::Isa;
use super::math::{exp, sums};
use super::micro::{Kernel, transpose};
use super::simd::{Output, per_isa, ranges, with_scratch};
use super::softmax::largest;
use rayon::prelude::*;

mod in_map;

pub use in_map::{AttentionMap, window_attention_in_map};

/// Parts into which the windows are cut for the gradient of the bias; part of its rounding.
const PARTS: usize = 8;

/// Sizes of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub windows: usize,
    pub heads: usize,
    pub tokens: usize,
    pub dim: usize,
}

impl AttentionShape {
    fn len(&self) -> usize {
        self.windows * self.heads * self.matrix()
    }

    /// Length of one `[tokens, dim]`.
    fn matrix(&self) -> usize {
        self.tokens * self.dim
    }
}

/// What the scores are made of besides `q` and `k`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBias<'a> {
    pub scale: f32,
    /// `[heads, tokens, tokens]`, added to the scores.
    pub bias: &'a [f32],
    /// `[n, tokens]`: the region each token of a window belongs to; window `w` has row `w % n`. None if all tokens see each other.
    pub regions: Option<&'a [u8]>,
    /// Added to the score of two tokens of different regions (-100 in Swin transformers).
    pub masked: f32,
}

impl<'a> AttentionBias<'a> {
    fn check(&self, shape: AttentionShape) {
        let square = shape.tokens * shape.tokens;
        assert_eq!(
            self.bias.len(),
            shape.heads * square,
            "attention: length of the bias"
        );
        if let Some(regions) = self.regions {
            let whole = shape.tokens > 0
                && !regions.is_empty()
                && regions.len().is_multiple_of(shape.tokens);
            assert!(
                whole,
                "attention: {} regions for windows of {} tokens",
                regions.len(),
                shape.tokens
            );
        }
    }

    /// The regions of the tokens of a window; empty if there are none.
    fn regions_of(&self, window: usize, tokens: usize) -> &'a [u8] {
        self.regions.map_or(&[], |r| {
            &r[window % (r.len() / tokens) * tokens..][..tokens]
        })
    }
}

/// Gradients of one attention: of `q`, `k`, `v` in their shape, and of the bias `[heads, tokens, tokens]`.
#[derive(Clone, Debug)]
pub struct AttentionGradients {
    pub dq: Vec<f32>,
    pub dk: Vec<f32>,
    pub dv: Vec<f32>,
    pub dbias: Vec<f32>,
}

/// The result, and for the backward pass the logarithm of the sum of each query's exponentials, `[windows, heads, tokens]`.
pub fn window_attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    bias: AttentionBias<'_>,
    shape: AttentionShape,
) -> (Vec<f32>, Vec<f32>) {
    window_attention_on(Isa::best(), q, k, v, bias, shape)
}

fn window_attention_on(
    isa: Isa,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    bias: AttentionBias<'_>,
    shape: AttentionShape,
) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(
        [q.len(), k.len(), v.len()],
        [shape.len(); 3],
        "attention: lengths of q, k and v"
    );
    bias.check(shape);
    let matrix = shape.matrix();
    let result = Output::new(shape.len());
    let logs = Output::new(shape.windows * shape.heads * shape.tokens);
    (0..shape.windows * shape.heads)
        .into_par_iter()
        .for_each(|index| {
            let at = index * matrix..(index + 1) * matrix;
            // SAFETY: each window and head has its own part.
            let (result, logs) = unsafe {
                (
                    result.slice(at.start, matrix),
                    logs.slice(index * shape.tokens, shape.tokens),
                )
            };
            let one = One::new(isa, bias, shape, index);
            one.forward(&q[at.clone()], &k[at.clone()], &v[at], result, logs);
        });
    // SAFETY: `forward` writes its parts whole.
    unsafe { (result.finish(), logs.finish()) }
}

/// The gradients, from the inputs, what [`window_attention`] returned, and the gradient `dy` of its result.
#[allow(clippy::too_many_arguments)]
pub fn window_attention_backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    y: &[f32],
    logs: &[f32],
    dy: &[f32],
    bias: AttentionBias<'_>,
    shape: AttentionShape,
) -> AttentionGradients {
    backward_on(Isa::best(), [q, k, v, y, dy], logs, bias, shape)
}

fn backward_on(
    isa: Isa,
    inputs: [&[f32]; 5],
    logs: &[f32],
    bias: AttentionBias<'_>,
    shape: AttentionShape,
) -> AttentionGradients {
    assert_eq!(
        inputs.map(<[f32]>::len),
        [shape.len(); 5],
        "attention: lengths of q, k, v, the result and its gradient"
    );
    assert_eq!(
        logs.len(),
        shape.windows * shape.heads * shape.tokens,
        "attention: length of the logarithms"
    );
    bias.check(shape);
    let (matrix, square) = (shape.matrix(), shape.tokens * shape.tokens);
    let outputs = [(); 3].map(|()| Output::new(shape.len()));
    let parts: Vec<_> = ranges(shape.windows, shape.windows.div_ceil(PARTS)).collect();
    let tasks: Vec<_> = (0..shape.heads)
        .flat_map(|head| parts.iter().map(move |part| (head, part.clone())))
        .collect();
    let sums: Vec<Vec<f32>> = tasks
        .into_par_iter()
        .map(|(head, windows)| {
            let mut dbias = vec![0.0; square];
            for window in windows {
                let index = window * shape.heads + head;
                let at = index * matrix..(index + 1) * matrix;
                // SAFETY: each window and head has its own part.
                let to = [0, 1, 2].map(|i| unsafe { outputs[i].slice(at.start, matrix) });
                let logs = &logs[index * shape.tokens..][..shape.tokens];
                One::new(isa, bias, shape, index).backward(
                    inputs.map(|x| &x[at.clone()]),
                    logs,
                    to,
                    &mut dbias,
                );
            }
            dbias
        })
        .collect();
    let mut dbias = vec![0.0; shape.heads * square];
    if square > 0 && !parts.is_empty() {
        dbias
            .par_chunks_mut(square)
            .zip(sums.par_chunks(parts.len()))
            .for_each(|(dbias, sums)| {
                for sum in sums {
                    dbias
                        .iter_mut()
                        .zip(sum)
                        .for_each(|(total, part)| *total += part);
                }
            });
    }
    // SAFETY: `backward` writes its parts whole, and the tasks cover all heads and windows.
    let [dq, dk, dv] = outputs.map(|o| unsafe { o.finish() });
    AttentionGradients { dq, dk, dv, dbias }
}

/// One head of one window.
struct One<'a> {
    isa: Isa,
    micro: Kernel,
    tokens: usize,
    dim: usize,
    /// Whole vectors that hold `tokens` and `dim`.
    wide: usize,
    narrow: usize,
    scale: f32,
    masked: f32,
    bias: &'a [f32],
    regions: &'a [u8],
}

impl<'a> One<'a> {
    fn new(isa: Isa, bias: AttentionBias<'a>, shape: AttentionShape, index: usize) -> Self {
        let micro = Kernel::for_rows(isa, shape.tokens);
        let square = shape.tokens * shape.tokens;
        Self {
            isa,
            micro,
            tokens: shape.tokens,
            dim: shape.dim,
            wide: shape.tokens.next_multiple_of(micro.lanes),
            narrow: shape.dim.next_multiple_of(micro.lanes),
            scale: bias.scale,
            masked: bias.masked,
            bias: &bias.bias[index % shape.heads * square..][..square],
            regions: bias.regions_of(index / shape.heads, shape.tokens),
        }
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], y: &mut [f32], logs: &mut [f32]) {
        let (rows, tokens, dim) = (self.micro.rows, self.tokens, self.dim);
        let lens = [
            dim * self.wide,
            tokens * self.narrow,
            rows * dim,
            rows * self.wide,
            rows * tokens,
            rows * self.narrow,
        ];
        with_scratch(
            lens,
            |[k_turned, v_wide, queries, scores, weights, sums]| {
                self.turn(k, k_turned);
                self.widen(v, v_wide);
                for block in ranges(tokens, rows) {
                    self.pack(&q[block.start * dim..], dim, block.len(), dim, queries);
                    self.multiply(queries, dim, k_turned, self.wide, scores);
                    for (row, scores) in block.clone().zip(scores.chunks_exact_mut(self.wide)) {
                        let scores = &mut scores[..tokens];
                        self.add_bias(row, scores);
                        let top = top(self.isa, scores);
                        let sum = exponentials(self.isa, scores, top);
                        logs[row] = top + (sum.ln() as f32);
                        scale(self.isa, scores, (1.0 / sum) as f32);
                    }
                    self.pack(scores, self.wide, block.len(), tokens, weights);
                    self.multiply(weights, tokens, v_wide, self.narrow, sums);
                    self.narrow_to(sums, 1.0, &mut y[block.start * dim..block.end * dim]);
                }
            },
        );
    }

    fn backward(
        &self,
        [q, k, v, y, dy]: [&[f32]; 5],
        logs: &[f32],
        [dq, dk, dv]: [&mut [f32]; 3],
        dbias: &mut [f32],
    ) {
        let (rows, tokens, dim) = (self.micro.rows, self.tokens, self.dim);
        let all = tokens.next_multiple_of(rows);
        let lens = [
            dim * self.wide,
            dim * self.wide,
            tokens * self.narrow,
            tokens * self.narrow,
            tokens * self.narrow,
            rows * dim.max(tokens),
            rows * self.narrow,
            all * self.wide,
            all * self.wide,
        ];
        with_scratch(
            lens,
            |[
                k_turned,
                v_turned,
                q_wide,
                k_wide,
                dy_wide,
                packed,
                sums,
                p,
                ds,
            ]| {
                self.turn(k, k_turned);
                self.turn(v, v_turned);
                self.widen(q, q_wide);
                self.widen(k, k_wide);
                self.widen(dy, dy_wide);
                for block in ranges(tokens, rows) {
                    let at = block.start * self.wide..(block.start + rows) * self.wide;
                    self.pack(&q[block.start * dim..], dim, block.len(), dim, packed);
                    self.multiply(packed, dim, k_turned, self.wide, &mut p[at.clone()]);
                    self.pack(&dy[block.start * dim..], dim, block.len(), dim, packed);
                    self.multiply(packed, dim, v_turned, self.wide, &mut ds[at]);
                    for row in block.clone() {
                        let (p, ds) = (
                            &mut p[row * self.wide..][..tokens],
                            &mut ds[row * self.wide..][..tokens],
                        );
                        self.add_bias(row, p);
                        exponentials(self.isa, p, logs[row]);
                        let dot = dot(self.isa, &y[row * dim..][..dim], &dy[row * dim..][..dim]);
                        score_gradient(self.isa, p, dot, ds, &mut dbias[row * tokens..][..tokens]);
                    }
                    self.pack(
                        &ds[block.start * self.wide..],
                        self.wide,
                        block.len(),
                        tokens,
                        packed,
                    );
                    self.multiply(packed, tokens, k_wide, self.narrow, sums);
                    self.narrow_to(
                        sums,
                        self.scale,
                        &mut dq[block.start * dim..block.end * dim],
                    );
                }
                for block in ranges(tokens, rows) {
                    let to = block.start * dim..block.end * dim;
                    self.take_columns(p, block.start, block.len(), packed);
                    self.multiply(packed, tokens, dy_wide, self.narrow, sums);
                    self.narrow_to(sums, 1.0, &mut dv[to.clone()]);
                    self.take_columns(ds, block.start, block.len(), packed);
                    self.multiply(packed, tokens, q_wide, self.narrow, sums);
                    self.narrow_to(sums, self.scale, &mut dk[to]);
                }
            },
        );
    }

    /// `[tokens, dim]` to `[dim, wide]`; what is beyond the tokens stays undefined and only reaches columns that nobody reads.
    fn turn(&self, from: &[f32], to: &mut [f32]) {
        transpose(
            self.isa,
            from,
            self.dim,
            self.tokens,
            self.dim,
            to,
            self.wide,
        );
    }

    /// `[tokens, dim]` to `[tokens, narrow]`.
    fn widen(&self, from: &[f32], to: &mut [f32]) {
        for (from, to) in from
            .chunks_exact(self.dim)
            .zip(to.chunks_exact_mut(self.narrow))
        {
            to[..self.dim].copy_from_slice(from);
        }
    }

    /// `rows` of `[_, narrow]` to `[rows, dim]`, times `factor`.
    fn narrow_to(&self, from: &[f32], factor: f32, to: &mut [f32]) {
        for (from, to) in from
            .chunks_exact(self.narrow)
            .zip(to.chunks_exact_mut(self.dim))
        {
            to.iter_mut()
                .zip(from)
                .for_each(|(to, from)| *to = factor * from);
        }
    }

    /// The first `len` values of `present` rows that lie `step` apart, as the inner kernel reads them: `[len][row]`.
    fn pack(&self, from: &[f32], step: usize, present: usize, len: usize, to: &mut [f32]) {
        let to = &mut to[..len * self.micro.rows];
        if present < self.micro.rows {
            to.fill(0.0);
        }
        transpose(self.isa, from, step, present, len, to, self.micro.rows);
    }

    /// Columns of `[tokens, wide]`: `[token][column]`.
    fn take_columns(&self, from: &[f32], first: usize, present: usize, to: &mut [f32]) {
        for (from, to) in from
            .chunks_exact(self.wide)
            .zip(to.chunks_exact_mut(self.micro.rows))
            .take(self.tokens)
        {
            let (to, none) = to.split_at_mut(present);
            to.copy_from_slice(&from[first..first + present]);
            none.fill(0.0);
        }
    }

    /// `to[row][column] = sum over step of weights[step][row] * from[step][column]`, for `columns` whole vectors of columns.
    fn multiply(
        &self,
        weights: &[f32],
        steps: usize,
        from: &[f32],
        columns: usize,
        to: &mut [f32],
    ) {
        let offsets: Vec<u32> = (0..steps).map(|step| (step * columns) as u32).collect();
        let zeros = [0.0f32; 16];
        let enough = weights.len() >= steps * self.micro.rows
            && from.len() >= steps * columns
            && to.len() >= self.micro.rows * columns;
        assert!(
            enough && columns.is_multiple_of(self.micro.lanes) && self.micro.rows <= zeros.len()
        );
        // SAFETY: asserted above.
        unsafe {
            self.micro.run(
                columns,
                weights.as_ptr(),
                from.as_ptr(),
                &offsets,
                to.as_mut_ptr(),
                columns,
                zeros.as_ptr(),
            )
        }
    }

    /// Products of a query and all keys to scores.
    fn add_bias(&self, query: usize, scores: &mut [f32]) {
        let bias = &self.bias[query * self.tokens..][..self.tokens];
        scale_and_add(self.isa, scores, self.scale, bias);
        if let Some(&own) = self.regions.get(query) {
            mask(self.isa, scores, self.regions, own, self.masked);
        }
    }
}

per_isa! {
    fn scale_and_add(values: &mut [f32], factor: f32, add: &[f32]) {
        values.iter_mut().zip(add).for_each(|(v, a)| *v = *v * factor + a);
    }
}

per_isa! {
    fn mask(values: &mut [f32], regions: &[u8], own: u8, masked: f32) {
        values.iter_mut().zip(regions).for_each(|(v, &r)| *v += if r == own { 0.0 } else { masked });
    }
}

per_isa! {
    fn scale(values: &mut [f32], factor: f32) {
        values.iter_mut().for_each(|v| *v *= factor);
    }
}

per_isa! {
    fn top(values: &[f32]) -> f32 {
        largest(values)
    }
}

per_isa! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let [sum] = sums([a, b], |[a, b]| [a * b]);
        sum as f32
    }
}

per_isa! {
    /// `e^(value - top)`; returns their sum.
    fn exponentials(values: &mut [f32], top: f32) -> f64 {
        for value in values.iter_mut() {
            let d = *value - top;
            *value = if d < -87.0 { 0.0 } else { exp::<FMA>(d) };
        }
        let [sum] = sums([&*values], |v| v);
        sum
    }
}

per_isa! {
    /// From the gradient of the weights `p` to that of the scores; adds it to `dbias`.
    fn score_gradient(p: &[f32], dot: f32, ds: &mut [f32], dbias: &mut [f32]) {
        for ((ds, &p), dbias) in ds.iter_mut().zip(p).zip(dbias) {
            *ds = p * (*ds - dot);
            *dbias += *ds;
        }
    }
}

#[cfg(test)]
mod tests;
