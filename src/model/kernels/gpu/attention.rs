//! Attention inside windows: one cube per window and head, one unit per token, keys and values streamed through shared
//! memory, the softmax kept as a running maximum and sum, so that scores never leave the registers.
//!
//! At 64x128x128 the finest level has 202 windows of 216 tokens, 4 heads of 32: forward 4.8 GFLOP over 134 MB (with the
//! bias in the second-level cache), so bound by arithmetic: 0.07 ms at the H200's float32 peak. The gradient computes
//! scores three times (for queries, keys, bias) instead of keeping them: 17 GFLOP.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, ops::permute, tensor::CubeTensor};
use cubecl::prelude::*;

use super::layout::{cubes, empty, full, over, sides, upload, vector_of};
use crate::model::kernels::{AttentionLayout, MASKED};

/// Tokens of a tile in shared memory.
const TILE: usize = 32;
/// Tokens between two corrections of the running maximum.
const STEP: usize = 8;
/// Below every score.
const LOWEST: f32 = -1e30;
/// Side of the bias gradient's tiles.
const SIDE: usize = 16;

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
    #[comptime] sizes: Sizes,
) -> f32 {
    let mut terms = bias;
    if sizes.masked {
        let base = in_sample * sizes.tokens;
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
    let block = CUBE_POS % sizes.blocks;
    let head = CUBE_POS / sizes.blocks % sizes.heads;
    let window = CUBE_POS / comptime![sizes.blocks * sizes.heads];
    let own = block * sizes.units + UNIT_POS as usize;
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
                    let terms = score_terms(add, regions, window % per_sample, query, seen, sizes);
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

/// Per token of a head: the product of its result and its gradient.
#[cube(launch)]
fn along_kernel<E: Float, N: Size>(
    y: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, N>>,
    along: &mut Tensor<f32>,
    rows: usize,
    #[comptime] sizes: Sizes,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < rows {
        let token = at % sizes.tokens;
        let head = at / sizes.tokens % sizes.heads;
        let window = at / comptime![sizes.tokens * sizes.heads];
        let from = result_place(window, token, head, sizes);
        let mut dot = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for d in 0..sizes.lanes {
            dot += Vector::<f32, N>::cast_from(y[from + d]) * Vector::cast_from(grad[from + d]);
        }
        along[at] = lanes_sum::<N>(dot);
    }
}

/// Gradient of the queries: one unit per query, keys and values streamed.
#[cube(launch_unchecked)]
fn query_grad_kernel<E: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    bias: &Tensor<f32>,
    regions: &Tensor<u32>,
    grad: &Tensor<Vector<E, N>>,
    log_sums: &Tensor<f32>,
    along: &Tensor<f32>,
    out: &mut Tensor<Vector<E, N>>,
    count: usize,
    per_sample: usize,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(E)] _dtype: StorageType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let block = CUBE_POS % sizes.blocks;
    let head = CUBE_POS / sizes.blocks % sizes.heads;
    let window = CUBE_POS / comptime![sizes.blocks * sizes.heads];
    let own = block * sizes.units + UNIT_POS as usize;
    let query = min(own, comptime![sizes.tokens - 1]);
    let mut q = Array::<Vector<f32, N>>::new(sizes.lanes);
    let mut g = Array::<Vector<f32, N>>::new(sizes.lanes);
    let mut sum = Array::<Vector<f32, N>>::new(sizes.lanes);
    let from = place(window, query, head, 0usize, sizes);
    let from_grad = result_place(window, query, head, sizes);
    #[unroll]
    for d in 0..sizes.lanes {
        q[d] = Vector::<f32, N>::cast_from(qkv[from + d]) * Vector::new(scale);
        g[d] = Vector::<f32, N>::cast_from(grad[from_grad + d]);
        sum[d] = Vector::new(0.0f32);
    }
    let row = (window * sizes.heads + head) * sizes.tokens + query;
    let log_sum = log_sums[row];
    let own_along = along[row];
    let mut keys = SharedMemory::<Vector<f32, N>>::new(comptime![TILE * sizes.lanes]);
    let mut values = SharedMemory::<Vector<f32, N>>::new(comptime![TILE * sizes.lanes]);
    for tile in 0..comptime![sizes.tokens.div_ceil(TILE)] {
        let first = tile * TILE;
        sync_cube();
        load_tile::<E, N>(qkv, &mut keys, window, first, head, 1usize, sizes);
        load_tile::<E, N>(qkv, &mut values, window, first, head, 2usize, sizes);
        sync_cube();
        for j in 0..min(sizes.tokens - first, TILE) {
            let key = first + j;
            let mut dot = Vector::<f32, N>::new(0.0f32);
            let mut back = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for d in 0..sizes.lanes {
                dot += q[d] * keys[j * sizes.lanes + d];
                back += g[d] * values[j * sizes.lanes + d];
            }
            let add = bias[(head * sizes.tokens + key) * sizes.tokens + query];
            let terms = score_terms(add, regions, window % per_sample, query, key, sizes);
            let p = (lanes_sum::<N>(dot) + terms - log_sum).exp();
            let slope = p * (lanes_sum::<N>(back) - own_along);
            #[unroll]
            for d in 0..sizes.lanes {
                sum[d] += Vector::new(slope) * keys[j * sizes.lanes + d];
            }
        }
    }
    if own < sizes.tokens {
        #[unroll]
        for d in 0..sizes.lanes {
            out[from + d] = Vector::cast_from(sum[d] * Vector::new(scale));
        }
    }
}

/// Gradients of the keys and values: one unit per key, queries and gradients streamed. `bias` is `[heads, query, key]`.
#[cube(launch_unchecked)]
fn key_grad_kernel<E: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    bias: &Tensor<f32>,
    regions: &Tensor<u32>,
    grad: &Tensor<Vector<E, N>>,
    log_sums: &Tensor<f32>,
    along: &Tensor<f32>,
    out: &mut Tensor<Vector<E, N>>,
    count: usize,
    per_sample: usize,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(E)] _dtype: StorageType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let block = CUBE_POS % sizes.blocks;
    let head = CUBE_POS / sizes.blocks % sizes.heads;
    let window = CUBE_POS / comptime![sizes.blocks * sizes.heads];
    let own = block * sizes.units + UNIT_POS as usize;
    let key = min(own, comptime![sizes.tokens - 1]);
    let mut k = Array::<Vector<f32, N>>::new(sizes.lanes);
    let mut v = Array::<Vector<f32, N>>::new(sizes.lanes);
    let mut key_sum = Array::<Vector<f32, N>>::new(sizes.lanes);
    let mut value_sum = Array::<Vector<f32, N>>::new(sizes.lanes);
    let from_key = place(window, key, head, 1usize, sizes);
    let from_value = place(window, key, head, 2usize, sizes);
    #[unroll]
    for d in 0..sizes.lanes {
        k[d] = Vector::<f32, N>::cast_from(qkv[from_key + d]) * Vector::new(scale);
        v[d] = Vector::<f32, N>::cast_from(qkv[from_value + d]);
        key_sum[d] = Vector::new(0.0f32);
        value_sum[d] = Vector::new(0.0f32);
    }
    let mut queries = SharedMemory::<Vector<f32, N>>::new(comptime![TILE * sizes.lanes]);
    let mut grads = SharedMemory::<Vector<f32, N>>::new(comptime![TILE * sizes.lanes]);
    for tile in 0..comptime![sizes.tokens.div_ceil(TILE)] {
        let first = tile * TILE;
        sync_cube();
        load_tile::<E, N>(qkv, &mut queries, window, first, head, 0usize, sizes);
        for i in range_stepped(
            UNIT_POS as usize,
            comptime![TILE * sizes.lanes],
            sizes.units,
        ) {
            let token = first + i / sizes.lanes;
            let mut value = Vector::<f32, N>::new(0.0f32);
            if token < sizes.tokens {
                let at = result_place(window, token, head, sizes) + i % sizes.lanes;
                value = Vector::cast_from(grad[at]);
            }
            grads[i] = value;
        }
        sync_cube();
        for j in 0..min(sizes.tokens - first, TILE) {
            let query = first + j;
            let mut dot = Vector::<f32, N>::new(0.0f32);
            let mut back = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for d in 0..sizes.lanes {
                dot += k[d] * queries[j * sizes.lanes + d];
                back += v[d] * grads[j * sizes.lanes + d];
            }
            let add = bias[(head * sizes.tokens + query) * sizes.tokens + key];
            let terms = score_terms(add, regions, window % per_sample, query, key, sizes);
            let row = (window * sizes.heads + head) * sizes.tokens + query;
            let p = (lanes_sum::<N>(dot) + terms - log_sums[row]).exp();
            let slope = p * (lanes_sum::<N>(back) - along[row]);
            #[unroll]
            for d in 0..sizes.lanes {
                value_sum[d] += Vector::new(p) * grads[j * sizes.lanes + d];
                key_sum[d] += Vector::new(slope * scale) * queries[j * sizes.lanes + d];
            }
        }
    }
    if own < sizes.tokens {
        #[unroll]
        for d in 0..sizes.lanes {
            out[from_key + d] = Vector::cast_from(key_sum[d]);
            out[from_value + d] = Vector::cast_from(value_sum[d]);
        }
    }
}

/// Gradient of the bias: one unit per pair of tokens of a head, over all windows in order. `bias` is
/// `[heads, query, key]`.
#[cube(launch_unchecked)]
fn bias_grad_kernel<E: Float, N: Size>(
    qkv: &Tensor<Vector<E, N>>,
    bias: &Tensor<f32>,
    regions: &Tensor<u32>,
    grad: &Tensor<Vector<E, N>>,
    log_sums: &Tensor<f32>,
    along: &Tensor<f32>,
    out: &mut Tensor<f32>,
    count: usize,
    windows: usize,
    per_sample: usize,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(E)] _dtype: StorageType,
) {
    if CUBE_POS >= count {
        terminate!();
    }
    let sides = comptime![sizes.tokens.div_ceil(SIDE)];
    let head = CUBE_POS / comptime![sides * sides];
    let first_query = CUBE_POS / sides % sides * SIDE;
    let first_key = CUBE_POS % sides * SIDE;
    let x = UNIT_POS_X as usize;
    let y = UNIT_POS_Y as usize;
    let last = comptime![sizes.tokens - 1];
    let query = min(first_query + y, last);
    let key = min(first_key + x, last);
    let mut queries = SharedMemory::<Vector<f32, N>>::new(comptime![SIDE * sizes.lanes]);
    let mut keys = SharedMemory::<Vector<f32, N>>::new(comptime![SIDE * sizes.lanes]);
    let mut values = SharedMemory::<Vector<f32, N>>::new(comptime![SIDE * sizes.lanes]);
    let mut grads = SharedMemory::<Vector<f32, N>>::new(comptime![SIDE * sizes.lanes]);
    let add = bias[(head * sizes.tokens + query) * sizes.tokens + key];
    let mut total = 0.0f32;
    for window in 0..windows {
        sync_cube();
        for i in range_stepped(
            UNIT_POS as usize,
            comptime![SIDE * sizes.lanes],
            comptime![SIDE * SIDE],
        ) {
            let q = min(first_query + i / sizes.lanes, last);
            let k = min(first_key + i / sizes.lanes, last);
            let d = i % sizes.lanes;
            queries[i] = Vector::cast_from(qkv[place(window, q, head, 0usize, sizes) + d]);
            keys[i] = Vector::cast_from(qkv[place(window, k, head, 1usize, sizes) + d]);
            values[i] = Vector::cast_from(qkv[place(window, k, head, 2usize, sizes) + d]);
            grads[i] = Vector::cast_from(grad[result_place(window, q, head, sizes) + d]);
        }
        sync_cube();
        let mut dot = Vector::<f32, N>::new(0.0f32);
        let mut back = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for d in 0..sizes.lanes {
            dot += queries[y * sizes.lanes + d] * keys[x * sizes.lanes + d];
            back += grads[y * sizes.lanes + d] * values[x * sizes.lanes + d];
        }
        let terms = score_terms(add, regions, window % per_sample, query, key, sizes);
        let row = (window * sizes.heads + head) * sizes.tokens + query;
        let p = (lanes_sum::<N>(dot) * scale + terms - log_sums[row]).exp();
        total += p * (lanes_sum::<N>(back) - along[row]);
    }
    if first_query + y < sizes.tokens && first_key + x < sizes.tokens {
        out[(head * sizes.tokens + query) * sizes.tokens + key] = total;
    }
}

/// A call's tensors and sizes.
struct Call<R: CubeRuntime> {
    qkv: CubeTensor<R>,
    regions: CubeTensor<R>,
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
        let regions: Vec<u32> = match &layout.regions {
            Some(regions) => regions.iter().map(|&region| u32::from(region)).collect(),
            None => vec![0],
        };
        Self {
            per_sample: (regions.len() / tokens).max(1),
            regions: upload(&qkv, &regions),
            qkv,
            windows,
            scale: (dim as f32).powf(-0.5),
            vector,
            sizes,
        }
    }

    fn cubes(&self) -> usize {
        self.windows * self.sizes.heads * self.sizes.blocks
    }

    /// The result, and the logarithm of each token's sum of exponentials when it is to be kept.
    fn forward(&self, bias: CubeTensor<R>, keep: bool) -> (CubeTensor<R>, CubeTensor<R>) {
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

/// See [`Kernels::window_attention_grad`](crate::model::kernels::Kernels::window_attention_grad).
pub fn window_attention_grad<R: CubeRuntime>(
    qkv: CubeTensor<R>,
    bias: CubeTensor<R>,
    layout: &AttentionLayout,
    grad: CubeTensor<R>,
) -> [CubeTensor<R>; 2] {
    let call = Call::new(qkv, layout);
    let (bias, grad) = (full(bias), into_contiguous(grad));
    let sizes = call.sizes;
    let (y, log_sums) = call.forward(bias.clone(), true);
    let client = y.client.clone();
    let dtype = call.qkv.dtype;

    let rows = call.windows * sizes.heads * sizes.tokens;
    let along = empty(&grad, [rows], DType::F32);
    let (count, dim) = over(&grad, rows);
    along_kernel::launch(
        &client,
        count,
        dim,
        call.vector,
        y.into_tensor_arg(),
        grad.clone().into_tensor_arg(),
        along.clone().into_tensor_arg(),
        rows,
        sizes,
        dtype.into(),
    );

    let qkv_grad = empty(&grad, sides::<R, 3>(&call.qkv), dtype);
    let dim = CubeDim::new_1d(sizes.units as u32);
    let count = cubes(&grad, call.cubes(), dim);
    // SAFETY: as for the forward kernel; the three kinds of gradient are written to places of their own.
    unsafe {
        query_grad_kernel::launch_unchecked(
            &client,
            count.clone(),
            dim,
            call.vector,
            call.qkv.clone().into_tensor_arg(),
            into_contiguous(permute(bias.clone(), &[0, 2, 1])).into_tensor_arg(),
            call.regions.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            log_sums.clone().into_tensor_arg(),
            along.clone().into_tensor_arg(),
            qkv_grad.clone().into_tensor_arg(),
            call.cubes(),
            call.per_sample,
            call.scale,
            sizes,
            dtype.into(),
        );
        key_grad_kernel::launch_unchecked(
            &client,
            count,
            dim,
            call.vector,
            call.qkv.clone().into_tensor_arg(),
            bias.clone().into_tensor_arg(),
            call.regions.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            log_sums.clone().into_tensor_arg(),
            along.clone().into_tensor_arg(),
            qkv_grad.clone().into_tensor_arg(),
            call.cubes(),
            call.per_sample,
            call.scale,
            sizes,
            dtype.into(),
        );
    }

    let bias_grad = empty(&grad, [sizes.heads, sizes.tokens, sizes.tokens], DType::F32);
    let dim = CubeDim::new_2d(SIDE as u32, SIDE as u32);
    let tiles = sizes.heads * sizes.tokens.div_ceil(SIDE).pow(2);
    // SAFETY: tokens are clamped to the window before they index, and only pairs of the window are written.
    unsafe {
        bias_grad_kernel::launch_unchecked(
            &client,
            cubes(&grad, tiles, dim),
            dim,
            call.vector,
            call.qkv.into_tensor_arg(),
            bias.into_tensor_arg(),
            call.regions.into_tensor_arg(),
            grad.into_tensor_arg(),
            log_sums.into_tensor_arg(),
            along.into_tensor_arg(),
            bias_grad.clone().into_tensor_arg(),
            tiles,
            call.windows,
            call.per_sample,
            call.scale,
            sizes,
            dtype.into(),
        );
    }
    [qkv_grad, bias_grad]
}
