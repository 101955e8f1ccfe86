//! Attention inside windows: one cube per window and head, one unit per token, keys and values streamed through shared
//! memory, the softmax kept as a running maximum and sum, so that scores never leave the registers.
//!
//! At 64x128x128 the finest level has 216 windows of 216 tokens, 4 heads of 32: forward 5.2 GFLOP over 96 MB in float32 or
//! 48 in bf16 (the bias lies in the second-level cache). On an H100: 0.08 ms on the ordinary units, so bound by
//! arithmetic; on tensor units 0.01 ms in bf16 against 0.014 of memory. The gradient computes scores three times (for
//! queries, keys, bias) instead of keeping them: 18 GFLOP, 0.27 ms on ordinary units, 0.02 in bf16.
//!
//! [`tiled`] and [`tiled_gradient`] multiply on tensor units; the kernels of this file and [`gradient`] in float32 on
//! ordinary ones, for other devices and for heads whose channels are no multiple of 16, and as reference.

mod gradient;
mod indexed;
mod tiled;
mod tiled_gradient;

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, ops::permute, tensor::CubeTensor};
use cubecl::prelude::*;

pub use gradient::window_attention_grad;
pub use indexed::IndexedAttention;

use super::layout::{cubes, empty, full, sides, upload, vector_of};
use crate::model::kernels::{AttentionLayout, MASKED};

/// Tokens of a tile in shared memory.
const TILE: usize = 32;
/// Tokens between two corrections of the running maximum.
const STEP: usize = 8;
/// Below every score.
const LOWEST: f32 = -1e30;

/// Sizes that the kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Sizes {
    /// Heads.
    pub heads: usize,
    /// Tokens of a window.
    pub tokens: usize,
    /// Vectors of a head.
    pub lanes: usize,
    /// Units of a cube.
    pub units: usize,
    /// Cubes of a window and head.
    pub blocks: usize,
    /// Tokens of different regions are masked.
    pub masked: bool,
}

#[cube]
fn lanes_sum<N: Size>(value: Vector<f32, N>) -> f32 {
    let mut total = 0.0f32;
    #[unroll]
    for i in 0..N::value() {
        total += value[i];
    }
    total
}

/// Window, head and token that are this unit's own; the last cube of a window may have units behind the last token.
#[cube]
fn own_token(#[comptime] sizes: Sizes) -> (usize, usize, usize) {
    let block = CUBE_POS % sizes.blocks;
    let head = CUBE_POS / sizes.blocks % sizes.heads;
    let window = CUBE_POS / comptime![sizes.blocks * sizes.heads];
    (window, head, block * sizes.units + UNIT_POS as usize)
}

/// Where the part `kind` (query, key, value) of a token of a head begins, in vectors.
#[cube]
fn place(window: usize, token: usize, head: usize, kind: usize, #[comptime] sizes: Sizes) -> usize {
    let row = window * sizes.tokens + token;
    ((row * 3 + kind) * sizes.heads + head) * sizes.lanes
}

/// Where the result of a token of a head begins, in vectors.
#[cube]
fn result_place(window: usize, token: usize, head: usize, #[comptime] sizes: Sizes) -> usize {
    ((window * sizes.tokens + token) * sizes.heads + head) * sizes.lanes
}

/// A tile of tokens of one kind into shared memory, zeros behind the last.
#[cube]
fn load_tile<E: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    tile: &mut SharedMemory<Vector<f32, N>>,
    window: usize,
    first: usize,
    head: usize,
    kind: usize,
    #[comptime] sizes: Sizes,
) {
    for i in range_stepped(
        UNIT_POS as usize,
        comptime![TILE * sizes.lanes],
        sizes.units,
    ) {
        let token = first + i / sizes.lanes;
        let mut value = Vector::<f32, N>::new(0.0f32);
        if token < sizes.tokens {
            value =
                Vector::cast_from(qkv[place(window, token, head, kind, sizes) + i % sizes.lanes]);
        }
        tile[i] = value;
    }
}

/// What is added to the score of a pair.
#[cube]
fn score_terms(
    bias: f32,
    regions: &Tensor<u32>,
    in_sample: usize,
    query: usize,
    key: usize,
    #[comptime] tokens: usize,
    #[comptime] masked: bool,
) -> f32 {
    let mut terms = bias;
    if masked {
        let base = in_sample * tokens;
        if regions[base + query] != regions[base + key] {
            terms += MASKED;
        }
    }
    terms
}

/// `bias` is `[heads, key, query]`, so that units side by side read side by side.
#[cube(launch_unchecked)]
fn attention_kernel<E: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    bias: &Tensor<f32>,
    regions: &Tensor<u32>,
    out: &mut Tensor<Vector<E, N>>,
    log_sums: &mut Tensor<f32>,
    count: usize,
    per_sample: usize,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[comptime] keep: bool,
    #[define(E)] _dtype: StorageType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let (window, head, own) = own_token(sizes);
    let query = min(own, comptime![sizes.tokens - 1]);
    let mut q = Array::<Vector<f32, N>>::new(sizes.lanes);
    let mut o = Array::<Vector<f32, N>>::new(sizes.lanes);
    let from = place(window, query, head, 0usize, sizes);
    #[unroll]
    for d in 0..sizes.lanes {
        q[d] = Vector::<f32, N>::cast_from(qkv[from + d]) * Vector::new(scale);
        o[d] = Vector::new(0.0f32);
    }
    let mut largest = f32::new(LOWEST);
    let mut sum = 0.0f32;
    let mut keys = SharedMemory::<Vector<f32, N>>::new(comptime![TILE * sizes.lanes]);
    let mut values = SharedMemory::<Vector<f32, N>>::new(comptime![TILE * sizes.lanes]);
    for tile in 0..comptime![sizes.tokens.div_ceil(TILE)] {
        let first = tile * TILE;
        sync_cube();
        load_tile::<E, N>(qkv, &mut keys, window, first, head, 1usize, sizes);
        load_tile::<E, N>(qkv, &mut values, window, first, head, 2usize, sizes);
        sync_cube();
        for step in 0..comptime![TILE / STEP] {
            let start = step * STEP;
            if first + start < sizes.tokens {
                let mut scores = Array::<f32>::new(STEP);
                let mut top = largest;
                #[unroll]
                for j in 0..STEP {
                    let key = first + start + j;
                    let mut dot = Vector::<f32, N>::new(0.0f32);
                    #[unroll]
                    for d in 0..sizes.lanes {
                        dot += q[d] * keys[(start + j) * sizes.lanes + d];
                    }
                    let seen = min(key, comptime![sizes.tokens - 1]);
                    let add = bias[(head * sizes.tokens + seen) * sizes.tokens + query];
                    let terms = score_terms(
                        add,
                        regions,
                        window % per_sample,
                        query,
                        seen,
                        sizes.tokens,
                        sizes.masked,
                    );
                    let score = select(
                        key < sizes.tokens,
                        lanes_sum::<N>(dot) + terms,
                        f32::new(LOWEST),
                    );
                    scores[j] = score;
                    top = max(top, score);
                }
                let shrink = (largest - top).exp();
                sum *= shrink;
                #[unroll]
                for d in 0..sizes.lanes {
                    o[d] = o[d] * Vector::new(shrink);
                }
                #[unroll]
                for j in 0..STEP {
                    let p = (scores[j] - top).exp();
                    sum += p;
                    #[unroll]
                    for d in 0..sizes.lanes {
                        o[d] += Vector::new(p) * values[(start + j) * sizes.lanes + d];
                    }
                }
                largest = top;
            }
        }
    }
    if own < sizes.tokens {
        let to = result_place(window, query, head, sizes);
        #[unroll]
        for d in 0..sizes.lanes {
            out[to + d] = Vector::cast_from(o[d] * Vector::new(1.0f32 / sum));
        }
        if keep {
            log_sums[(window * sizes.heads + head) * sizes.tokens + query] = largest + sum.ln();
        }
    }
}

/// The regions of a layout for the device; one that is not read where there are none.
fn regions_of(layout: &AttentionLayout) -> Vec<u32> {
    match &layout.regions {
        Some(regions) => regions.iter().map(|&region| u32::from(region)).collect(),
        None => vec![0],
    }
}

/// A call's tensors and sizes.
struct Call<R: CubeRuntime> {
    qkv: CubeTensor<R>,
    regions: CubeTensor<R>,
    layout: AttentionLayout,
    windows: usize,
    per_sample: usize,
    scale: f32,
    vector: usize,
    sizes: Sizes,
}

impl<R: CubeRuntime> Call<R> {
    fn new(qkv: CubeTensor<R>, layout: &AttentionLayout) -> Self {
        let qkv = into_contiguous(qkv);
        let [windows, tokens, channels] = sides(&qkv);
        let dim = channels / 3 / layout.heads;
        let vector = vector_of(dim);
        let units = tokens.next_multiple_of(TILE).min(256);
        let sizes = Sizes {
            heads: layout.heads,
            tokens,
            lanes: dim / vector,
            units,
            blocks: tokens.div_ceil(units),
            masked: layout.regions.is_some(),
        };
        let regions = regions_of(layout);
        Self {
            per_sample: (regions.len() / tokens).max(1),
            regions: upload(&qkv, &regions),
            layout: layout.clone(),
            qkv,
            windows,
            scale: (dim as f32).powf(-0.5),
            vector,
            sizes,
        }
    }

    /// How tensor units do it, where they can; `operands` tiles of tokens by channels are kept by each group.
    fn tiles(&self, operands: usize) -> Option<tiled::Tiles> {
        let dim = self.sizes.lanes * self.vector;
        tiled::Tiles::new(&self.qkv, &self.layout, self.sizes.tokens, dim, operands)
    }

    fn cubes(&self) -> usize {
        self.windows * self.sizes.heads * self.sizes.blocks
    }

    /// The result, and the logarithm of each token's sum of exponentials when it is to be kept.
    fn forward(&self, bias: CubeTensor<R>, keep: bool) -> (CubeTensor<R>, CubeTensor<R>) {
        if let Some(tiles) = self.tiles(1) {
            return tiled::forward(self, into_contiguous(bias), keep, tiles);
        }
        let Sizes { heads, tokens, .. } = self.sizes;
        let channels = heads * self.sizes.lanes * self.vector;
        let out = empty(&self.qkv, [self.windows, tokens, channels], self.qkv.dtype);
        let kept = if keep {
            self.windows * heads * tokens
        } else {
            1
        };
        let log_sums = empty(&self.qkv, [kept], DType::F32);
        let dim = CubeDim::new_1d(self.sizes.units as u32);
        // SAFETY: cubes behind the last return at once; tokens are clamped to the window before they index, and only
        // units of a token of the window write.
        unsafe {
            attention_kernel::launch_unchecked(
                &out.client,
                cubes(&out, self.cubes(), dim),
                dim,
                self.vector,
                self.qkv.clone().into_tensor_arg(),
                into_contiguous(permute(bias, &[0, 2, 1])).into_tensor_arg(),
                self.regions.clone().into_tensor_arg(),
                out.clone().into_tensor_arg(),
                log_sums.clone().into_tensor_arg(),
                self.cubes(),
                self.per_sample,
                self.scale,
                self.sizes,
                keep,
                self.qkv.dtype.into(),
            );
        }
        (out, log_sums)
    }
}

/// See [`Kernels::window_attention`](crate::model::kernels::Kernels::window_attention).
pub fn window_attention<R: CubeRuntime>(
    qkv: CubeTensor<R>,
    bias: CubeTensor<R>,
    layout: &AttentionLayout,
) -> CubeTensor<R> {
    Call::new(qkv, layout).forward(full(bias), false).0
}
