//! [`Kernels`](super::Kernels) on the CPU: burn's flex tensors in and out of the slices of [`cpu`](super::cpu).

use burn::tensor::TensorData;
use burn_flex::{Flex, FlexTensor};

use super::cpu::dice_cross_entropy::dice_cross_entropy;
use super::cpu::{
    adam, batch_norm, conv3d, gelu, layer_norm, pool, product, tokens, upsample, window_attention,
};
use super::{
    AdamStep, AttentionLayout, DICE_SMOOTHING, Kernels, MASKED, NORM_EPSILON, NormConvGrads,
    NormPreluGrads, RowIndex, VoxelLabels,
};

/// A contiguous tensor whose values can be borrowed.
struct Host {
    tensor: FlexTensor,
    shape: Vec<usize>,
}

impl Host {
    fn new(tensor: FlexTensor) -> Self {
        let tensor = tensor.to_contiguous();
        let shape = tensor.layout().shape().to_vec();
        Self { tensor, shape }
    }

    /// The values; this network computes in float32 only, so another type is a programming error.
    fn values(&self) -> &[f32] {
        self.tensor
            .as_slice()
            .unwrap_or_else(|| unreachable!("flex tensors here are contiguous float32"))
    }

    fn scalar(&self) -> f32 {
        self.values()[0]
    }

    fn norm_shape(&self) -> batch_norm::BatchNormShape {
        batch_norm::BatchNormShape {
            batch: self.shape[0],
            channels: self.shape[1],
            voxels: self.shape[2..].iter().product(),
        }
    }

    fn pool_shape(&self, depth: bool) -> pool::PoolShape {
        pool::PoolShape {
            volumes: self.shape[0] * self.shape[1],
            depth: self.shape[2],
            height: self.shape[3],
            width: self.shape[4],
            pool_depth: depth,
        }
    }
}

fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

fn vector(values: Vec<f32>) -> FlexTensor {
    let len = values.len();
    tensor(values, &[len])
}

/// Sizes of the convolution of a map `x` `[batch, _, d, h, w]` by a weight `[out, in, kd, kh, kw]`.
fn conv_shape(map: &[usize], weight: &[usize]) -> conv3d::Conv3dShape {
    conv3d::Conv3dShape {
        batch: map[0],
        in_channels: weight[1],
        out_channels: weight[0],
        depth: map[2],
        height: map[3],
        width: map[4],
        kernel: [weight[2], weight[3], weight[4]],
    }
}

fn norm<'a>(gamma: &'a Host, beta: &'a Host, slope: &Host) -> batch_norm::BatchNorm<'a> {
    batch_norm::BatchNorm {
        gamma: gamma.values(),
        beta: beta.values(),
        slope: slope.scalar(),
        epsilon: NORM_EPSILON as f32,
    }
}

fn convolve(
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    prologue: Option<conv3d::Prologue>,
) -> FlexTensor {
    let (x, weight, bias) = (Host::new(x), Host::new(weight), Host::new(bias));
    let shape = conv_shape(&x.shape, &weight.shape);
    let packed = conv3d::PackedWeights::forward(weight.values(), shape);
    let inputs = [(x.values(), shape.in_channels)];
    let y = conv3d::conv3d_forward(&inputs, &packed, Some(bias.values()), prologue, shape);
    tensor(
        y,
        &[
            shape.batch,
            shape.out_channels,
            shape.depth,
            shape.height,
            shape.width,
        ],
    )
}

impl Kernels for Flex {
    fn same_conv3d(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        convolve(x, weight, bias, None)
    }

    fn same_conv3d_input_grad(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let (weight, grad) = (Host::new(weight), Host::new(grad));
        let shape = conv_shape(&grad.shape, &weight.shape);
        let packed = conv3d::PackedWeights::backward_data(weight.values(), shape);
        let mut parts =
            conv3d::conv3d_backward_data(grad.values(), &packed, shape, &[shape.in_channels]);
        let x = parts.pop().unwrap_or_default();
        tensor(
            x,
            &[
                shape.batch,
                shape.in_channels,
                shape.depth,
                shape.height,
                shape.width,
            ],
        )
    }

    fn same_conv3d_weight_grad(
        x: FlexTensor,
        weight: FlexTensor,
        grad: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let weight_shape = weight.layout().shape().to_vec();
        let (x, grad) = (Host::new(x), Host::new(grad));
        let shape = conv_shape(&x.shape, &weight_shape);
        let inputs = [(x.values(), shape.in_channels)];
        let (weight, bias) = conv3d::conv3d_backward_weights(&inputs, grad.values(), None, shape);
        (tensor(weight, &weight_shape), vector(bias))
    }

    fn channel_sum(x: FlexTensor) -> FlexTensor {
        let x = Host::new(x);
        let shape = x.norm_shape();
        vector(tokens::sum_channels(
            x.values(),
            shape.channels,
            shape.voxels,
        ))
    }

    fn batch_norm_prelu(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        slope: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [x, gamma, beta, slope] = [x, gamma, beta, slope].map(Host::new);
        let norm = norm(&gamma, &beta, &slope);
        let (y, moments) = batch_norm::batch_norm_prelu(x.values(), norm, x.norm_shape());
        (
            tensor(y, &x.shape),
            vector(moments.mean),
            vector(moments.var),
        )
    }

    fn batch_norm_prelu_grad(
        x: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        slope: FlexTensor,
        grad: FlexTensor,
    ) -> NormPreluGrads<FlexTensor> {
        let [x, mean, variance, gamma, beta, slope, grad] =
            [x, mean, variance, gamma, beta, slope, grad].map(Host::new);
        let norm = norm(&gamma, &beta, &slope);
        let moments = batch_norm::Moments {
            mean: mean.values().to_vec(),
            var: variance.values().to_vec(),
        };
        let shape = x.norm_shape();
        let out =
            batch_norm::batch_norm_prelu_backward(x.values(), grad.values(), norm, &moments, shape);
        NormPreluGrads {
            x: tensor(out.dx, &x.shape),
            gamma: vector(out.dgamma),
            beta: vector(out.dbeta),
            slope: vector(vec![out.dslope]),
        }
    }

    fn batch_norm_conv3d(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        slope: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [gamma, beta, slope] = [gamma, beta, slope].map(Host::new);
        let x = Host::new(x);
        let moments = batch_norm::moments(x.values(), x.norm_shape());
        let (scale, shift) = batch_norm::fold(norm(&gamma, &beta, &slope), &moments);
        let prologue = conv3d::Prologue {
            scale: &scale,
            shift: &shift,
            slope: slope.scalar(),
        };
        let y = convolve(x.tensor, weight, bias, Some(prologue));
        (y, vector(moments.mean), vector(moments.var))
    }

    fn batch_norm_conv3d_grad(
        x: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        slope: FlexTensor,
        weight: FlexTensor,
        grad: FlexTensor,
    ) -> NormConvGrads<FlexTensor> {
        let weight_shape = weight.layout().shape().to_vec();
        let [x, mean, variance, gamma, beta, slope, grad] =
            [x, mean, variance, gamma, beta, slope, grad].map(Host::new);
        let moments = batch_norm::Moments {
            mean: mean.values().to_vec(),
            var: variance.values().to_vec(),
        };
        let (scale, shift) = batch_norm::fold(norm(&gamma, &beta, &slope), &moments);
        let prologue = conv3d::Prologue {
            scale: &scale,
            shift: &shift,
            slope: slope.scalar(),
        };
        let shape = conv_shape(&x.shape, &weight_shape);
        let inputs = [(x.values(), shape.in_channels)];
        let (weight_grad, bias) =
            conv3d::conv3d_backward_weights(&inputs, grad.values(), Some(prologue), shape);
        let grad = Self::same_conv3d_input_grad(weight, grad.tensor);
        NormConvGrads {
            norm: Self::batch_norm_prelu_grad(
                x.tensor,
                mean.tensor,
                variance.tensor,
                gamma.tensor,
                beta.tensor,
                slope.tensor,
                grad,
            ),
            weight: tensor(weight_grad, &weight_shape),
            bias: vector(bias),
        }
    }

    fn scale_prelu(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        slope: FlexTensor,
    ) -> FlexTensor {
        let [x, scale, shift, slope] = [x, scale, shift, slope].map(Host::new);
        let (scale, shift, slope) = (scale.values(), shift.values(), slope.scalar());
        let y = batch_norm::scale_shift_prelu(x.values(), scale, shift, slope, x.norm_shape());
        tensor(y, &x.shape)
    }

    fn scale_prelu_conv3d(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        slope: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
    ) -> FlexTensor {
        let [scale, shift, slope] = [scale, shift, slope].map(Host::new);
        let prologue = conv3d::Prologue {
            scale: scale.values(),
            shift: shift.values(),
            slope: slope.scalar(),
        };
        convolve(x, weight, bias, Some(prologue))
    }

    fn max_pool(x: FlexTensor, depth: bool) -> FlexTensor {
        let x = Host::new(x);
        let shape = x.pool_shape(depth);
        let (y, _) = pool::max_pool(x.values(), shape);
        let [d, h, w] = shape.output();
        tensor(y, &[x.shape[0], x.shape[1], d, h, w])
    }

    fn max_pool_grad(x: FlexTensor, depth: bool, grad: FlexTensor) -> FlexTensor {
        let (x, grad) = (Host::new(x), Host::new(grad));
        let shape = x.pool_shape(depth);
        let (_, places) = pool::max_pool(x.values(), shape);
        tensor(
            pool::max_pool_backward(grad.values(), &places, shape),
            &x.shape,
        )
    }

    fn row_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor) -> FlexTensor {
        let [x, gamma, beta] = [x, gamma, beta].map(Host::new);
        let y = layer_norm::layer_norm(
            x.values(),
            gamma.values(),
            beta.values(),
            NORM_EPSILON as f32,
        );
        tensor(y, &x.shape)
    }

    fn row_norm_grad(x: FlexTensor, gamma: FlexTensor, grad: FlexTensor) -> [FlexTensor; 3] {
        let [x, gamma, grad] = [x, gamma, grad].map(Host::new);
        let epsilon = NORM_EPSILON as f32;
        let (x_grad, gamma_grad, beta_grad) =
            layer_norm::layer_norm_backward(x.values(), grad.values(), gamma.values(), epsilon);
        [
            tensor(x_grad, &x.shape),
            vector(gamma_grad),
            vector(beta_grad),
        ]
    }

    fn exact_gelu(x: FlexTensor) -> FlexTensor {
        let x = Host::new(x);
        tensor(gelu::gelu(x.values()), &x.shape)
    }

    fn exact_gelu_grad(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let (x, grad) = (Host::new(x), Host::new(grad));
        tensor(gelu::gelu_backward(x.values(), grad.values()), &x.shape)
    }

    fn row_linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let (x, weight, bias) = (Host::new(x), Host::new(weight), Host::new(bias));
        let y = product::linear(x.values(), weight.values(), bias.values(), weight.shape[1]);
        tensor(y, &[x.shape[0], x.shape[1], weight.shape[0]])
    }

    fn row_linear_grad(x: FlexTensor, weight: FlexTensor, grad: FlexTensor) -> [FlexTensor; 3] {
        let (x, weight, grad) = (Host::new(x), Host::new(weight), Host::new(grad));
        let (out, input) = (weight.shape[0], weight.shape[1]);
        let bias_grad = tokens::sum_rows(grad.values(), out);
        let weight_grad = product::linear_weight_grad(x.values(), grad.values(), input);
        let x_grad = product::linear_input_grad(weight.values(), grad.values(), input);
        [
            tensor(x_grad, &x.shape),
            tensor(weight_grad, &weight.shape),
            vector(bias_grad),
        ]
    }

    fn swap_rows(x: FlexTensor) -> FlexTensor {
        let x = Host::new(x);
        let [a, b, c] = [x.shape[0], x.shape[1], x.shape[2]];
        tensor(tokens::transpose(x.values(), b, c), &[a, c, b])
    }

    fn gather_rows(x: FlexTensor, index: &RowIndex) -> FlexTensor {
        let x = Host::new(x);
        let (batch, channels) = (x.shape[0], x.shape[2]);
        let y = tokens::gather_rows(x.values(), batch, channels, &index.from);
        tensor(y, &[batch, index.from.len(), channels])
    }

    fn window_attention(qkv: FlexTensor, bias: FlexTensor, layout: &AttentionLayout) -> FlexTensor {
        let (qkv, bias) = (Host::new(qkv), Host::new(bias));
        let (shape, attention) = attention(&qkv, &bias, layout);
        let parts = tokens::split_heads(qkv.values(), shape.tokens, 3, shape.heads, shape.dim);
        let (y, _) =
            window_attention::window_attention(&parts[0], &parts[1], &parts[2], attention, shape);
        let y = tokens::merge_heads(&[&y], shape.tokens, shape.heads, shape.dim);
        tensor(y, &[shape.windows, shape.tokens, shape.heads * shape.dim])
    }

    fn window_attention_grad(
        qkv: FlexTensor,
        bias: FlexTensor,
        layout: &AttentionLayout,
        grad: FlexTensor,
    ) -> [FlexTensor; 2] {
        let [qkv, bias, grad] = [qkv, bias, grad].map(Host::new);
        let (shape, attention) = attention(&qkv, &bias, layout);
        let (tokens_, heads, dim) = (shape.tokens, shape.heads, shape.dim);
        let parts = tokens::split_heads(qkv.values(), tokens_, 3, heads, dim);
        let [q, k, v] = [&parts[0], &parts[1], &parts[2]];
        let (y, logs) = window_attention::window_attention(q, k, v, attention, shape);
        let dy = tokens::split_heads(grad.values(), tokens_, 1, heads, dim);
        let out = window_attention::window_attention_backward(
            q, k, v, &y, &logs, &dy[0], attention, shape,
        );
        let qkv_grad = tokens::merge_heads(&[&out.dq, &out.dk, &out.dv], tokens_, heads, dim);
        [tensor(qkv_grad, &qkv.shape), tensor(out.dbias, &bias.shape)]
    }

    fn blocks_to_space(x: FlexTensor, bias: FlexTensor, kernel: [usize; 3]) -> FlexTensor {
        let (x, bias) = (Host::new(x), Host::new(bias));
        let map = [x.shape[2], x.shape[3], x.shape[4]];
        let out = x.shape[1] / kernel.iter().product::<usize>();
        let y = tokens::blocks_to_space(x.values(), out, kernel, map, bias.values());
        let [d, h, w] = [0, 1, 2].map(|axis| map[axis] * kernel[axis]);
        tensor(y, &[x.shape[0], out, d, h, w])
    }

    fn blocks_to_space_grad(grad: FlexTensor, kernel: [usize; 3]) -> FlexTensor {
        let grad = Host::new(grad);
        let map = [0, 1, 2].map(|axis| grad.shape[axis + 2] / kernel[axis]);
        let taps: usize = kernel.iter().product();
        let x = tokens::space_to_blocks(grad.values(), kernel, map);
        tensor(
            x,
            &[grad.shape[0], grad.shape[1] * taps, map[0], map[1], map[2]],
        )
    }

    fn adam_step(tensors: [FlexTensor; 4], step: AdamStep) -> [FlexTensor; 3] {
        let [parameter, grad, first, second] = tensors;
        let grad = Host::new(grad);
        // Their owners are gone by now, so these are changed in place; where one is shared after all, a copy is.
        let mut all = [parameter, first, second].map(|tensor| {
            let mut tensor = tensor.to_contiguous();
            if tensor.try_storage_mut::<f32>().is_none() {
                let host = Host::new(tensor);
                tensor = self::tensor(host.values().to_vec(), &host.shape);
            }
            tensor
        });
        let [parameter, first, second] = all.each_mut();
        let (Some(parameter), Some(first), Some(second)) = (
            parameter.try_storage_mut::<f32>(),
            first.try_storage_mut::<f32>(),
            second.try_storage_mut::<f32>(),
        ) else {
            unreachable!("a fresh tensor has one owner")
        };
        adam::adam_step(parameter, grad.values(), first, second, step);
        all
    }

    fn dice_cross_entropy(
        logits: FlexTensor,
        labels: &VoxelLabels,
    ) -> Option<(FlexTensor, FlexTensor)> {
        let logits = Host::new(logits);
        let (batch, classes) = (logits.shape[0], logits.shape[1]);
        let size = [logits.shape[2], logits.shape[3], logits.shape[4]];
        if [0, 1, 2]
            .into_iter()
            .any(|axis| !labels.size[axis].is_multiple_of(size[axis]))
        {
            return None;
        }
        let factors = [0, 1, 2].map(|axis| labels.size[axis] / size[axis]);
        let voxels: usize = labels.size.iter().product();
        let shape = upsample::UpsampleShape {
            volumes: batch * classes,
            size,
            factors,
        };
        let smoothing = DICE_SMOOTHING;
        let (loss, grad) = if factors == [1, 1, 1] {
            dice_cross_entropy(logits.values(), &labels.classes, classes, voxels, smoothing)
        } else {
            let fine = upsample::upsample(logits.values(), shape);
            let (loss, grad) =
                dice_cross_entropy(&fine, &labels.classes, classes, voxels, smoothing);
            (loss, upsample::upsample_backward(&grad, shape))
        };
        Some((vector(vec![loss]), tensor(grad, &logits.shape)))
    }
}

/// Sizes and score terms of an attention over `qkv` `[windows, tokens, 3 * heads * dim]`.
fn attention<'a>(
    qkv: &Host,
    bias: &'a Host,
    layout: &'a AttentionLayout,
) -> (
    window_attention::AttentionShape,
    window_attention::AttentionBias<'a>,
) {
    let shape = window_attention::AttentionShape {
        windows: qkv.shape[0],
        heads: layout.heads,
        tokens: qkv.shape[1],
        dim: qkv.shape[2] / 3 / layout.heads,
    };
    let terms = window_attention::AttentionBias {
        scale: (shape.dim as f32).powf(-0.5),
        bias: bias.values(),
        regions: layout.regions.as_deref(),
        masked: MASKED,
    };
    (shape, terms)
}
