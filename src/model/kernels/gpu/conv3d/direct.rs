//! The convolution of few or odd numbers of input channels (the network's first layer has one): a unit per voxel and four
//! outputs, everything from the cache.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::over;
use super::product::{in_map, moved, offset_of};
use super::{Activation, Map, pack::Packed};

#[cube(launch)]
fn direct_kernel<E: Float, N: Size>(
    x: &Tensor<E>,
    weight: &Tensor<Vector<E, N>>,
    bias: &Tensor<Vector<f32, N>>,
    scale: &Tensor<f32>,
    shift: &Tensor<f32>,
    slope: &Tensor<f32>,
    out: &mut Tensor<E>,
    units: usize,
    lanes: usize,
    columns: usize,
    input: usize,
    output: usize,
    depth: u32,
    height: u32,
    width: u32,
    #[comptime] kernel: [usize; 3],
    #[comptime] activated: bool,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < units {
        let lane = at % lanes;
        let voxel = at / lanes;
        let place = voxel as u32;
        let zy = ((place / (width * height) % depth) << 16) | (place / width % height);
        let sides = (depth, height, width);
        let mut sum = bias[lane];
        for tap in 0..comptime![kernel.iter().product::<usize>()] {
            let offset = offset_of(tap, kernel);
            if in_map(zy, place % width, offset, sides) {
                let from = moved(voxel, offset, sides);
                for c in 0..input {
                    let mut value = f32::cast_from(x[from * input + c]);
                    if activated {
                        let y = value * scale[c] + shift[c];
                        value = select(y < 0.0f32, y * slope[0], y);
                    }
                    let row = tap * input + c;
                    sum += Vector::new(value) * Vector::cast_from(weight[row * columns + lane]);
                }
            }
        }
        #[unroll]
        for i in 0..N::value() {
            let column = lane * N::value() + i;
            if column < output {
                out[voxel * output + column] = E::cast_from(sum[i]);
            }
        }
    }
}

pub fn launch<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Activation<R>,
    activated: bool,
    packed: &Packed<R>,
    out: CubeTensor<R>,
    map: Map,
) {
    const VECTOR: usize = 4;
    let lanes = packed.output.div_ceil(VECTOR);
    let units = map.voxels() * lanes;
    let (count, dim) = over(&out, units);
    let input = x.meta.num_elements() / map.voxels();
    let dtype = x.dtype;
    direct_kernel::launch(
        &out.client.clone(),
        count,
        dim,
        VECTOR,
        x.into_tensor_arg(),
        packed.matrix.clone().into_tensor_arg(),
        packed.bias.clone().into_tensor_arg(),
        activation.scale.into_tensor_arg(),
        activation.shift.into_tensor_arg(),
        activation.slope.into_tensor_arg(),
        out.into_tensor_arg(),
        units,
        lanes,
        packed.columns / VECTOR,
        input,
        packed.output,
        map.depth as u32,
        map.height as u32,
        map.width as u32,
        packed.kernel,
        activated,
        dtype.into(),
    );
}
