//! The operations that PCT-Net spends its time in, behind one trait.
//!
//! [`Kernels`] extends burn's `Backend`. Its default methods are written with burn's own operations
//! ([`plain`]), so that every backend works; a backend overrides what it does better. The CPU (flex)
//! overrides nearly all of it with [`cpu`]; `Autodiff` adds the backward passes ([`autodiff`]).
//!
//! Feature maps are `[batch, channels, depth, height, width]`, float32.

mod autodiff;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod flex;
pub mod plain;

use burn::tensor::{Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor};

/// Gradients of [`Kernels::batch_norm_prelu`].
pub struct NormPreluGrads<F> {
    /// Gradient of the input, `[batch, channels, depth, height, width]`.
    pub x: F,
    /// Gradient of the scale, `[channels]`.
    pub gamma: F,
    /// Gradient of the shift, `[channels]`.
    pub beta: F,
    /// Gradient of the PReLU slope, `[1]`.
    pub slope: F,
}

/// What PCT-Net needs from a backend beyond burn's operations.
pub trait Kernels: Backend {
    /// Convolution with stride 1 and zero padding that keeps the size; kernel sides are 1 or 3.
    ///
    /// # Shapes
    /// - `x` `[batch, in, depth, height, width]`, `weight` `[out, in, kd, kh, kw]`, `bias` `[out]`
    fn same_conv3d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::same_conv3d::<Self>(x, weight, bias)
    }

    /// Gradient of [`Kernels::same_conv3d`] for its input, from the gradient `grad` of its output.
    fn same_conv3d_input_grad(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::same_conv3d_input_grad::<Self>(weight, grad)
    }

    /// Gradients of [`Kernels::same_conv3d`] for its weight and its bias; `weight` is there for its shape.
    fn same_conv3d_weight_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        plain::same_conv3d_weight_grad::<Self>(x, weight, grad)
    }

    /// Batch normalisation with the batch's own statistics, then PReLU with one slope.
    /// Returns the result, the mean and the biased variance, both `[channels]`.
    fn batch_norm_prelu(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        slope: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        plain::batch_norm_prelu::<Self>(x, gamma, beta, slope)
    }

    /// Gradients of [`Kernels::batch_norm_prelu`].
    #[allow(clippy::too_many_arguments)] // exactly the operation's inputs, outputs and gradient
    fn batch_norm_prelu_grad(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        slope: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> NormPreluGrads<FloatTensor<Self>> {
        plain::batch_norm_prelu_grad::<Self>(x, mean, variance, gamma, beta, slope, grad)
    }

    /// `prelu(x * scale[c] + shift[c])`: batch normalisation with running statistics, then PReLU.
    fn scale_prelu(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        slope: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::scale_prelu::<Self>(x, scale, shift, slope)
    }

    /// [`Kernels::scale_prelu`] and then [`Kernels::same_conv3d`], for inference.
    fn scale_prelu_conv3d(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        slope: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::same_conv3d(Self::scale_prelu(x, scale, shift, slope), weight, bias)
    }

    /// Maximum over blocks of 2x2x2 voxels, or 1x2x2 when `depth` is false. Sides must be even.
    fn max_pool(x: FloatTensor<Self>, depth: bool) -> FloatTensor<Self> {
        plain::max_pool::<Self>(x, depth)
    }

    /// Gradient of [`Kernels::max_pool`]: goes to the largest voxel of each block (the first among equals).
    fn max_pool_grad(x: FloatTensor<Self>, depth: bool, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::max_pool_grad::<Self>(x, depth, grad)
    }

    /// Layer normalisation over the last axis of `[a, b, channels]`.
    fn row_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::row_norm::<Self>(x, gamma, beta)
    }

    /// Gradients of [`Kernels::row_norm`]: input, scale, shift.
    fn row_norm_grad(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        plain::row_norm_grad::<Self>(x, gamma, grad)
    }

    /// GELU with the exact error function, of `[a, b, channels]`.
    fn exact_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::exact_gelu::<Self>(x)
    }

    /// Gradient of [`Kernels::exact_gelu`] (burn's own is that of an approximation on some backends).
    fn exact_gelu_grad(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::exact_gelu_grad::<Self>(x, grad)
    }

    /// Softmax over the last axis of `[windows, heads, tokens, tokens]`.
    fn attention_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::attention_softmax::<Self>(x)
    }

    /// Gradient of [`Kernels::attention_softmax`] from its result `y`.
    fn attention_softmax_grad(y: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::attention_softmax_grad::<Self>(y, grad)
    }
}

/// A tensor as the backend's primitive.
pub(crate) fn raw<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A backend's primitive as a tensor.
pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Epsilon of batch normalisation, as in the published network.
pub(crate) const NORM_EPSILON: f64 = 1e-5;
