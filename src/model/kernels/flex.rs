//! [`Kernels`](super::Kernels) on the CPU: burn's flex tensors in and out of the slices of [`cpu`](super::cpu).

use burn::tensor::TensorData;
use burn_flex::{Flex, FlexTensor};

use super::cpu::{batch_norm, conv3d, gelu, layer_norm, pool, softmax};
use super::{Kernels, NORM_EPSILON, NormPreluGrads};

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
        self.tensor.as_slice().unwrap_or_else(|| unreachable!("flex tensors here are contiguous float32"))
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
    tensor(y, &[shape.batch, shape.out_channels, shape.depth, shape.height, shape.width])
}

impl Kernels for Flex {
    fn same_conv3d(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        convolve(x, weight, bias, None)
    }

    fn same_conv3d_input_grad(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let (weight, grad) = (Host::new(weight), Host::new(grad));
        let shape = conv_shape(&grad.shape, &weight.shape);
        let packed = conv3d::PackedWeights::backward_data(weight.values(), shape);
        let mut parts = conv3d::conv3d_backward_data(grad.values(), &packed, shape, &[shape.in_channels]);
        let x = parts.pop().unwrap_or_default();
        tensor(x, &[shape.batch, shape.in_channels, shape.depth, shape.height, shape.width])
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

    fn batch_norm_prelu(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        slope: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [x, gamma, beta, slope] = [x, gamma, beta, slope].map(Host::new);
        let norm = batch_norm::BatchNorm {
            gamma: gamma.values(),
            beta: beta.values(),
            slope: slope.scalar(),
            epsilon: NORM_EPSILON as f32,
        };
        let (y, moments) = batch_norm::batch_norm_prelu(x.values(), norm, x.norm_shape());
        (tensor(y, &x.shape), vector(moments.mean), vector(moments.var))
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
        let norm = batch_norm::BatchNorm {
            gamma: gamma.values(),
            beta: beta.values(),
            slope: slope.scalar(),
            epsilon: NORM_EPSILON as f32,
        };
        let moments = batch_norm::Moments {
            mean: mean.values().to_vec(),
            var: variance.values().to_vec(),
        };
        let shape = x.norm_shape();
        let out = batch_norm::batch_norm_prelu_backward(x.values(), grad.values(), norm, &moments, shape);
        NormPreluGrads {
            x: tensor(out.dx, &x.shape),
            gamma: vector(out.dgamma),
            beta: vector(out.dbeta),
            slope: vector(vec![out.dslope]),
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
        tensor(pool::max_pool_backward(grad.values(), &places, shape), &x.shape)
    }

    fn row_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor) -> FlexTensor {
        let [x, gamma, beta] = [x, gamma, beta].map(Host::new);
        let y = layer_norm::layer_norm(x.values(), gamma.values(), beta.values(), NORM_EPSILON as f32);
        tensor(y, &x.shape)
    }

    fn row_norm_grad(x: FlexTensor, gamma: FlexTensor, grad: FlexTensor) -> [FlexTensor; 3] {
        let [x, gamma, grad] = [x, gamma, grad].map(Host::new);
        let epsilon = NORM_EPSILON as f32;
        let (x_grad, gamma_grad, beta_grad) =
            layer_norm::layer_norm_backward(x.values(), grad.values(), gamma.values(), epsilon);
        [tensor(x_grad, &x.shape), vector(gamma_grad), vector(beta_grad)]
    }

    fn exact_gelu(x: FlexTensor) -> FlexTensor {
        let x = Host::new(x);
        tensor(gelu::gelu(x.values()), &x.shape)
    }

    fn exact_gelu_grad(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let (x, grad) = (Host::new(x), Host::new(grad));
        tensor(gelu::gelu_backward(x.values(), grad.values()), &x.shape)
    }

    fn attention_softmax(x: FlexTensor) -> FlexTensor {
        let x = Host::new(x);
        tensor(softmax::softmax(x.values(), x.shape[x.shape.len() - 1]), &x.shape)
    }

    fn attention_softmax_grad(y: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let (y, grad) = (Host::new(y), Host::new(grad));
        let rows = y.shape[y.shape.len() - 1];
        tensor(softmax::softmax_backward(y.values(), grad.values(), rows), &y.shape)
    }
}
