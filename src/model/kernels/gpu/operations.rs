//! The trait on top of the kernels.

use burn::tensor::{DType, Shape};
use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement,
    ops::{numeric::empty_device_contiguous_dtype, permute},
    tensor::CubeTensor,
};

use super::conv3d::{self, Activation};
use super::{
    adam, attention, blocks, dropout, inference, loss, norm, patches, reduce, rows, windows,
};
use crate::model::kernels::{
    AdamStep, AttentionLayer, AttentionLayout, ConvLayer, DeviceMemory, Keep, Kernels,
    NormConvGrads, NormPreluGrads, PatchMaker, ReadyAttention, ReadyConv, RowIndex, VoxelLabels,
    WindowBlend, WindowJob,
};
use crate::rng::Rng;

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> Kernels
    for CubeBackend<R, F, I, BT>
{
    fn same_conv3d(x: CubeTensor<R>, weight: CubeTensor<R>, bias: CubeTensor<R>) -> CubeTensor<R> {
        conv3d::forward(x, None, weight, bias)
    }

    fn same_conv3d_input_grad(weight: CubeTensor<R>, grad: CubeTensor<R>) -> CubeTensor<R> {
        conv3d::input_grad(weight, grad)
    }

    fn same_conv3d_weight_grad(
        x: CubeTensor<R>,
        weight: CubeTensor<R>,
        grad: CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        conv3d::weight_grad(x, None, &weight, grad)
    }

    fn channel_sum(x: CubeTensor<R>) -> CubeTensor<R> {
        reduce::channel_sum(x)
    }

    fn batch_norm_prelu(
        x: CubeTensor<R>,
        gamma: CubeTensor<R>,
        beta: CubeTensor<R>,
        slope: CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
        let of = norm::batch_norm(x.clone(), gamma, beta);
        let y = norm::scale_prelu(x, of.scale, of.shift, slope);
        (y, of.mean, of.variance)
    }

    fn batch_norm_prelu_grad(
        x: CubeTensor<R>,
        mean: CubeTensor<R>,
        variance: CubeTensor<R>,
        gamma: CubeTensor<R>,
        beta: CubeTensor<R>,
        slope: CubeTensor<R>,
        grad: CubeTensor<R>,
    ) -> NormPreluGrads<CubeTensor<R>> {
        norm::batch_norm_prelu_grad(x, [mean, variance, gamma, beta, slope], grad)
    }

    fn batch_norm_conv3d(
        x: CubeTensor<R>,
        gamma: CubeTensor<R>,
        beta: CubeTensor<R>,
        slope: CubeTensor<R>,
        weight: CubeTensor<R>,
        bias: CubeTensor<R>,
    ) -> (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>) {
        let of = norm::batch_norm(x.clone(), gamma, beta);
        let activation = Activation {
            scale: of.scale,
            shift: of.shift,
            slope,
        };
        let y = conv3d::forward(x, Some(activation), weight, bias);
        (y, of.mean, of.variance)
    }

    fn batch_norm_conv3d_grad(
        x: CubeTensor<R>,
        mean: CubeTensor<R>,
        variance: CubeTensor<R>,
        gamma: CubeTensor<R>,
        beta: CubeTensor<R>,
        slope: CubeTensor<R>,
        weight: CubeTensor<R>,
        grad: CubeTensor<R>,
    ) -> NormConvGrads<CubeTensor<R>> {
        let (scale, shift) =
            norm::affine(mean.clone(), variance.clone(), gamma.clone(), beta.clone());
        let activation = Activation {
            scale,
            shift,
            slope: slope.clone(),
        };
        let (weight_grad, bias) =
            conv3d::weight_grad(x.clone(), Some(activation), &weight, grad.clone());
        let grad = conv3d::input_grad(weight, grad);
        NormConvGrads {
            norm: norm::batch_norm_prelu_grad(x, [mean, variance, gamma, beta, slope], grad),
            weight: weight_grad,
            bias,
        }
    }

    fn scale_prelu(
        x: CubeTensor<R>,
        scale: CubeTensor<R>,
        shift: CubeTensor<R>,
        slope: CubeTensor<R>,
    ) -> CubeTensor<R> {
        norm::scale_prelu(x, scale, shift, slope)
    }

    fn scale_prelu_conv3d(
        x: CubeTensor<R>,
        scale: CubeTensor<R>,
        shift: CubeTensor<R>,
        slope: CubeTensor<R>,
        weight: CubeTensor<R>,
        bias: CubeTensor<R>,
    ) -> CubeTensor<R> {
        let activation = Activation {
            scale,
            shift,
            slope,
        };
        conv3d::forward(x, Some(activation), weight, bias)
    }

    fn max_pool(x: CubeTensor<R>, depth: bool) -> CubeTensor<R> {
        blocks::max_pool(x, depth)
    }

    fn max_pool_grad(x: CubeTensor<R>, depth: bool, grad: CubeTensor<R>) -> CubeTensor<R> {
        blocks::max_pool_grad(x, depth, grad)
    }

    fn row_norm(x: CubeTensor<R>, gamma: CubeTensor<R>, beta: CubeTensor<R>) -> CubeTensor<R> {
        rows::row_norm(x, gamma, beta)
    }

    fn row_norm_grad(
        x: CubeTensor<R>,
        gamma: CubeTensor<R>,
        grad: CubeTensor<R>,
    ) -> [CubeTensor<R>; 3] {
        rows::row_norm_grad(x, gamma, grad)
    }

    fn exact_gelu(x: CubeTensor<R>) -> CubeTensor<R> {
        rows::exact_gelu(x)
    }

    fn exact_gelu_grad(x: CubeTensor<R>, grad: CubeTensor<R>) -> CubeTensor<R> {
        rows::exact_gelu_grad(x, grad)
    }

    fn row_linear(x: CubeTensor<R>, weight: CubeTensor<R>, bias: CubeTensor<R>) -> CubeTensor<R> {
        rows::row_linear(x, weight, bias)
    }

    fn row_linear_grad(
        x: CubeTensor<R>,
        weight: CubeTensor<R>,
        grad: CubeTensor<R>,
    ) -> [CubeTensor<R>; 3] {
        rows::row_linear_grad(x, weight, grad)
    }

    /// Only the strides change: channels last is the order that the rows are wanted in.
    fn swap_rows(x: CubeTensor<R>) -> CubeTensor<R> {
        permute(x, &[0, 2, 1])
    }

    fn gather_rows(x: CubeTensor<R>, index: &RowIndex) -> CubeTensor<R> {
        rows::gather_rows(x, index)
    }

    fn window_attention(
        qkv: CubeTensor<R>,
        bias: CubeTensor<R>,
        layout: &AttentionLayout,
    ) -> CubeTensor<R> {
        attention::window_attention(qkv, bias, layout)
    }

    fn window_attention_grad(
        qkv: CubeTensor<R>,
        bias: CubeTensor<R>,
        layout: &AttentionLayout,
        grad: CubeTensor<R>,
    ) -> [CubeTensor<R>; 2] {
        attention::window_attention_grad(qkv, bias, layout, grad)
    }

    fn blocks_to_space(x: CubeTensor<R>, bias: CubeTensor<R>, kernel: [usize; 3]) -> CubeTensor<R> {
        blocks::blocks_to_space(x, bias, kernel)
    }

    fn blocks_to_space_grad(grad: CubeTensor<R>, kernel: [usize; 3]) -> CubeTensor<R> {
        blocks::blocks_to_space_grad(grad, kernel)
    }

    fn dice_cross_entropy(
        logits: CubeTensor<R>,
        labels: &VoxelLabels,
    ) -> Option<(CubeTensor<R>, CubeTensor<R>)> {
        loss::dice_cross_entropy(logits, labels)
    }

    fn keep_mask(rng: &Rng, shape: Shape, keep: Keep, device: &R::Device) -> CubeTensor<R> {
        dropout::keep_mask(rng, shape, keep, &anything(device))
    }

    fn adam_step(tensors: [CubeTensor<R>; 4], step: AdamStep) -> [CubeTensor<R>; 3] {
        adam::step(tensors, step)
    }

    fn window_blend(job: WindowJob<Self>) -> Option<Box<dyn WindowBlend<Self>>> {
        Some(windows::blend(job))
    }

    fn device_memory(device: &R::Device) -> DeviceMemory {
        windows::memory::<R>(device)
    }

    fn patch_maker() -> Option<PatchMaker<Self>> {
        Some(PatchMaker {
            make: |job, device| patches::make(job, &anything(device)),
            fuse: |job, device| patches::fuse(job, &anything(device)),
        })
    }

    fn ready_conv(
        layer: ConvLayer<Self>,
        sources: &[usize],
        dtype: DType,
    ) -> Box<dyn ReadyConv<Self>> {
        inference::ready_conv(layer, sources, dtype)
    }

    fn ready_attention(layer: AttentionLayer<Self>, dtype: DType) -> Box<dyn ReadyAttention<Self>> {
        inference::ready_attention(layer, dtype)
    }
}

/// A tensor of the device, for what it is on.
fn anything<R: CubeRuntime>(device: &R::Device) -> CubeTensor<R> {
    let client = R::client(device);
    empty_device_contiguous_dtype(client, device.clone(), Shape::from([1]), DType::F32)
}
