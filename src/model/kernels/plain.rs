//! [`Kernels`](super::Kernels) written with burn's own operations: right on every backend, and what the
//! faster versions are tested against.

use burn::tensor::{
    Int, Shape, Tensor, TensorData, TensorMetadata,
    backend::Backend,
    ops::{ConvOptions, FloatTensor},
};

use rayon::prelude::*;

use super::{
    AdamStep, AttentionLayout, Keep, Kernels, MASKED, NORM_EPSILON, NormConvGrads, NormPreluGrads,
    RowIndex, raw, wrap,
};
use crate::rng::Rng;

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
pub fn same_conv3d_input_grad<B: Backend>(
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
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
    (
        B::conv3d_weight_backward(x, weight, grad, options),
        raw::<B, 1>(bias),
    )
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

/// See [`Kernels::batch_norm_conv3d_grad`]: what the convolution read is computed again.
#[allow(clippy::too_many_arguments)] // the trait's signature
pub fn batch_norm_conv3d_grad<B: Kernels>(
    x: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    slope: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> NormConvGrads<FloatTensor<B>> {
    let deviation = (wrap::<B, 1>(variance.clone()) + NORM_EPSILON).sqrt();
    let scale = wrap::<B, 1>(gamma.clone()) / deviation;
    let shift = wrap::<B, 1>(beta.clone()) - wrap::<B, 1>(mean.clone()) * scale.clone();
    let read = B::scale_prelu(x.clone(), raw(scale), raw(shift), slope.clone());
    let (weight_grad, bias) = B::same_conv3d_weight_grad(read, weight.clone(), grad.clone());
    let grad = B::same_conv3d_input_grad(weight, grad);
    NormConvGrads {
        norm: B::batch_norm_prelu_grad(x, mean, variance, gamma, beta, slope, grad),
        weight: weight_grad,
        bias,
    }
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
        let y = y
            .reshape([b * c * (d / 2), 2, (h / 2) * (w / 2)])
            .max_dim(1);
        raw(y.reshape([b, c, d / 2, h / 2, w / 2]))
    } else {
        raw(y.reshape([b, c, d, h / 2, w / 2]))
    }
}

/// See [`Kernels::max_pool_grad`](super::Kernels::max_pool_grad).
pub fn max_pool_grad<B: Backend>(
    x: FloatTensor<B>,
    depth: bool,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
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
    let spread = blocks
        .zeros_like()
        .scatter(1, place, grad, burn::tensor::IndexingUpdateOp::Add);
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
    let density = (x.clone().powi_scalar(2) * -0.5).exp()
        * (0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2);
    raw(wrap::<B, 3>(grad) * (normal_cdf(x.clone()) + x * density))
}

/// See [`Kernels::row_linear`](super::Kernels::row_linear).
pub fn row_linear<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
) -> FloatTensor<B> {
    let (x, weight) = (wrap::<B, 3>(x), wrap::<B, 2>(weight));
    let [a, b, input] = x.dims();
    let [output, _] = weight.dims();
    let y = x.reshape([a * b, input]).matmul(weight.transpose());
    raw((y + wrap::<B, 1>(bias).unsqueeze()).reshape([a, b, output]))
}

/// See [`Kernels::row_linear_grad`](super::Kernels::row_linear_grad).
pub fn row_linear_grad<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let (x, weight, grad) = (wrap::<B, 3>(x), wrap::<B, 2>(weight), wrap::<B, 3>(grad));
    let [a, b, input] = x.dims();
    let [output, _] = weight.dims();
    let (x, grad) = (x.reshape([a * b, input]), grad.reshape([a * b, output]));
    let bias_grad = grad.clone().sum_dim(0).reshape([output]);
    let weight_grad = grad.clone().transpose().matmul(x);
    let x_grad = grad.matmul(weight).reshape([a, b, input]);
    [raw(x_grad), raw(weight_grad), raw(bias_grad)]
}

/// See [`Kernels::swap_rows`](super::Kernels::swap_rows).
pub fn swap_rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    raw(wrap::<B, 3>(x).swap_dims(1, 2))
}

/// See [`Kernels::gather_rows`](super::Kernels::gather_rows). The row of zeros is appended to the old ones.
pub fn gather_rows<B: Backend>(x: FloatTensor<B>, index: &RowIndex) -> FloatTensor<B> {
    let x = wrap::<B, 3>(x);
    let [batch, rows, channels] = x.dims();
    let device = x.device();
    let with_zero = Tensor::cat(vec![x, Tensor::zeros([batch, 1, channels], &device)], 1);
    let from: Vec<i32> = index
        .from
        .iter()
        .map(|&row| row.min(rows as u32) as i32)
        .collect();
    let len = from.len();
    let from = Tensor::<B, 1, Int>::from_data(TensorData::new(from, [len]), &device);
    raw(with_zero.select(1, from))
}

/// Query, key and value `[windows, heads, tokens, dim]`, and the attention weights `[windows, heads, tokens, tokens]`.
fn attention_parts<B: Backend>(
    qkv: FloatTensor<B>,
    bias: FloatTensor<B>,
    layout: &AttentionLayout,
) -> ([Tensor<B, 4>; 3], Tensor<B, 4>) {
    let qkv = wrap::<B, 3>(qkv);
    let [windows, tokens, channels] = qkv.dims();
    let (heads, dim) = (layout.heads, channels / 3 / layout.heads);
    let device = qkv.device();
    let qkv = qkv
        .reshape([windows, tokens, 3, heads, dim])
        .permute([2, 0, 3, 1, 4]);
    let parts = [0, 1, 2].map(|i| {
        qkv.clone()
            .narrow(0, i, 1)
            .reshape([windows, heads, tokens, dim])
    });
    let [q, k, _] = &parts;
    let scores = (q.clone() * (dim as f64).powf(-0.5)).matmul(k.clone().swap_dims(2, 3));
    let mut scores = scores + wrap::<B, 3>(bias).unsqueeze();
    if let Some(regions) = &layout.regions {
        let per_sample = regions.len() / tokens;
        let mut mask = Vec::with_capacity(regions.len() * tokens);
        for window in regions.chunks_exact(tokens) {
            for a in window {
                mask.extend(window.iter().map(|b| if a == b { 0.0 } else { MASKED }));
            }
        }
        let mask = TensorData::new(mask, [1, per_sample, 1, tokens, tokens]);
        let grouped = scores.reshape([windows / per_sample, per_sample, heads, tokens, tokens]);
        scores =
            (grouped + Tensor::from_data(mask, &device)).reshape([windows, heads, tokens, tokens]);
    }
    (parts, burn::tensor::activation::softmax(scores, 3))
}

/// See [`Kernels::window_attention`](super::Kernels::window_attention).
pub fn window_attention<B: Backend>(
    qkv: FloatTensor<B>,
    bias: FloatTensor<B>,
    layout: &AttentionLayout,
) -> FloatTensor<B> {
    let ([_, _, v], weights) = attention_parts::<B>(qkv, bias, layout);
    let [windows, heads, tokens, dim] = v.dims();
    let y = weights.matmul(v).swap_dims(1, 2);
    raw(y.reshape([windows, tokens, heads * dim]))
}

/// See [`Kernels::window_attention_grad`](super::Kernels::window_attention_grad).
pub fn window_attention_grad<B: Backend>(
    qkv: FloatTensor<B>,
    bias: FloatTensor<B>,
    layout: &AttentionLayout,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    let ([q, k, v], weights) = attention_parts::<B>(qkv, bias, layout);
    let [windows, heads, tokens, dim] = v.dims();
    let grad = wrap::<B, 3>(grad)
        .reshape([windows, tokens, heads, dim])
        .swap_dims(1, 2);
    let v_grad = weights.clone().swap_dims(2, 3).matmul(grad.clone());
    let weight_grad = grad.matmul(v.swap_dims(2, 3));
    let along = (weights.clone() * weight_grad.clone()).sum_dim(3);
    let score_grad = weights * (weight_grad - along);
    let bias_grad = score_grad
        .clone()
        .sum_dim(0)
        .reshape([heads, tokens, tokens]);
    let scale = (dim as f64).powf(-0.5);
    let q_grad = score_grad.clone().matmul(k) * scale;
    let k_grad = score_grad.swap_dims(2, 3).matmul(q) * scale;
    let parts =
        [q_grad, k_grad, v_grad].map(|t| t.swap_dims(1, 2).reshape([windows, tokens, heads * dim]));
    [raw(Tensor::cat(parts.to_vec(), 2)), raw(bias_grad)]
}

/// See [`Kernels::blocks_to_space`](super::Kernels::blocks_to_space).
pub fn blocks_to_space<B: Backend>(
    x: FloatTensor<B>,
    bias: FloatTensor<B>,
    kernel: [usize; 3],
) -> FloatTensor<B> {
    let x = wrap::<B, 5>(x);
    let [batch, channels, d, h, w] = x.dims();
    let [kd, kh, kw] = kernel;
    let out = channels / (kd * kh * kw);
    let y = x
        .reshape([batch, out, kd, kh, kw, d, h, w])
        .permute([0, 1, 5, 2, 6, 3, 7, 4])
        .reshape([batch, out, d * kd, h * kh, w * kw]);
    raw(y + wrap::<B, 1>(bias).reshape([1, out, 1, 1, 1]))
}

/// See [`Kernels::blocks_to_space_grad`](super::Kernels::blocks_to_space_grad).
pub fn blocks_to_space_grad<B: Backend>(
    grad: FloatTensor<B>,
    kernel: [usize; 3],
) -> FloatTensor<B> {
    let grad = wrap::<B, 5>(grad);
    let [batch, out, d, h, w] = grad.dims();
    let [kd, kh, kw] = kernel;
    let (d, h, w) = (d / kd, h / kh, w / kw);
    raw(grad
        .reshape([batch, out, d, kd, h, kh, w, kw])
        .permute([0, 1, 3, 5, 7, 2, 4, 6])
        .reshape([batch, out * kd * kh * kw, d, h, w]))
}

/// See [`Kernels::channel_sum`](super::Kernels::channel_sum).
pub fn channel_sum<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    raw(sum_per_channel(by_channel(&wrap::<B, 5>(x))).reshape([-1]))
}

fn by_channel<B: Backend>(x: &Tensor<B, 5>) -> Tensor<B, 3> {
    let [b, c, d, h, w] = x.dims();
    x.clone().reshape([b, c, d * h * w])
}

fn sum_per_channel<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.sum_dim(0).sum_dim(2)
}

/// See [`Kernels::adam_step`](super::Kernels::adam_step).
pub fn adam_step<B: Backend>(tensors: [FloatTensor<B>; 4], step: AdamStep) -> [FloatTensor<B>; 3] {
    let [parameter, grad, first, second] = tensors.map(|tensor| {
        let len = tensor.shape().num_elements();
        (
            tensor.shape(),
            wrap::<B, 1>(B::float_reshape(tensor, [len].into())),
        )
    });
    let (shape, parameter) = parameter;
    let grad = grad.1 + parameter.clone() * step.weight_decay;
    let first = first.1 * step.beta_1 + grad.clone() * (1.0 - step.beta_1);
    let second = second.1 * step.beta_2 + grad.clone() * grad * (1.0 - step.beta_2);
    let (factor, epsilon) = step.corrections();
    let change = first.clone() * factor / (second.clone().sqrt() + epsilon);
    [parameter - change * step.rate, first, second]
        .map(|tensor| B::float_reshape(raw(tensor), shape.clone()))
}

/// Numbers of the stream that one thread goes through at a time.
const NUMBERS: usize = 1024;

/// The values of a mask of dropout; see [`Kernels::keep_mask`].
pub fn keep_values(rng: &Rng, len: usize, keep: Keep) -> Vec<f32> {
    let mut mask = vec![0f32; len];
    mask.par_chunks_mut(Keep::DRAWS * NUMBERS)
        .enumerate()
        .for_each(|(block, values)| {
            for (i, group) in values.chunks_mut(Keep::DRAWS).enumerate() {
                let bits = rng.at((block * NUMBERS + i) as u64);
                for (part, value) in group.iter_mut().enumerate() {
                    let drawn = (bits >> (16 * part)) as u32 & 0xffff;
                    *value = if drawn < keep.bound { keep.scale } else { 0.0 };
                }
            }
        });
    mask
}

/// See [`Kernels::keep_mask`].
pub fn keep_mask<B: Backend>(
    rng: &Rng,
    shape: Shape,
    keep: Keep,
    device: &B::Device,
) -> FloatTensor<B> {
    let values = keep_values(rng, shape.num_elements(), keep);
    B::float_from_data(TensorData::new(values, shape), device)
}
