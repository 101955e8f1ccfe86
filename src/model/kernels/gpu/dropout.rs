//! Masks of dropout, drawn where they are used: at 64x128x128 the masks of a step are some 600 MB, which would have to be
//! drawn by the host and come over the bus.

use burn::tensor::{DType, Shape};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::layout::{empty, over, upload};
use super::random::{draw, key_and_counter, stream};
use crate::model::kernels::Keep;
use crate::rng::Rng;

/// Values of a unit: the draws of one number.
const VALUES: usize = Keep::DRAWS;

#[cube(launch)]
fn keep_kernel(stream: &Tensor<u32>, out: &mut Tensor<f32>, count: usize, bound: u32, scale: f32) {
    let unit = ABSOLUTE_POS;
    if unit * VALUES < count {
        let (key, _) = key_and_counter(stream);
        let bits = draw(key, u64::cast_from(unit));
        #[unroll]
        for part in 0..VALUES {
            let at = unit * VALUES + part;
            if at < count {
                let drawn = u32::cast_from((bits >> comptime![16 * part as u64]) & 0xffffu64);
                out[at] = select(drawn < bound, scale, 0.0f32);
            }
        }
    }
}

/// A mask in float32, beside `like`.
pub fn keep_mask<R: CubeRuntime>(
    rng: &Rng,
    shape: Shape,
    keep: Keep,
    like: &CubeTensor<R>,
) -> CubeTensor<R> {
    let values = shape.num_elements();
    let out = empty(like, shape, DType::F32);
    let (count, dim) = over(like, values.div_ceil(VALUES));
    keep_kernel::launch(
        &like.client,
        count,
        dim,
        upload(like, &stream(rng)).into_tensor_arg(),
        out.clone().into_tensor_arg(),
        values,
        keep.bound,
        keep.scale,
    );
    out
}
