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
    like: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let options = same_padding::<B>(&wrap(like.clone()));
    B::conv3d_weight_backward(x, like, grad, options)
}

/// See [`Kernels::channel_sum`](super::Kernels::channel_sum).
pub fn channel_sum<B: Backend>(grad: FloatTensor<B>) -> FloatTensor<B> {
    raw(sum_per_channel(by_channel(&wrap::<B, 5>(grad))).reshape([-1]))
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

fn by_channel<B: Backend>(x: &Tensor<B, 5>) -> Tensor<B, 3> {
    let [b, c, d, h, w] = x.dims();
    x.clone().reshape([b, c, d * h * w])
}

fn sum_per_channel<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.sum_dim(0).sum_dim(2)
}
