//! Attention that reads queries, keys and values out of feature maps and writes the result into one, window by window in cache.

use super::super::Isa;
use super::super::simd::{Output, ranges, with_scratch};
use super::super::tokens::EMPTY;
use super::{AttentionBias, AttentionShape, One, exponentials, scale, top};
use rayon::prelude::*;

/// Queries, keys and values as channels of one map.
#[derive(Clone, Copy, Debug)]
pub struct AttentionMap<'a> {
    /// `[3 * heads * dim, voxels]`: queries, keys, values, each by head.
    pub qkv: &'a [f32],
    /// What each channel of `qkv` is for tokens outside the map, `[3 * heads * dim]`.
    pub outside: &'a [f32],
    /// Voxel of each token of each window, `[windows, tokens]`, or [`EMPTY`]. No voxel stands twice.
    pub index: &'a [u32],
}

/// Window attention of a map, `[heads * dim, voxels]` into `y`. Every voxel must be in a window.
pub fn window_attention_in_map(
    map: AttentionMap<'_>,
    bias: AttentionBias<'_>,
    shape: AttentionShape,
    y: &mut [f32],
) {
    window_attention_in_map_on(Isa::best(), map, bias, shape, y)
}

pub(super) fn window_attention_in_map_on(
    isa: Isa,
    map: AttentionMap<'_>,
    bias: AttentionBias<'_>,
    shape: AttentionShape,
    y: &mut [f32],
) {
    let channels = shape.heads * shape.dim;
    let voxels = y.len() / channels.max(1);
    assert_eq!(
        [y.len(), map.qkv.len(), map.outside.len(), map.index.len()],
        [
            channels * voxels,
            3 * channels * voxels,
            3 * channels,
            shape.windows * shape.tokens
        ],
        "attention in a map: lengths of result, qkv, outside and index"
    );
    bias.check(shape);
    let y = Output::over(y);
    (0..shape.windows * shape.heads)
        .into_par_iter()
        .for_each(|task| {
            let (window, head) = (task / shape.heads, task % shape.heads);
            let index = &map.index[window * shape.tokens..][..shape.tokens];
            One::new(isa, bias, shape, task).in_map(map, index, head, channels, voxels, &y);
        });
}

impl One<'_> {
    fn in_map(
        &self,
        map: AttentionMap<'_>,
        index: &[u32],
        head: usize,
        channels: usize,
        voxels: usize,
        y: &Output<'_>,
    ) {
        let (rows, tokens, dim) = (self.micro.rows, self.tokens, self.dim);
        let lens = [
            dim * tokens,
            dim * self.wide,
            tokens * self.narrow,
            rows * dim,
            rows * self.wide,
            rows * tokens,
            rows * self.narrow,
        ];
        let channel = |part: usize, d: usize| {
            let channel = part * channels + head * dim + d;
            (&map.qkv[channel * voxels..][..voxels], map.outside[channel])
        };
        let value = |(row, outside): (&[f32], f32), token: u32| {
            if token == EMPTY {
                outside
            } else {
                row[token as usize]
            }
        };
        with_scratch(lens, |[q, k, v, queries, scores, weights, sums]| {
            for d in 0..dim {
                let (from_q, from_k, from_v) = (channel(0, d), channel(1, d), channel(2, d));
                let (q, k) = (&mut q[d * tokens..], &mut k[d * self.wide..]);
                for (i, &token) in index.iter().enumerate() {
                    q[i] = value(from_q, token);
                    k[i] = value(from_k, token);
                    v[i * self.narrow + d] = value(from_v, token);
                }
            }
            for block in ranges(tokens, rows) {
                for (d, queries) in queries.chunks_exact_mut(rows).take(dim).enumerate() {
                    let (to, rest) = queries.split_at_mut(block.len());
                    to.copy_from_slice(&q[d * tokens + block.start..][..block.len()]);
                    rest.fill(0.0);
                }
                self.multiply(queries, dim, k, self.wide, scores);
                for (row, scores) in block.clone().zip(scores.chunks_exact_mut(self.wide)) {
                    let scores = &mut scores[..tokens];
                    self.add_bias(row, scores);
                    let top = top(self.isa, scores);
                    let sum = exponentials(self.isa, scores, top);
                    scale(self.isa, scores, (1.0 / sum) as f32);
                }
                self.pack(scores, self.wide, block.len(), tokens, weights);
                self.multiply(weights, tokens, v, self.narrow, sums);
                for (sums, &token) in sums.chunks_exact(self.narrow).zip(&index[block]) {
                    if token == EMPTY {
                        continue;
                    }
                    for (d, &sum) in sums[..dim].iter().enumerate() {
                        // SAFETY: no other task has this voxel of these channels.
                        unsafe { y.set((head * dim + d) * voxels + token as usize, sum) };
                    }
                }
            }
        });
    }
}
