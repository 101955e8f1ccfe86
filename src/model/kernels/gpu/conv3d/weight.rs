//! Gradient of the weight: every unit sums a vector of input by a vector of output channels for one line of taps over a part
//! of the map's lines, sliding along x so that each value is read once for all taps of the line; then the parts are summed.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::{channels_last, empty, over, sides, vector_of};
use super::super::norm::prelu;
use super::super::reduce::channel_sum;
use super::super::tiles::multiplier;
use super::{Activation, Map, tiled, tiled_weight};

/// Units to keep a large GPU busy.
const UNITS: usize = 1 << 18;

#[cube]
fn read<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    scale: &Tensor<Vector<f32, N>>,
    shift: &Tensor<Vector<f32, N>>,
    slope: f32,
    at: usize,
    lane: usize,
    #[comptime] activated: bool,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::cast_from(x[at]);
    if activated {
        value = prelu::<N>(value * scale[lane] + shift[lane], slope);
    }
    value
}

#[cube(launch)]
fn weight_kernel<E: Float, NI: Size, NO: Size>(
    x: &Tensor<Vector<E, NI>>,
    grad: &Tensor<Vector<E, NO>>,
    scale: &Tensor<Vector<f32, NI>>,
    shift: &Tensor<Vector<f32, NI>>,
    slope: &Tensor<f32>,
    parts: &mut Tensor<Vector<f32, NO>>,
    units: usize,
    in_lanes: usize,
    out_lanes: usize,
    lines: usize,
    lines_per_part: usize,
    depth: usize,
    height: usize,
    width: usize,
    #[comptime] kernel: (usize, usize, usize),
    #[comptime] size: usize,
    #[comptime] activated: bool,
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    let (kd, kh, kw) = comptime![kernel];
    if at < units {
        let out_lane = at % out_lanes;
        let in_lane = at / out_lanes % in_lanes;
        let tap_line = at / (out_lanes * in_lanes) % comptime![kd * kh];
        let part = at / (out_lanes * in_lanes * comptime![kd * kh]);
        let dz = (tap_line / kh) as i32 - comptime![(kd / 2) as i32];
        let dy = (tap_line % kh) as i32 - comptime![(kh / 2) as i32];
        let mut sums = Array::<Vector<f32, NO>>::new(comptime![kw * size]);
        #[unroll]
        for i in 0..comptime![kw * size] {
            sums[i] = Vector::new(0.0f32);
        }
        let slope = slope[0];
        let first = part * lines_per_part;
        for line in first..min(first + lines_per_part, lines) {
            let y = (line % height) as i32 + dy;
            let z = (line / height % depth) as i32 + dz;
            if y >= 0 && y < height as i32 && z >= 0 && z < depth as i32 {
                let source = (line as i32 + dz * height as i32 + dy) as usize;
                let from = source * width * in_lanes + in_lane;
                // Before, here, after: what the taps of a line read.
                let mut seen = Array::<Vector<f32, NI>>::new(3usize);
                seen[0] = Vector::new(0.0f32);
                seen[1] = Vector::new(0.0f32);
                seen[2] = read::<E, NI>(x, scale, shift, slope, from, in_lane, activated);
                for column in 0..width {
                    seen[0] = seen[1];
                    seen[1] = seen[2];
                    if column + 1 < width {
                        let next = from + (column + 1) * in_lanes;
                        seen[2] = read::<E, NI>(x, scale, shift, slope, next, in_lane, activated);
                    } else {
                        seen[2] = Vector::new(0.0f32);
                    }
                    let g = Vector::<f32, NO>::cast_from(
                        grad[(line * width + column) * out_lanes + out_lane],
                    );
                    #[unroll]
                    for kx in 0..kw {
                        let value = seen[comptime![kx + 1 - kw / 2]];
                        #[unroll]
                        for i in 0..size {
                            sums[kx * size + i] += Vector::new(value[i]) * g;
                        }
                    }
                }
            }
        }
        #[unroll]
        for kx in 0..kw {
            #[unroll]
            for i in 0..size {
                let tap = tap_line * kw + kx;
                let row = part * comptime![kd * kh * kw] + tap;
                let channel = row * in_lanes * size + in_lane * size + i;
                parts[channel * out_lanes + out_lane] = sums[kx * size + i];
            }
        }
    }
}

/// Parts `[part, tap, in, out]` summed, as `[out, in, tap]`.
#[cube(launch)]
fn gather_parts_kernel(
    parts: &Tensor<f32>,
    out: &mut Tensor<f32>,
    values: usize,
    input: usize,
    output: usize,
    taps: usize,
    count: usize,
) {
    let at = ABSOLUTE_POS;
    if at < values {
        let channel = at % output;
        let from = at / output % input;
        let tap = at / (output * input);
        let mut total = 0.0f32;
        for part in 0..count {
            total += parts[part * values + at];
        }
        out[(channel * input + from) * taps + tap] = total;
    }
}

/// Gradients of the weight and the bias, both in float32; `weight` is there for its shape.
pub fn weight_grad<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Option<Activation<R>>,
    weight: &CubeTensor<R>,
    grad: CubeTensor<R>,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let bias_grad = channel_sum(grad.clone());
    let (x, grad) = (channels_last(x), channels_last(grad));
    let activated = activation.is_some();
    let activation = activation.map_or_else(|| Activation::none(&x), Activation::full);
    let shape: [usize; 5] = sides(weight);
    let [output, input, kd, kh, kw] = shape;
    let parts = match multiplier(&x) {
        Some(by) if tiled::fits(input) => {
            let map = Map::of(&x);
            let channels = [input, output];
            let kernel = [kd, kh, kw];
            tiled_weight::launch(x, activation, activated, grad, kernel, channels, map, by)
        }
        _ => parts(x, activation, activated, shape, grad),
    };
    let out = empty(&parts, shape, DType::F32);
    let values = shape.iter().product();
    let (count, dim) = over(&parts, values);
    let [parts_count, ..]: [usize; 4] = sides(&parts);
    gather_parts_kernel::launch(
        &out.client,
        count,
        dim,
        parts.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        values,
        input,
        output,
        kd * kh * kw,
        parts_count,
    );
    (out, bias_grad)
}

/// The sums of each part on ordinary units, `[part, tap, in, out]` in float32.
fn parts<R: CubeRuntime>(
    x: CubeTensor<R>,
    activation: Activation<R>,
    activated: bool,
    [output, _, kd, kh, kw]: [usize; 5],
    grad: CubeTensor<R>,
) -> CubeTensor<R> {
    let [batch, depth, height, width, input] = sides(&x);
    let (size_in, size_out) = (vector_of(input), vector_of(output));
    let (in_lanes, out_lanes) = (input / size_in, output / size_out);
    let lines = batch * depth * height;
    let work = in_lanes * out_lanes * kd * kh;
    let lines_per_part = lines.div_ceil((UNITS / work).clamp(1, lines));
    let parts_count = lines.div_ceil(lines_per_part);
    let parts = empty(&x, [parts_count, kd * kh * kw, input, output], DType::F32);
    let units = work * parts_count;
    let (count, dim) = over(&x, units);
    let dtype = x.dtype;
    weight_kernel::launch(
        &parts.client,
        count,
        dim,
        size_in,
        size_out,
        x.into_tensor_arg(),
        grad.into_tensor_arg(),
        activation.scale.into_tensor_arg(),
        activation.shift.into_tensor_arg(),
        activation.slope.into_tensor_arg(),
        parts.clone().into_tensor_arg(),
        units,
        in_lanes,
        out_lanes,
        lines,
        lines_per_part,
        depth,
        height,
        width,
        (kd, kh, kw),
        size_in,
        activated,
        dtype.into(),
    );
    parts
}
