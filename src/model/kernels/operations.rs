//! The trait, and what its operations take besides tensors.

use std::sync::Arc;

use burn::tensor::{DType, Shape, Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor};

use super::inference::{
    AttentionLayer, ConvLayer, PlainAttention, PlainConv, ReadyAttention, ReadyConv,
};
use super::patches::PatchMaker;
use super::plain;
use super::windows::{DeviceMemory, WindowBlend, WindowJob};
use crate::rng::Rng;

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

/// Gradients of [`Kernels::batch_norm_conv3d`].
pub struct NormConvGrads<F> {
    /// Of the normalisation and its activation.
    pub norm: NormPreluGrads<F>,
    /// Gradient of the convolution's weight.
    pub weight: F,
    /// Gradient of its bias, `[out]`.
    pub bias: F,
}

/// One step of Adam; see [`Kernels::adam_step`].
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// Learning rate.
    pub rate: f32,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f32,
    /// Decay of the mean of the gradients.
    pub beta_1: f32,
    /// Decay of the mean of their squares.
    pub beta_2: f32,
    /// Added to the root of the mean square.
    pub epsilon: f32,
    /// Steps made, this one included.
    pub time: usize,
}

impl AdamStep {
    /// What the mean is multiplied with, and what is added to the root of the mean square, so that both count for their
    /// start from zero.
    pub(super) fn corrections(&self) -> (f32, f32) {
        let time = i32::try_from(self.time).unwrap_or(i32::MAX);
        let root = (1.0 - self.beta_2.powi(time)).sqrt();
        (root / (1.0 - self.beta_1.powi(time)), self.epsilon * root)
    }
}

/// How much of what dropout masks is kept.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// A draw of 16 bits that is below this keeps its value.
    pub(super) bound: u32,
    /// What is kept is multiplied by this, so that the mean stays.
    pub(super) scale: f32,
}

impl Keep {
    /// Draws from one number of the stream.
    pub(super) const DRAWS: usize = 4;

    /// Keeps values with this probability.
    pub fn with_probability(keep: f64) -> Self {
        Self {
            bound: (keep * 65536.0) as u32,
            scale: (1.0 / keep) as f32,
        }
    }
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
    fn same_conv3d_input_grad(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
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

    /// Sum of a feature map over everything but the channel: `[channels]`.
    fn channel_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::channel_sum::<Self>(x)
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

    /// [`Kernels::batch_norm_prelu`] and then [`Kernels::same_conv3d`]: the result, and the mean and variance of `x`.
    /// What lies between is never kept for the backward pass.
    fn batch_norm_conv3d(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        slope: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (y, mean, variance) = Self::batch_norm_prelu(x, gamma, beta, slope);
        (Self::same_conv3d(y, weight, bias), mean, variance)
    }

    /// Gradients of [`Kernels::batch_norm_conv3d`].
    #[allow(clippy::too_many_arguments)] // exactly the operation's inputs, outputs and gradient
    fn batch_norm_conv3d_grad(
        x: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        slope: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> NormConvGrads<FloatTensor<Self>> {
        plain::batch_norm_conv3d_grad::<Self>(x, mean, variance, gamma, beta, slope, weight, grad)
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
    fn max_pool_grad(
        x: FloatTensor<Self>,
        depth: bool,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
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

    /// `x W^T + b` over the last axis of `[a, b, in]`; weight `[out, in]`.
    fn row_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::row_linear::<Self>(x, weight, bias)
    }

    /// Gradients of [`Kernels::row_linear`]: input, weight, bias.
    fn row_linear_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        plain::row_linear_grad::<Self>(x, weight, grad)
    }

    /// `[a, b, c]` to `[a, c, b]`, stored in that order.
    fn swap_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::swap_rows::<Self>(x)
    }

    /// Rows of `[batch, rows, channels]` in another order; see [`RowIndex`].
    fn gather_rows(x: FloatTensor<Self>, index: &RowIndex) -> FloatTensor<Self> {
        plain::gather_rows::<Self>(x, index)
    }

    /// Self-attention inside windows: `softmax(q k^T / sqrt(dim) + bias + mask) v` per head.
    ///
    /// # Shapes
    /// - `qkv` `[windows, tokens, 3 * heads * dim]`, `bias` `[heads, tokens, tokens]`, result `[windows, tokens, heads * dim]`
    fn window_attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        layout: &AttentionLayout,
    ) -> FloatTensor<Self> {
        plain::window_attention::<Self>(qkv, bias, layout)
    }

    /// Gradients of [`Kernels::window_attention`]: `qkv`, `bias`.
    fn window_attention_grad(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        layout: &AttentionLayout,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        plain::window_attention_grad::<Self>(qkv, bias, layout, grad)
    }

    /// Blocks of voxels out of channels: `[batch, out * kd * kh * kw, d, h, w]` to
    /// `[batch, out, d * kd, h * kh, w * kw]`, plus a bias `[out]`.
    fn blocks_to_space(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        kernel: [usize; 3],
    ) -> FloatTensor<Self> {
        plain::blocks_to_space::<Self>(x, bias, kernel)
    }

    /// Gradient of [`Kernels::blocks_to_space`]: `[batch, out * kd * kh * kw, d, h, w]`.
    fn blocks_to_space_grad(grad: FloatTensor<Self>, kernel: [usize; 3]) -> FloatTensor<Self> {
        plain::blocks_to_space_grad::<Self>(grad, kernel)
    }

    /// Half Dice, half cross entropy of logits `[batch, classes, d, h, w]`, upsampled by whole factors to the labels'
    /// size: the loss `[1]` and the gradient of the logits. `None` where a backend has no such kernel.
    fn dice_cross_entropy(
        _logits: FloatTensor<Self>,
        _labels: &VoxelLabels,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>)> {
        None
    }

    /// How this backend makes patches of training itself. GPUs do, so that the host's threads only read and draw; `None`
    /// where the host makes them.
    fn patch_maker() -> Option<PatchMaker<Self>> {
        None
    }

    /// A convolution of inference made ready for maps of `dtype` with `sources` channels side by side.
    fn ready_conv(
        layer: ConvLayer<Self>,
        _sources: &[usize],
        _dtype: DType,
    ) -> Box<dyn ReadyConv<Self>> {
        Box::new(PlainConv(layer))
    }

    /// Attention of inference made ready for maps of `dtype`.
    fn ready_attention(layer: AttentionLayer<Self>, dtype: DType) -> Box<dyn ReadyAttention<Self>> {
        Box::new(PlainAttention::new(layer, dtype))
    }

    /// Adam (Kingma and Ba 2015) as `torch.optim.Adam` computes it, of a parameter of any shape: the new parameter and both
    /// moments. `[parameter, gradient, first moment, second moment]`, all of one shape.
    fn adam_step(tensors: [FloatTensor<Self>; 4], step: AdamStep) -> [FloatTensor<Self>; 3] {
        plain::adam_step::<Self>(tensors, step)
    }

    /// A mask of dropout: [`Keep`]'s scale where a value is kept, else 0; value `n` is a pure function of the stream and `n`.
    fn keep_mask(rng: &Rng, shape: Shape, keep: Keep, device: &Self::Device) -> FloatTensor<Self> {
        plain::keep_mask::<Self>(rng, shape, keep, device)
    }

    /// [`Kernels::dice_cross_entropy`] as a step of a computation that may be differentiated: the loss `[1]`.
    fn dice_cross_entropy_loss(
        logits: FloatTensor<Self>,
        labels: &VoxelLabels,
    ) -> Option<FloatTensor<Self>> {
        Self::dice_cross_entropy(logits, labels).map(|(loss, _)| loss)
    }

    /// Cuts, blends and labels the windows of a scan on the device; `None` where the host does.
    fn window_blend(_job: WindowJob<Self>) -> Option<Box<dyn WindowBlend<Self>>> {
        None
    }

    /// What this backend holds of the device's memory; zeros where it is the host's.
    fn device_memory(_device: &Self::Device) -> DeviceMemory {
        DeviceMemory::default()
    }
}

/// Where each row comes from, and where each row went.
#[derive(Debug, Clone)]
pub struct RowIndex {
    /// For each new row the old one; [`NO_ROW`] makes a row of zeros. No old row is taken twice.
    pub from: Arc<[u32]>,
    /// For each old row the new one, or [`NO_ROW`].
    pub to: Arc<[u32]>,
}

/// No such row.
pub const NO_ROW: u32 = u32::MAX;

impl RowIndex {
    /// The index `from` over `rows` old rows.
    pub fn new(from: Vec<u32>, rows: usize) -> Self {
        let mut to = vec![NO_ROW; rows];
        for (new, &old) in from.iter().enumerate() {
            if let Some(to) = to.get_mut(old as usize) {
                *to = new as u32;
            }
        }
        Self {
            from: from.into(),
            to: to.into(),
        }
    }

    /// The way back.
    pub fn inverse(&self) -> Self {
        Self {
            from: self.to.clone(),
            to: self.from.clone(),
        }
    }
}

/// What windowed attention needs to know besides its tensors.
#[derive(Debug, Clone)]
pub struct AttentionLayout {
    /// Heads.
    pub heads: usize,
    /// `[windows per sample, tokens]`: tokens of different regions do not see each other. `None`: all do.
    pub regions: Option<Arc<[u8]>>,
}

/// Added to the attention between tokens of different regions.
pub const MASKED: f32 = -100.0;

/// Class indices of a batch, `[batch, d, h, w]`.
#[derive(Debug, Clone)]
pub struct VoxelLabels {
    /// The indices, below the class count.
    pub classes: Arc<[u8]>,
    /// `[d, h, w]`.
    pub size: [usize; 3],
}

/// A tensor as the backend's primitive.
pub(crate) fn raw<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A backend's primitive as a tensor.
pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Keeps Dice defined where a class is in neither prediction nor label.
pub(crate) const DICE_SMOOTHING: f64 = 1e-5;
/// Epsilon of batch normalisation, as in the published network.
pub(crate) const NORM_EPSILON: f64 = 1e-5;
