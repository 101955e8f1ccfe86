//! Blocks of voxels: max pool, and the reshuffle of the transposed convolution. Each voxel is read and written once
//! (max pool of `[2^20, 24]` float32: 113 MB, 0.02 ms on an H200).

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::layout::{channels_last, empty, feature_map, full, over, sides, vector_of};

/// Place of the first voxel of the block `[z, y, x]` that unit `at` works on, in vectors, and of its lane.
#[cube]
fn block_start(
    at: usize,
    lanes: usize,
    blocks_y: usize,
    blocks_x: usize,
    #[comptime] deep: usize,
) -> usize {
    let lane = at % lanes;
    let block = at / lanes;
    let x = block % blocks_x;
    let y = block / blocks_x % blocks_y;
    // Depth and batch together: blocks do not cross samples, since sides are even.
    let z = block / (blocks_x * blocks_y);
    (((z * deep) * blocks_y * 2 + y * 2) * blocks_x * 2 + x * 2) * lanes + lane
}

#[cube(launch)]
fn max_pool_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    out: &mut Tensor<Vector<E, N>>,
    vectors: usize,
    lanes: usize,
    blocks_y: usize,
    blocks_x: usize,
    #[comptime] deep: usize,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors {
        let start = block_start(at, lanes, blocks_y, blocks_x, deep);
        let row = blocks_x * 2 * lanes;
        let mut largest = x[start];
        #[unroll]
        for i in 1..comptime![deep * 4] {
            let place = i / 4 * (row * blocks_y * 2) + i / 2 % 2 * row + i % 2 * lanes;
            largest = max(largest, x[start + place]);
        }
        out[at] = largest;
    }
}

#[cube(launch)]
fn max_pool_grad_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, N>>,
    out: &mut Tensor<Vector<E, N>>,
    vectors: usize,
    lanes: usize,
    blocks_y: usize,
    blocks_x: usize,
    #[comptime] deep: usize,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors {
        let start = block_start(at, lanes, blocks_y, blocks_x, deep);
        let row = blocks_x * 2 * lanes;
        let zero = Vector::<E, N>::new(E::new(0.0));
        let mut largest = x[start];
        let mut place_of = Vector::<u32, N>::new(0u32);
        #[unroll]
        for i in 1..comptime![deep * 4] {
            let place = i / 4 * (row * blocks_y * 2) + i / 2 % 2 * row + i % 2 * lanes;
            let value = x[start + place];
            let more = value.greater_than(largest);
            largest = select_many(more, value, largest);
            place_of = select_many(more, Vector::<u32, N>::new(i as u32), place_of);
        }
        let value = grad[at];
        #[unroll]
        for i in 0..comptime![deep * 4] {
            let place = i / 4 * (row * blocks_y * 2) + i / 2 % 2 * row + i % 2 * lanes;
            let here = place_of.equal(Vector::<u32, N>::new(i as u32));
            out[start + place] = select_many(here, value, zero);
        }
    }
}

/// Maximum over blocks of 2x2x2 or 1x2x2.
pub fn max_pool<R: CubeRuntime>(x: CubeTensor<R>, depth: bool) -> CubeTensor<R> {
    let x = channels_last(x);
    let [batch, d, h, w, channels] = sides(&x);
    let deep = if depth { 2 } else { 1 };
    let size = vector_of(channels);
    let out = empty(&x, [batch, d / deep, h / 2, w / 2, channels], x.dtype);
    let vectors = out.meta.num_elements() / size;
    let (count, dim) = over(&x, vectors);
    let dtype = x.dtype;
    max_pool_kernel::launch(
        &out.client,
        count,
        dim,
        size,
        x.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        vectors,
        channels / size,
        h / 2,
        w / 2,
        deep,
        dtype.into(),
    );
    feature_map(out)
}

/// Gradient of [`max_pool`].
pub fn max_pool_grad<R: CubeRuntime>(
    x: CubeTensor<R>,
    depth: bool,
    grad: CubeTensor<R>,
) -> CubeTensor<R> {
    let (x, grad) = (channels_last(x), channels_last(grad));
    let shape: [usize; 5] = sides(&x);
    let [_, _, h, w, channels] = shape;
    let size = vector_of(channels);
    let vectors = grad.meta.num_elements() / size;
    let out = empty(&x, shape, x.dtype);
    let (count, dim) = over(&x, vectors);
    let dtype = x.dtype;
    max_pool_grad_kernel::launch(
        &out.client,
        count,
        dim,
        size,
        x.into_tensor_arg(),
        grad.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        vectors,
        channels / size,
        h / 2,
        w / 2,
        if depth { 2 } else { 1 },
        dtype.into(),
    );
    feature_map(out)
}

/// One unit per fine voxel and channel; `forward` goes from `[batch, coarse, channels * taps]` to
/// `[batch, fine, channels]`, else back.
#[cube(launch)]
fn reshuffle_kernel<E: Float>(
    x: &Tensor<E>,
    bias: &Tensor<f32>,
    out: &mut Tensor<E>,
    values: usize,
    channels: usize,
    depth: usize,
    height: usize,
    width: usize,
    #[comptime] kernel: (usize, usize, usize),
    #[comptime] forward: bool,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    let (kd, kh, kw) = comptime![kernel];
    if at < values {
        let channel = at % channels;
        let voxel = at / channels;
        let x_fine = voxel % width;
        let y_fine = voxel / width % height;
        let z_fine = voxel / (width * height) % depth;
        let sample = voxel / (width * height * depth);
        let tap = (z_fine % kd * kh + y_fine % kh) * kw + x_fine % kw;
        let row = (sample * (depth / kd) + z_fine / kd) * (height / kh) + y_fine / kh;
        let block = (row * (width / kw) + x_fine / kw) * channels + channel;
        let coarse = block * comptime![kd * kh * kw] + tap;
        if forward {
            out[at] = E::cast_from(f32::cast_from(x[coarse]) + bias[channel]);
        } else {
            out[coarse] = x[at];
        }
    }
}

/// See [`Kernels::blocks_to_space`](crate::model::kernels::Kernels::blocks_to_space).
pub fn blocks_to_space<R: CubeRuntime>(
    x: CubeTensor<R>,
    bias: CubeTensor<R>,
    [kd, kh, kw]: [usize; 3],
) -> CubeTensor<R> {
    let x = channels_last(x);
    let [batch, d, h, w, blocks] = sides(&x);
    let channels = blocks / (kd * kh * kw);
    let (d, h, w) = (d * kd, h * kh, w * kw);
    let out = empty(&x, [batch, d, h, w, channels], x.dtype);
    let values = out.meta.num_elements();
    let (count, dim) = over(&x, values);
    let dtype = x.dtype;
    reshuffle_kernel::launch(
        &out.client,
        count,
        dim,
        x.into_tensor_arg(),
        full(bias).into_tensor_arg(),
        out.clone().into_tensor_arg(),
        values,
        channels,
        d,
        h,
        w,
        (kd, kh, kw),
        true,
        dtype.into(),
    );
    feature_map(out)
}

/// Gradient of [`blocks_to_space`] for its input.
pub fn blocks_to_space_grad<R: CubeRuntime>(
    grad: CubeTensor<R>,
    [kd, kh, kw]: [usize; 3],
) -> CubeTensor<R> {
    let grad = channels_last(grad);
    let [batch, d, h, w, channels] = sides(&grad);
    let shape = [batch, d / kd, h / kh, w / kw, channels * kd * kh * kw];
    let out = empty(&grad, shape, grad.dtype);
    let values = grad.meta.num_elements();
    let (count, dim) = over(&grad, values);
    let dtype = grad.dtype;
    // The bias is not read on the way back.
    let bias = empty(&grad, [1], burn::tensor::DType::F32);
    reshuffle_kernel::launch(
        &out.client,
        count,
        dim,
        grad.into_tensor_arg(),
        bias.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        values,
        channels,
        d,
        h,
        w,
        (kd, kh, kw),
        false,
        dtype.into(),
    );
    feature_map(out)
}
