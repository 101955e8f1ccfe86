//! Changes along one axis of a patch `[d, h, w]`.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::{empty, over, upload_floats};

#[cube(launch)]
fn low_resolution_kernel(
    values: &Tensor<f32>,
    out: &mut Tensor<f32>,
    voxels: usize,
    side: usize,
    stride: usize,
    coarse: usize,
    scale: f32,
) {
    let at = ABSOLUTE_POS;
    if at < voxels {
        let n = at / stride % side;
        let start = at - n * stride;
        let place = (f32::cast_from(n) + 0.5f32) / scale - 0.5f32;
        let place = min(max(place, 0.0f32), f32::cast_from(coarse - 1));
        let low = usize::cast_from(place);
        let share = place - f32::cast_from(low);
        let high = min(low + 1, coarse - 1);
        // The half voxel keeps a whole number from falling below itself by rounding.
        let first = usize::cast_from((f32::cast_from(low) + 0.5f32) * scale + 1e-4f32);
        let second = usize::cast_from((f32::cast_from(high) + 0.5f32) * scale + 1e-4f32);
        let a = values[start + min(first, side - 1) * stride];
        let b = values[start + min(second, side - 1) * stride];
        out[at] = a + (b - a) * share;
    }
}

/// As if voxels were longer along `axis`, `coarse` to the side.
pub fn low_resolution<R: CubeRuntime>(
    values: CubeTensor<R>,
    size: [usize; 3],
    axis: usize,
    coarse: usize,
) -> CubeTensor<R> {
    let out = empty(&values, size, DType::F32);
    let voxels = size.iter().product();
    let (count, dim) = over(&out, voxels);
    low_resolution_kernel::launch(
        &out.client,
        count,
        dim,
        values.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        voxels,
        size[axis],
        size[axis + 1..].iter().product(),
        coarse,
        (size[axis] as f64 / coarse as f64) as f32,
    );
    out
}

#[cube(launch)]
fn blur_kernel(
    values: &Tensor<f32>,
    weights: &Tensor<f32>,
    out: &mut Tensor<f32>,
    voxels: usize,
    side: i32,
    stride: usize,
    reach: i32,
) {
    let at = ABSOLUTE_POS;
    if at < voxels {
        let n = (at / stride) as i32 % side;
        let start = at - n as usize * stride;
        let mut sum = 0.0f32;
        for k in 0..2 * reach + 1 {
            let from = min(max(n + k - reach, 0), side - 1);
            sum += weights[k as usize] * values[start + from as usize * stride];
        }
        out[at] = sum;
    }
}

/// Gaussian blur along `axis`, edges repeated; `sigma` in voxels.
pub fn blur<R: CubeRuntime>(
    values: CubeTensor<R>,
    size: [usize; 3],
    axis: usize,
    sigma: f64,
) -> CubeTensor<R> {
    let reach = (3.0 * sigma).ceil() as i32;
    let mut weights: Vec<f32> = (-reach..=reach)
        .map(|n| (-0.5 * (f64::from(n) / sigma).powi(2)).exp() as f32)
        .collect();
    let total: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
    let out = empty(&values, size, DType::F32);
    let voxels = size.iter().product();
    let (count, dim) = over(&out, voxels);
    blur_kernel::launch(
        &out.client,
        count,
        dim,
        values.into_tensor_arg(),
        upload_floats(&out, &weights).into_tensor_arg(),
        out.clone().into_tensor_arg(),
        voxels,
        size[axis] as i32,
        size[axis + 1..].iter().product(),
        reach,
    );
    out
}
