//! [`Kernels`](super::Kernels) written with burn's own operations: right on every backend, and what the
//! faster versions are tested against.

use burn::tensor::{
    Tensor,
    backend::Backend,
    ops::{ConvOptions, FloatTensor},
};

use super::{NORM_EPSILON, NormPreluGrads, raw, wrap};

fn same_padding<B: Backend>(weight: &Tensor<B, 5>) -> ConvOptions<3> {
    let [_, _, kd, kh, kw] = weight.dims();
    ConvOptions::new([1, 1, 1], [kd / 2, kh / 2, kw / 2], [1, 1, 1], 1)
}

/// See [`Kernels::same_conv3d`](super::Kernels::same_conv3d).
pub fn same_conv3d<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
) -> FloatTensor<B> {
    let options = same_padding::<B>(&wrap(weight.clone()));
    B::conv3d(x, weight, Some(bias), options)
}

/// See [`Kernels::same_conv3d_input_grad`](super::Kernels::same_conv3d_input_grad).
///
/// The convolution of the gradient with the weight flipped in space and its channels exchanged.
pub fn same_conv3d_input_grad<B: Backend>(weight: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let weight = wrap::<B, 5>(weight).flip([2, 3, 4]).swap_dims(0, 1);
    let options = same_padding(&weight);
    B::conv3d(grad, raw(weight), None, options)
}

/// See [`Kernels::same_conv3d_weight_grad`](super::Kernels::same_conv3d_weight_grad).
pub fn same_conv3d_weight_grad<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let options = same_padding::<B>(&wrap(weight.clone()));
    let bias = sum_per_channel(by_channel(&wrap::<B, 5>(grad.clone()))).reshape([-1]);
    (B::conv3d_weight_backward(x, weight, grad, options), raw::<B, 1>(bias))
}

/// See [`Kernels::batch_norm_prelu`](super::Kernels::batch_norm_prelu).
pub fn batch_norm_prelu<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    slope: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let x = wrap::<B, 5>(x);
    let flat = by_channel(&x);
    let mean = flat.clone().mean_dim(0).mean_dim(2);
    let variance = (flat - mean.clone()).powi_scalar(2).mean_dim(0).mean_dim(2);
    let (mean, variance) = (mean.reshape([-1]), variance.reshape([-1]));
    let scale = wrap::<B, 1>(gamma) / (variance.clone() + NORM_EPSILON).sqrt();
    let shift = wrap::<B, 1>(beta) - mean.clone() * scale.clone();
    let y = scale_prelu::<B>(raw(x), raw(scale), raw(shift), slope);
    (y, raw(mean), raw(variance))
}

/// See [`Kernels::batch_norm_prelu_grad`](super::Kernels::batch_norm_prelu_grad).
#[allow(clippy::too_many_arguments)] // the trait's signature
pub fn batch_norm_prelu_grad<B: Backend>(
    x: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    slope: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> NormPreluGrads<FloatTensor<B>> {
    let x = wrap::<B, 5>(x);
    let [batch, channels, depth, height, width] = x.dims();
    let count = (batch * depth * height * width) as f64;
    let per_channel = |v: FloatTensor<B>| wrap::<B, 1>(v).reshape([1, channels, 1]);
    let (mean, gamma, beta) = (per_channel(mean), per_channel(gamma), per_channel(beta));
    let inverse_std = (per_channel(variance) + NORM_EPSILON).sqrt().recip();
    let slope = wrap::<B, 1>(slope).reshape([1, 1, 1]);
    let grad = by_channel(&wrap::<B, 5>(grad));

    let normed = (by_channel(&x) - mean) * inverse_std.clone();
    let activated = normed.clone() * gamma.clone() + beta;
    let negative = activated.clone().lower_elem(0.0);
    let slope_grad = (grad.clone() * activated)
        .mask_fill(negative.clone().bool_not(), 0.0)
        .sum();
    let inner = grad.clone().mask_where(negative, grad * slope);
    let beta_grad = sum_per_channel(inner.clone());
    let gamma_grad = sum_per_channel(inner.clone() * normed.clone());
    let x_grad = (inner - beta_grad.clone() / count - normed * (gamma_grad.clone() / count))
        * (gamma * inverse_std);
    NormPreluGrads {
        x: raw(x_grad.reshape([batch, channels, depth, height, width])),
        gamma: raw(gamma_grad.reshape([channels])),
        beta: raw(beta_grad.reshape([channels])),
        slope: raw(slope_grad),
    }
}

/// See [`Kernels::scale_prelu`](super::Kernels::scale_prelu).
pub fn scale_prelu<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    slope: FloatTensor<B>,
) -> FloatTensor<B> {
    let x = wrap::<B, 5>(x);
    let [_, channels, ..] = x.dims();
    let scale = wrap::<B, 1>(scale).reshape([1, channels, 1, 1, 1]);
    let shift = wrap::<B, 1>(shift).reshape([1, channels, 1, 1, 1]);
    let slope = wrap::<B, 1>(slope).reshape([1, 1, 1, 1, 1]);
    let y = x * scale + shift;
    raw(y.clone().mask_where(y.clone().lower_elem(0.0), y * slope))
}

/// See [`Kernels::max_pool`](super::Kernels::max_pool). burn has no 3D pool: two dimensions, then the third.
pub fn max_pool<B: Backend>(x: FloatTensor<B>, depth: bool) -> FloatTensor<B> {
    let x = wrap::<B, 5>(x);
    let [b, c, d, h, w] = x.dims();
    let y = burn::tensor::module::max_pool2d(
        x.reshape([b, c * d, h, w]),
        [2, 2],
        [2, 2],
        [0, 0],
        [1, 1],
        false,
    );
    if depth {
        let y = y.reshape([b * c * (d / 2), 2, (h / 2) * (w / 2)]).max_dim(1);
        raw(y.reshape([b, c, d / 2, h / 2, w / 2]))
    } else {
        raw(y.reshape([b, c, d, h / 2, w / 2]))
    }
}

/// See [`Kernels::max_pool_grad`](super::Kernels::max_pool_grad).
pub fn max_pool_grad<B: Backend>(x: FloatTensor<B>, depth: bool, grad: FloatTensor<B>) -> FloatTensor<B> {
    let x = wrap::<B, 5>(x);
    let [b, c, d, h, w] = x.dims();
    let deep = if depth { 2 } else { 1 };
    let (bd, bh, bw) = (d / deep, h / 2, w / 2);
    // Each block's voxels side by side, so that the place of the maximum is an index.
    let blocks = x
        .reshape([b * c, bd, deep, bh, 2, bw, 2])
        .permute([0, 1, 3, 5, 2, 4, 6])
        .reshape([b * c * bd * bh * bw, deep * 4]);
    let place = blocks.clone().argmax(1);
    let grad = wrap::<B, 5>(grad).reshape([b * c * bd * bh * bw, 1]);
    let spread = blocks.zeros_like().scatter(1, place, grad, burn::tensor::IndexingUpdateOp::Add);
    raw(spread
        .reshape([b * c, bd, bh, bw, deep, 2, 2])
        .permute([0, 1, 4, 2, 5, 3, 6])
        .reshape([b, c, d, h, w]))
}

/// Normalised rows and the inverse standard deviation of each.
fn normalise_rows<B: Backend>(x: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().powi_scalar(2).mean_dim(2);
    let inverse_std = (variance + NORM_EPSILON).sqrt().recip();
    (centred * inverse_std.clone(), inverse_std)
}

/// See [`Kernels::row_norm`](super::Kernels::row_norm).
pub fn row_norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
) -> FloatTensor<B> {
    let (normed, _) = normalise_rows(wrap::<B, 3>(x));
    raw(normed * wrap::<B, 1>(gamma).unsqueeze() + wrap::<B, 1>(beta).unsqueeze())
}

/// See [`Kernels::row_norm_grad`](super::Kernels::row_norm_grad).
pub fn row_norm_grad<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let (normed, inverse_std) = normalise_rows(wrap::<B, 3>(x));
    let grad = wrap::<B, 3>(grad);
    let per_channel = |t: Tensor<B, 3>| t.sum_dim(0).sum_dim(1).flatten::<1>(0, 2);
    let beta_grad = per_channel(grad.clone());
    let gamma_grad = per_channel(grad.clone() * normed.clone());
    let inner = grad * wrap::<B, 1>(gamma).unsqueeze();
    let along = (inner.clone() * normed.clone()).mean_dim(2);
    let x_grad = (inner.clone() - inner.mean_dim(2) - normed * along) * inverse_std;
    [raw(x_grad), raw(gamma_grad), raw(beta_grad)]
}

/// The normal distribution function.
fn normal_cdf<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5
}

/// See [`Kernels::exact_gelu`](super::Kernels::exact_gelu).
pub fn exact_gelu<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = wrap::<B, 3>(x);
    raw(x.clone() * normal_cdf(x))
}

/// See [`Kernels::exact_gelu_grad`](super::Kernels::exact_gelu_grad).
pub fn exact_gelu_grad<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let x = wrap::<B, 3>(x);
    let density = (x.clone().powi_scalar(2) * -0.5).exp() * (0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2);
    raw(wrap::<B, 3>(grad) * (normal_cdf(x.clone()) + x * density))
}

/// See [`Kernels::attention_softmax`](super::Kernels::attention_softmax).
pub fn attention_softmax<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    raw(burn::tensor::activation::softmax(wrap::<B, 4>(x), 3))
}

/// See [`Kernels::attention_softmax_grad`](super::Kernels::attention_softmax_grad).
pub fn attention_softmax_grad<B: Backend>(y: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let (y, grad) = (wrap::<B, 4>(y), wrap::<B, 4>(grad));
    let along = (y.clone() * grad.clone()).sum_dim(3);
    raw(y * (grad - along))
}

fn by_channel<B: Backend>(x: &Tensor<B, 5>) -> Tensor<B, 3> {
    let [b, c, d, h, w] = x.dims();
    x.clone().reshape([b, c, d * h * w])
}

fn sum_per_channel<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.sum_dim(0).sum_dim(2)
}
