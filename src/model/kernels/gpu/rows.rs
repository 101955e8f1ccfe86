//! Rows of tokens `[a, b, channels]`: layer normalisation, exact GELU, rows in another order, fully connected layers.
//!
//! Each reads and writes its rows once (layer norm of `[32768, 128]` float32: 0.02 GFLOP over 34 MB, 10 us on an H100,
//! bound by memory); only the matrix products are bound by arithmetic, see [`conv3d`].

use burn::tensor::{DType, Shape};
use burn_cubecl::{
    CubeRuntime,
    kernel::{
        cast, into_contiguous,
        matmul::{MatmulStrategy, matmul},
    },
    ops::{permute, reshape},
    tensor::CubeTensor,
};
use cubecl::prelude::*;

use super::conv3d;
use super::layout::{
    channels_last, cubes, empty, feature_map, full, over, sides, upload, vector_of,
};
use super::reduce::{column_launch, column_sum, fold_columns, sum_parts};
use super::tiles::multiplier;
use crate::model::kernels::{NO_ROW, NORM_EPSILON, RowIndex};

/// Units that share a row.
const LANES: usize = 32;
/// Rows of a cube.
const ROWS: usize = 8;

/// The sum over the units that share a row, for each of them.
#[cube]
fn across_row(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let x = UNIT_POS_X as usize;
    let y = UNIT_POS_Y as usize;
    sync_cube();
    shared[y * LANES + x] = value;
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for other in 0..LANES {
        total += shared[y * LANES + other];
    }
    total
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

/// Mean and inverse standard deviation of a row, in two passes over it.
#[cube]
fn row_moments<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    row: usize,
    lanes: usize,
    epsilon: f32,
    shared: &mut SharedMemory<f32>,
) -> (f32, f32) {
    let share = 1.0f32 / f32::cast_from(lanes * N::value());
    let mut sum = 0.0f32;
    for lane in range_stepped(UNIT_POS_X as usize, lanes, LANES) {
        sum += lanes_sum::<N>(Vector::cast_from(x[row * lanes + lane]));
    }
    let mean = across_row(sum, shared) * share;
    let mut squares = 0.0f32;
    for lane in range_stepped(UNIT_POS_X as usize, lanes, LANES) {
        let away = Vector::<f32, N>::cast_from(x[row * lanes + lane]) - Vector::new(mean);
        squares += lanes_sum::<N>(away * away);
    }
    let variance = across_row(squares, shared) * share;
    (mean, 1.0f32 / (variance + epsilon).sqrt())
}

#[cube(launch)]
fn row_norm_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    gamma: &Tensor<Vector<f32, N>>,
    beta: &Tensor<Vector<f32, N>>,
    out: &mut Tensor<Vector<E, N>>,
    rows: usize,
    lanes: usize,
    epsilon: f32,
    #[define(E)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime![LANES * ROWS]);
    let own = CUBE_POS * ROWS + UNIT_POS_Y as usize;
    let row = min(own, rows - 1);
    let (mean, inverse) = row_moments::<E, N>(x, row, lanes, epsilon, &mut shared);
    if own < rows {
        for lane in range_stepped(UNIT_POS_X as usize, lanes, LANES) {
            let value = Vector::<f32, N>::cast_from(x[row * lanes + lane]);
            let normed = (value - Vector::new(mean)) * Vector::new(inverse);
            out[row * lanes + lane] = Vector::cast_from(normed * gamma[lane] + beta[lane]);
        }
    }
}

/// Layer normalisation over the last axis of `[a, b, channels]`.
pub fn row_norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    gamma: CubeTensor<R>,
    beta: CubeTensor<R>,
) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let shape: [usize; 3] = sides(&x);
    let rows = shape[0] * shape[1];
    let size = vector_of(shape[2]);
    let out = empty(&x, shape, x.dtype);
    let dim = CubeDim::new_2d(LANES as u32, ROWS as u32);
    let count = cubes(&x, rows.div_ceil(ROWS), dim);
    let dtype = x.dtype;
    row_norm_kernel::launch(
        &out.client,
        count,
        dim,
        size,
        x.into_tensor_arg(),
        full(gamma).into_tensor_arg(),
        full(beta).into_tensor_arg(),
        out.clone().into_tensor_arg(),
        rows,
        shape[2] / size,
        NORM_EPSILON as f32,
        dtype.into(),
    );
    out
}

#[cube(launch)]
fn row_norm_input_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    gamma: &Tensor<Vector<f32, N>>,
    grad: &Tensor<Vector<E, N>>,
    out: &mut Tensor<Vector<E, N>>,
    moments: &mut Tensor<f32>,
    rows: usize,
    lanes: usize,
    epsilon: f32,
    #[define(E)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime![LANES * ROWS]);
    let own = CUBE_POS * ROWS + UNIT_POS_Y as usize;
    let row = min(own, rows - 1);
    let share = 1.0f32 / f32::cast_from(lanes * N::value());
    let (mean, inverse) = row_moments::<E, N>(x, row, lanes, epsilon, &mut shared);
    let mut sum = 0.0f32;
    let mut along = 0.0f32;
    for lane in range_stepped(UNIT_POS_X as usize, lanes, LANES) {
        let value = Vector::<f32, N>::cast_from(x[row * lanes + lane]);
        let normed = (value - Vector::new(mean)) * Vector::new(inverse);
        let inner = Vector::<f32, N>::cast_from(grad[row * lanes + lane]) * gamma[lane];
        sum += lanes_sum::<N>(inner);
        along += lanes_sum::<N>(inner * normed);
    }
    let sum = across_row(sum, &mut shared) * share;
    let along = across_row(along, &mut shared) * share;
    if own < rows {
        for lane in range_stepped(UNIT_POS_X as usize, lanes, LANES) {
            let value = Vector::<f32, N>::cast_from(x[row * lanes + lane]);
            let normed = (value - Vector::new(mean)) * Vector::new(inverse);
            let inner = Vector::<f32, N>::cast_from(grad[row * lanes + lane]) * gamma[lane];
            let centred = inner - Vector::new(sum) - normed * Vector::new(along);
            out[row * lanes + lane] = Vector::cast_from(centred * Vector::new(inverse));
        }
        if UNIT_POS_X == 0 {
            moments[row * 2] = mean;
            moments[row * 2 + 1] = inverse;
        }
    }
}

#[cube(launch)]
fn row_norm_parameters_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, N>>,
    moments: &Tensor<f32>,
    parts: &mut Tensor<Vector<f32, N>>,
    rows: usize,
    lanes: usize,
    chunk: usize,
    #[comptime] width: usize,
    #[define(E)] _dtype: StorageType,
) {
    let lane = CUBE_POS_Y as usize * width + UNIT_POS_X as usize;
    let mut sums = Array::<Vector<f32, N>>::new(2usize);
    sums[0] = Vector::new(0.0f32);
    sums[1] = Vector::new(0.0f32);
    if lane < lanes {
        let first = CUBE_POS_X as usize * chunk;
        let last = min(first + chunk, rows);
        for row in range_stepped(first + UNIT_POS_Y as usize, last, CUBE_DIM_Y as usize) {
            let value = Vector::<f32, N>::cast_from(x[row * lanes + lane]);
            let normed =
                (value - Vector::new(moments[row * 2])) * Vector::new(moments[row * 2 + 1]);
            let grad = Vector::<f32, N>::cast_from(grad[row * lanes + lane]);
            sums[0] += grad * normed;
            sums[1] += grad;
        }
    }
    fold_columns::<N>(&mut sums, parts, lane, lanes, width, 2usize);
}

#[cube(launch)]
fn halves_kernel(
    sums: &Tensor<f32>,
    first: &mut Tensor<f32>,
    second: &mut Tensor<f32>,
    len: usize,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        first[at] = sums[at];
        second[at] = sums[len + at];
    }
}

/// Gradients of [`row_norm`]: input, scale, shift.
pub fn row_norm_grad<R: CubeRuntime>(
    x: CubeTensor<R>,
    gamma: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> [CubeTensor<R>; 3] {
    let (x, grad) = (into_contiguous(x), into_contiguous(grad));
    let shape: [usize; 3] = sides(&x);
    let rows = shape[0] * shape[1];
    let size = vector_of(shape[2]);
    let lanes = shape[2] / size;
    let out = empty(&x, shape, x.dtype);
    let moments = empty(&x, [rows, 2], DType::F32);
    let dim = CubeDim::new_2d(LANES as u32, ROWS as u32);
    let count = cubes(&x, rows.div_ceil(ROWS), dim);
    row_norm_input_kernel::launch(
        &out.client,
        count,
        dim,
        size,
        x.clone().into_tensor_arg(),
        full(gamma).into_tensor_arg(),
        grad.clone().into_tensor_arg(),
        out.clone().into_tensor_arg(),
        moments.clone().into_tensor_arg(),
        rows,
        lanes,
        NORM_EPSILON as f32,
        x.dtype.into(),
    );
    let launch = column_launch(rows, lanes);
    let parts = empty(&x, [launch.chunks, 2 * shape[2]], DType::F32);
    let dtype = x.dtype;
    row_norm_parameters_kernel::launch(
        &out.client,
        launch.count(),
        launch.dim(),
        size,
        x.into_tensor_arg(),
        grad.into_tensor_arg(),
        moments.into_tensor_arg(),
        parts.clone().into_tensor_arg(),
        rows,
        lanes,
        launch.chunk,
        launch.width,
        dtype.into(),
    );
    let sums = sum_parts(parts);
    let gamma = empty(&out, [shape[2]], DType::F32);
    let beta = empty(&out, [shape[2]], DType::F32);
    let (count, dim) = over(&out, shape[2]);
    halves_kernel::launch(
        &out.client,
        count,
        dim,
        sums.into_tensor_arg(),
        gamma.clone().into_tensor_arg(),
        beta.clone().into_tensor_arg(),
        shape[2],
    );
    [out, gamma, beta]
}

/// The normal distribution function.
#[cube]
fn normal_cdf<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let scaled = x * Vector::new(comptime![std::f32::consts::FRAC_1_SQRT_2]);
    (scaled.erf() + Vector::new(1.0f32)) * Vector::new(0.5f32)
}

/// GELU with the error function.
#[cube]
pub fn gelu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    x * normal_cdf::<N>(x)
}

#[cube(launch)]
fn gelu_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    out: &mut Tensor<Vector<E, N>>,
    vectors: usize,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors {
        out[at] = Vector::cast_from(gelu::<N>(Vector::cast_from(x[at])));
    }
}

#[cube(launch)]
fn gelu_grad_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    grad: &Tensor<Vector<E, N>>,
    out: &mut Tensor<Vector<E, N>>,
    vectors: usize,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors {
        let value = Vector::<f32, N>::cast_from(x[at]);
        let half = value * value * Vector::new(-0.5f32);
        let density = half.exp() * Vector::new(0.3989423f32);
        let slope = normal_cdf::<N>(value) + value * density;
        out[at] = Vector::cast_from(Vector::<f32, N>::cast_from(grad[at]) * slope);
    }
}

/// GELU with the error function.
pub fn exact_gelu<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let shape: [usize; 3] = sides(&x);
    let size = vector_of(shape[2]);
    let vectors = x.meta.num_elements() / size;
    let out = empty(&x, shape, x.dtype);
    let (count, dim) = over(&x, vectors);
    let dtype = x.dtype;
    gelu_kernel::launch(
        &out.client,
        count,
        dim,
        size,
        x.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        vectors,
        dtype.into(),
    );
    out
}

/// Gradient of [`exact_gelu`].
pub fn exact_gelu_grad<R: CubeRuntime>(x: CubeTensor<R>, grad: CubeTensor<R>) -> CubeTensor<R> {
    let (x, grad) = (into_contiguous(x), into_contiguous(grad));
    let shape: [usize; 3] = sides(&x);
    let size = vector_of(shape[2]);
    let vectors = x.meta.num_elements() / size;
    let out = empty(&x, shape, x.dtype);
    let (count, dim) = over(&x, vectors);
    let dtype = x.dtype;
    gelu_grad_kernel::launch(
        &out.client,
        count,
        dim,
        size,
        x.into_tensor_arg(),
        grad.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        vectors,
        dtype.into(),
    );
    out
}

#[cube(launch)]
fn gather_kernel<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    from: &Tensor<u32>,
    out: &mut Tensor<Vector<E, N>>,
    vectors: usize,
    lanes: usize,
    old_rows: usize,
    new_rows: usize,
    none: u32,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors {
        let row = at / lanes;
        let source = from[row % new_rows];
        let mut value = Vector::<E, N>::new(E::new(0.0));
        if source != none {
            value = x[(row / new_rows * old_rows + source as usize) * lanes + at % lanes];
        }
        out[at] = value;
    }
}

/// Rows of `[batch, rows, channels]` in another order.
pub fn gather_rows<R: CubeRuntime>(x: CubeTensor<R>, index: &RowIndex) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let [batch, old_rows, channels] = sides(&x);
    let new_rows = index.from.len();
    let size = vector_of(channels);
    let vectors = batch * new_rows * channels / size;
    let out = empty(&x, [batch, new_rows, channels], x.dtype);
    let from = upload(&x, &index.from);
    let (count, dim) = over(&x, vectors);
    let dtype = x.dtype;
    gather_kernel::launch(
        &out.client,
        count,
        dim,
        size,
        x.into_tensor_arg(),
        from.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        vectors,
        channels / size,
        old_rows,
        new_rows,
        NO_ROW,
        dtype.into(),
    );
    out
}

#[cube(launch)]
fn add_row_kernel<E: Float, N: Size>(
    x: &mut Tensor<Vector<E, N>>,
    row: &Tensor<Vector<f32, N>>,
    vectors: usize,
    lanes: usize,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors {
        x[at] = Vector::cast_from(Vector::<f32, N>::cast_from(x[at]) + row[at % lanes]);
    }
}

/// A product of matrices, with the kernel that burn finds fastest.
fn product<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = a.dtype;
    match matmul(a.clone(), b.clone(), None, MatmulStrategy::default(), dtype) {
        Ok(y) => into_contiguous(y),
        // burn's trait has no error to return either; shapes were checked by the network's definition.
        Err(error) => unreachable!("no matrix product of {a:?} and {b:?}: {error:?}"),
    }
}

fn rows_of<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let [a, b, channels] = sides(&x);
    reshape(x, Shape::from([a * b, channels]))
}

/// Rows `[a, b, channels]` as a feature map of one line of voxels.
fn as_map<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let [a, b, channels] = sides(&x);
    feature_map(reshape(x, Shape::from([1, 1, 1, a * b, channels])))
}

/// The way back.
fn from_map<R: CubeRuntime>(x: CubeTensor<R>, shape: [usize; 3]) -> CubeTensor<R> {
    reshape(channels_last(x), Shape::from(shape))
}

/// A fully connected layer's weight as a kernel of one tap.
fn as_kernel<R: CubeRuntime>(weight: CubeTensor<R>) -> CubeTensor<R> {
    let [output, input] = sides(&weight);
    reshape(
        into_contiguous(weight),
        Shape::from([output, input, 1, 1, 1]),
    )
}

/// `x W^T + b` over the last axis of `[a, b, in]`: on tensor units as a convolution of one tap, otherwise burn's product.
pub fn row_linear<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: CubeTensor<R>,
) -> CubeTensor<R> {
    let [a, b, input] = sides(&x);
    let [output, _] = sides(&weight);
    if multiplier(&x).is_some() && conv3d::fits(input) {
        let y = conv3d::forward(as_map(x), None, as_kernel(weight), bias);
        return from_map(y, [a, b, output]);
    }
    let weight = cast(weight, x.dtype);
    let y = product(rows_of(x), permute(weight, &[1, 0]));
    let size = vector_of(output);
    let vectors = a * b * output / size;
    let (count, dim) = over(&y, vectors);
    add_row_kernel::launch(
        &y.client,
        count,
        dim,
        size,
        y.clone().into_tensor_arg(),
        full(bias).into_tensor_arg(),
        vectors,
        output / size,
        y.dtype.into(),
    );
    reshape(y, Shape::from([a, b, output]))
}

/// Gradients of [`row_linear`]: input, weight, bias; the last two in float32.
pub fn row_linear_grad<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> [CubeTensor<R>; 3] {
    let [a, b, input] = sides(&x);
    let [output, _] = sides(&weight);
    if multiplier(&x).is_some() && conv3d::fits(input) && conv3d::fits(output) {
        let (x, grad, weight) = (as_map(x), as_map(grad), as_kernel(weight));
        let (weight_grad, bias_grad) = conv3d::weight_grad(x, None, &weight, grad.clone());
        let x_grad = conv3d::input_grad(weight, grad);
        return [
            from_map(x_grad, [a, b, input]),
            reshape(weight_grad, Shape::from([output, input])),
            bias_grad,
        ];
    }
    let weight = cast(weight, x.dtype);
    let (x, grad) = (rows_of(x), rows_of(grad));
    let bias_grad = column_sum(grad.clone(), output);
    let weight_grad = product(permute(grad.clone(), &[1, 0]), x);
    let x_grad = product(grad, weight);
    [
        reshape(x_grad, Shape::from([a, b, input])),
        full(weight_grad),
        bias_grad,
    ]
}
