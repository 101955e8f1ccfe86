//! Tensors as the kernels see them: contiguous buffers, channels last.

use burn::tensor::{DType, Shape};
use burn_cubecl::{
    CubeRuntime,
    kernel::{cast, into_contiguous},
    ops::{numeric::empty_device_contiguous_dtype, permute},
    tensor::CubeTensor,
};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// A feature map `[batch, channels, d, h, w]` stored channels last: `[batch, d, h, w, channels]`, contiguous. Nothing is
/// copied when it came from one of these kernels.
pub fn channels_last<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(permute(x, &[0, 2, 3, 4, 1]))
}

/// A buffer `[batch, d, h, w, channels]` as the feature map `[batch, channels, d, h, w]`: only the strides change.
pub fn feature_map<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    permute(x, &[0, 4, 1, 2, 3])
}

/// Sides of a tensor.
pub fn sides<R: CubeRuntime, const D: usize>(x: &CubeTensor<R>) -> [usize; D] {
    let shape = x.meta.shape();
    std::array::from_fn(|i| shape[i])
}

/// An uninitialised contiguous tensor beside `like`.
pub fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// The tensor contiguous and in float32: what parameters and statistics are.
pub fn full<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(cast(x, DType::F32))
}

/// Whole numbers of the host on the device of `like`.
pub fn upload<R: CubeRuntime>(like: &CubeTensor<R>, values: &[u32]) -> CubeTensor<R> {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    let handle = like.client.create_from_slice(&bytes);
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        Shape::from([values.len()]),
        handle,
        DType::U32,
    )
}

/// Numbers of the host on the device of `like`.
pub fn upload_floats<R: CubeRuntime>(like: &CubeTensor<R>, values: &[f32]) -> CubeTensor<R> {
    let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
    let mut tensor = upload(like, &bits);
    tensor.dtype = DType::F32;
    tensor
}

/// Largest vector that `len` channels divide into.
pub fn vector_of(len: usize) -> usize {
    match len {
        _ if len.is_multiple_of(4) => 4,
        _ if len.is_multiple_of(2) => 2,
        _ => 1,
    }
}

/// A launch of at least `units` units.
pub fn over<R: CubeRuntime>(like: &CubeTensor<R>, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(256);
    (calculate_cube_count_elemwise(&like.client, units, dim), dim)
}

/// A launch of at least `cubes` cubes of `dim`; the kernel compares `CUBE_POS` with their number.
pub fn cubes<R: CubeRuntime>(like: &CubeTensor<R>, cubes: usize, dim: CubeDim) -> CubeCount {
    let units = cubes * dim.num_elems() as usize;
    calculate_cube_count_elemwise(&like.client, units, dim)
}
