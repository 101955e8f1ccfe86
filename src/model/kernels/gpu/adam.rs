//! The optimiser's step as one pass over a parameter: 28 bytes read and written for each of its numbers.

use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

use super::layout::{empty, over};
use crate::model::kernels::AdamStep;

#[cube(launch)]
fn adam_kernel(
    parameter: &Tensor<f32>,
    grad: &Tensor<f32>,
    first: &Tensor<f32>,
    second: &Tensor<f32>,
    new_parameter: &mut Tensor<f32>,
    new_first: &mut Tensor<f32>,
    new_second: &mut Tensor<f32>,
    len: usize,
    rate: f32,
    weight_decay: f32,
    beta_1: f32,
    beta_2: f32,
    factor: f32,
    epsilon: f32,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let value = parameter[at];
        let slope = grad[at] + value * weight_decay;
        let mean = first[at] * beta_1 + slope * (1.0f32 - beta_1);
        let square = second[at] * beta_2 + slope * slope * (1.0f32 - beta_2);
        new_parameter[at] = value - mean * factor / (square.sqrt() + epsilon) * rate;
        new_first[at] = mean;
        new_second[at] = square;
    }
}

/// As [`Kernels::adam_step`](crate::model::kernels::Kernels::adam_step).
pub fn step<R: CubeRuntime>(tensors: [CubeTensor<R>; 4], step: AdamStep) -> [CubeTensor<R>; 3] {
    let [parameter, grad, first, second] = tensors.map(into_contiguous);
    let new = |_| empty(&parameter, parameter.meta.shape().clone(), parameter.dtype);
    let out = [0, 1, 2].map(new);
    let len = parameter.meta.num_elements();
    let (count, dim) = over(&parameter, len);
    let (factor, epsilon) = step.corrections();
    let client = parameter.client.clone();
    let [new_parameter, new_first, new_second] = out.clone();
    adam_kernel::launch(
        &client,
        count,
        dim,
        parameter.into_tensor_arg(),
        grad.into_tensor_arg(),
        first.into_tensor_arg(),
        second.into_tensor_arg(),
        new_parameter.into_tensor_arg(),
        new_first.into_tensor_arg(),
        new_second.into_tensor_arg(),
        len,
        step.rate,
        step.weight_decay,
        step.beta_1,
        step.beta_2,
        factor,
        epsilon,
    );
    out
}
