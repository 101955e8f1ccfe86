//! Gradients of windowed attention. Scores are computed again for the queries, for the keys and for the bias; the sums
//! of each are made in one place, so nothing is added atomically and results do not change from run to run.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, ops::permute, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::{cubes, empty, full, over, sides};
use super::tiled::{OTHERS, Tiles};
use super::tiled_gradient::{tiled_bias_grad_kernel, tiled_side_grad_kernel};
use super::{Call, Sizes, TILE, lanes_sum, load_tile, own_token, place, result_place, score_terms};
use crate::model::kernels::AttentionLayout;

/// Side of the bias gradient's tiles.
const SIDE: usize = 16;

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
    let (window, head, own) = own_token(sizes);
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
            let terms = score_terms(
                add,
                regions,
                window % per_sample,
                query,
                key,
                sizes.tokens,
                sizes.masked,
            );
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
    let (window, head, own) = own_token(sizes);
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
            let terms = score_terms(
                add,
                regions,
                window % per_sample,
                query,
                key,
                sizes.tokens,
                sizes.masked,
            );
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
        let terms = score_terms(
            add,
            regions,
            window % per_sample,
            query,
            key,
            sizes.tokens,
            sizes.masked,
        );
        let row = (window * sizes.heads + head) * sizes.tokens + query;
        let p = (lanes_sum::<N>(dot) * scale + terms - log_sums[row]).exp();
        total += p * (lanes_sum::<N>(back) - along[row]);
    }
    if first_query + y < sizes.tokens && first_key + x < sizes.tokens {
        out[(head * sizes.tokens + query) * sizes.tokens + key] = total;
    }
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

    let rest = Rest {
        call,
        bias,
        grad,
        log_sums,
        along,
    };
    match rest.call.tiles(2) {
        Some(tiles) => rest.tiled(tiles),
        None => rest.plain(),
    }
}

/// What the gradients are made of.
struct Rest<R: CubeRuntime> {
    call: Call<R>,
    /// `[heads, query, key]`.
    bias: CubeTensor<R>,
    grad: CubeTensor<R>,
    log_sums: CubeTensor<R>,
    along: CubeTensor<R>,
}

impl<R: CubeRuntime> Rest<R> {
    fn plain(self) -> [CubeTensor<R>; 2] {
        let Self {
            call,
            bias,
            grad,
            log_sums,
            along,
        } = self;
        let (sizes, dtype, client) = (call.sizes, call.qkv.dtype, grad.client.clone());
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

    fn tiled(self, tiles: Tiles) -> [CubeTensor<R>; 2] {
        let Self {
            call,
            bias,
            grad,
            log_sums,
            along,
        } = self;
        let (dtype, client) = (call.qkv.dtype, grad.client.clone());
        let types = [dtype.into(), tiles.by.storage()];
        let qkv_grad = empty(&grad, sides::<R, 3>(&call.qkv), dtype);
        let dim = CubeDim::new_1d(tiles.units() as u32);
        let count = tiles.cubes(call.windows);
        for keys in [false, true] {
            let bias = if keys {
                into_contiguous(permute(bias.clone(), &[0, 2, 1]))
            } else {
                bias.clone()
            };
            // SAFETY: cubes behind the last return at once; tokens are clamped to the window or replaced by zeros before
            // they index, and each kind of gradient is written to places of its own, of tokens of the window alone.
            unsafe {
                tiled_side_grad_kernel::launch_unchecked(
                    &client,
                    cubes(&grad, count, dim),
                    dim,
                    tiles.vector,
                    call.qkv.clone().into_tensor_arg(),
                    bias.into_tensor_arg(),
                    call.regions.clone().into_tensor_arg(),
                    grad.clone().into_tensor_arg(),
                    log_sums.clone().into_tensor_arg(),
                    along.clone().into_tensor_arg(),
                    qkv_grad.clone().into_tensor_arg(),
                    count,
                    call.per_sample,
                    call.scale,
                    tiles,
                    keys,
                    types,
                );
            }
        }
        let (heads, tokens) = (tiles.heads, tiles.tokens);
        let bias_grad = empty(&grad, [heads, tokens, tokens], DType::F32);
        let tiles = Tiles {
            groups: 4,
            blocks: 1,
            ..tiles
        };
        let dim = CubeDim::new_1d(tiles.units() as u32);
        let count = heads * tokens.div_ceil(OTHERS).pow(2);
        // SAFETY: as above; only pairs of tokens of the window are written.
        unsafe {
            tiled_bias_grad_kernel::launch_unchecked(
                &client,
                cubes(&grad, count, dim),
                dim,
                tiles.vector,
                call.qkv.into_tensor_arg(),
                bias.into_tensor_arg(),
                call.regions.into_tensor_arg(),
                grad.into_tensor_arg(),
                log_sums.into_tensor_arg(),
                along.into_tensor_arg(),
                bias_grad.clone().into_tensor_arg(),
                count,
                call.windows,
                call.per_sample,
                call.scale,
                tiles,
                types,
            );
        }
        [qkv_grad, bias_grad]
    }
}
