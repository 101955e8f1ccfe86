//! Half Dice, half cross entropy of one scale with its gradient; coarse logits are upsampled voxel by voxel as they are
//! read, so the fine logits are never stored, only their probabilities.
//!
//! At `[2^20, 8]`: 34 MB of probabilities written once and read twice, 0.03 ms on an H200.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::layout::{channels_last, empty, feature_map, over, sides, upload};
use super::reduce::{column_launch, fold_columns, sum_parts};
use crate::model::kernels::{DICE_SMOOTHING, VoxelLabels};

/// Where an upsampled voxel lies along one axis: the first source, the second, and the second's weight.
#[cube]
fn source(at: usize, size: usize, #[comptime] factor: usize) -> (usize, usize, f32) {
    let place = (f32::cast_from(at) + 0.5f32) / comptime![factor as f32] - 0.5f32;
    let place = max(place, 0.0f32);
    let first = usize::cast_from(place);
    (
        first,
        min(first + 1, size - 1),
        place - f32::cast_from(first),
    )
}

#[cube]
fn label_of(labels: &Tensor<u32>, voxel: usize) -> usize {
    ((labels[voxel / 4] >> ((voxel % 4) as u32 * 8)) & 255) as usize
}

/// The upsampled logit of a class.
#[cube]
fn logit<E: Float>(
    logits: &Tensor<E>,
    base: (usize, usize, usize, usize),
    step: (usize, usize, usize),
    weight: (f32, f32, f32),
    classes: usize,
    class: usize,
    #[comptime] fine: bool,
) -> f32 {
    let (b00, b01, b10, b11) = base;
    let (x0, x1, _unused) = step;
    if fine {
        f32::cast_from(logits[(b00 + x0) * classes + class])
    } else {
        let (wz, wy, wx) = weight;
        let mut rows = Array::<f32>::new(4usize);
        let mut bases = Array::<usize>::new(4usize);
        bases[0] = b00;
        bases[1] = b01;
        bases[2] = b10;
        bases[3] = b11;
        #[unroll]
        for i in 0..4usize {
            let a = f32::cast_from(logits[(bases[i] + x0) * classes + class]);
            let b = f32::cast_from(logits[(bases[i] + x1) * classes + class]);
            rows[i] = a * (1.0f32 - wx) + b * wx;
        }
        let top = rows[0] * (1.0f32 - wy) + rows[1] * wy;
        let bottom = rows[2] * (1.0f32 - wy) + rows[3] * wy;
        top * (1.0f32 - wz) + bottom * wz
    }
}

/// Probabilities `[voxels, classes]`, and the cross entropy of each voxel. `size` is that of the coarse logits.
#[cube(launch)]
fn probabilities_kernel<E: Float>(
    logits: &Tensor<E>,
    labels: &Tensor<u32>,
    p: &mut Tensor<f32>,
    entropy: &mut Tensor<f32>,
    voxels: usize,
    classes: usize,
    depth: usize,
    height: usize,
    width: usize,
    #[comptime] factors: (usize, usize, usize),
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    let (fz, fy, fx) = comptime![factors];
    let fine = comptime![fz * fy * fx == 1];
    if at < voxels {
        let x = at % (width * fx);
        let y = at / (width * fx) % (height * fy);
        let z = at / (width * fx * height * fy) % (depth * fz);
        let sample = at / (width * fx * height * fy * depth * fz);
        let (z0, z1, wz) = source(z, depth, fz);
        let (y0, y1, wy) = source(y, height, fy);
        let (x0, x1, wx) = source(x, width, fx);
        let above = (sample * depth + z0) * height;
        let below = (sample * depth + z1) * height;
        let base = (
            (above + y0) * width,
            (above + y1) * width,
            (below + y0) * width,
            (below + y1) * width,
        );
        let mut largest = f32::new(-1e30);
        let mut total = 0.0f32;
        for class in 0..classes {
            let value = logit::<E>(
                logits,
                base,
                (x0, x1, 0usize),
                (wz, wy, wx),
                classes,
                class,
                fine,
            );
            let top = max(largest, value);
            total = total * (largest - top).exp() + (value - top).exp();
            largest = top;
        }
        let label = label_of(labels, at);
        for class in 0..classes {
            let value = logit::<E>(
                logits,
                base,
                (x0, x1, 0usize),
                (wz, wy, wx),
                classes,
                class,
                fine,
            );
            p[at * classes + class] = (value - largest).exp() / total;
            if class == label {
                entropy[at] = total.ln() - (value - largest);
            }
        }
    }
}

/// Per class: sums of the probabilities, of those under the label, of the label, and of the cross entropy under it.
#[cube(launch)]
fn dice_sums_kernel(
    p: &Tensor<Vector<f32, Const<1>>>,
    labels: &Tensor<u32>,
    entropy: &Tensor<f32>,
    parts: &mut Tensor<Vector<f32, Const<1>>>,
    rows: usize,
    classes: usize,
    chunk: usize,
    #[comptime] width: usize,
) {
    let class = CUBE_POS_Y as usize * width + UNIT_POS_X as usize;
    let mut sums = Array::<Vector<f32, Const<1>>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        sums[i] = Vector::new(0.0f32);
    }
    if class < classes {
        let first = CUBE_POS_X as usize * chunk;
        let last = min(first + chunk, rows);
        for row in range_stepped(first + UNIT_POS_Y as usize, last, CUBE_DIM_Y as usize) {
            let value = p[row * classes + class];
            sums[0] += value;
            if label_of(labels, row) == class {
                sums[1] += value;
                sums[2] += Vector::new(1.0f32);
                sums[3] += Vector::new(entropy[row]);
            }
        }
    }
    fold_columns::<Const<1>>(&mut sums, parts, class, classes, width, 4usize);
}

/// The loss, and per class the gradient of a probability under the class's label and everywhere.
#[cube(launch)]
fn dice_loss_kernel(
    sums: &Tensor<f32>,
    loss: &mut Tensor<f32>,
    slopes: &mut Tensor<f32>,
    classes: usize,
    per_count: f32,
    smoothing: f32,
) {
    if ABSOLUTE_POS == 0 {
        let share = 1.0f32 / f32::cast_from(classes);
        let mut mean = 0.0f32;
        let mut entropy = 0.0f32;
        for class in 0..classes {
            let below = sums[class] + sums[2 * classes + class] + smoothing;
            let dice = (2.0f32 * sums[classes + class] + smoothing) / below;
            mean += dice * share;
            entropy += sums[3 * classes + class];
            let slope = -0.5f32 * share / below;
            slopes[class] = slope * 2.0f32;
            slopes[classes + class] = -slope * dice;
        }
        loss[0] = 0.5f32 * entropy * per_count + 0.5f32 * (1.0f32 - mean);
    }
}

/// From probabilities to the gradient of the fine logits, in place.
#[cube(launch)]
fn dice_grad_kernel(
    p: &mut Tensor<f32>,
    labels: &Tensor<u32>,
    slopes: &Tensor<f32>,
    voxels: usize,
    classes: usize,
    entropy_share: f32,
) {
    let at = ABSOLUTE_POS;
    if at < voxels {
        let label = label_of(labels, at);
        let mut along = p[at * classes + label] * slopes[label];
        for class in 0..classes {
            along += p[at * classes + class] * slopes[classes + class];
        }
        for class in 0..classes {
            let value = p[at * classes + class];
            let on = select(class == label, 1.0f32, 0.0f32);
            let slope = slopes[classes + class] + on * slopes[class];
            p[at * classes + class] = value * (slope - along) + entropy_share * (value - on);
        }
    }
}

/// Weight of the source `own` in the upsampled voxel `at` along one axis.
#[cube]
fn weight_in(own: usize, at: usize, size: usize, #[comptime] factor: usize) -> f32 {
    let (first, second, weight) = source(at, size, factor);
    let a = select(first == own, 1.0f32 - weight, 0.0f32);
    let b = select(second == own, weight, 0.0f32);
    a + b
}

/// First and last but one of the upsampled voxels that a source has a part in.
#[cube]
fn reach(own: usize, size: usize, #[comptime] factor: usize) -> (usize, usize) {
    let half = comptime![factor.div_ceil(2)];
    let centre = own * factor;
    let first = select(centre > half, centre - min(half, centre), 0usize);
    (first, min(centre + comptime![factor + half], size * factor))
}

/// Gradient of the coarse logits: the adjoint of the upsampling.
#[cube(launch)]
fn downsample_kernel<E: Float>(
    fine: &Tensor<f32>,
    out: &mut Tensor<E>,
    values: usize,
    classes: usize,
    depth: usize,
    height: usize,
    width: usize,
    #[comptime] factors: (usize, usize, usize),
    #[define(E)] _dtype: StorageType,
) {
    let at = ABSOLUTE_POS;
    let (fz, fy, fx) = comptime![factors];
    if at < values {
        let class = at % classes;
        let voxel = at / classes;
        let x = voxel % width;
        let y = voxel / width % height;
        let z = voxel / (width * height) % depth;
        let sample = voxel / (width * height * depth);
        let (z_first, z_end) = reach(z, depth, fz);
        let (y_first, y_end) = reach(y, height, fy);
        let (x_first, x_end) = reach(x, width, fx);
        let mut total = 0.0f32;
        for zf in z_first..z_end {
            let wz = weight_in(z, zf, depth, fz);
            for yf in y_first..y_end {
                let wy = wz * weight_in(y, yf, height, fy);
                let line = ((sample * depth * fz + zf) * height * fy + yf) * width * fx;
                for xf in x_first..x_end {
                    let weight = wy * weight_in(x, xf, width, fx);
                    total += weight * fine[(line + xf) * classes + class];
                }
            }
        }
        out[at] = E::cast_from(total);
    }
}

/// See [`Kernels::dice_cross_entropy`](crate::model::kernels::Kernels::dice_cross_entropy).
pub fn dice_cross_entropy<R: CubeRuntime>(
    logits: CubeTensor<R>,
    labels: &VoxelLabels,
) -> Option<(CubeTensor<R>, CubeTensor<R>)> {
    let logits = channels_last(logits);
    let shape: [usize; 5] = sides(&logits);
    let [batch, depth, height, width, classes] = shape;
    let size = [depth, height, width];
    if [0, 1, 2]
        .into_iter()
        .any(|axis| !labels.size[axis].is_multiple_of(size[axis]))
    {
        return None;
    }
    let [fz, fy, fx] = [0, 1, 2].map(|axis| labels.size[axis] / size[axis]);
    let factors = (fz, fy, fx);
    let voxels = batch * labels.size.iter().product::<usize>();
    let packed: Vec<u32> = labels
        .classes
        .chunks(4)
        .map(|four| {
            four.iter()
                .rev()
                .fold(0, |all, &one| all << 8 | u32::from(one))
        })
        .collect();
    let labels = upload(&logits, &packed);
    let client = logits.client.clone();
    let dtype = logits.dtype;

    let p = empty(&logits, [voxels, classes], DType::F32);
    let entropy = empty(&logits, [voxels], DType::F32);
    let (count, dim) = over(&logits, voxels);
    probabilities_kernel::launch(
        &client,
        count.clone(),
        dim,
        logits.into_tensor_arg(),
        labels.clone().into_tensor_arg(),
        p.clone().into_tensor_arg(),
        entropy.clone().into_tensor_arg(),
        voxels,
        classes,
        depth,
        height,
        width,
        factors,
        dtype.into(),
    );
    let launch = column_launch(voxels, classes);
    let parts = empty(&p, [launch.chunks, 4 * classes], DType::F32);
    dice_sums_kernel::launch(
        &client,
        launch.count(),
        launch.dim(),
        p.clone().into_tensor_arg(),
        labels.clone().into_tensor_arg(),
        entropy.into_tensor_arg(),
        parts.clone().into_tensor_arg(),
        voxels,
        classes,
        launch.chunk,
        launch.width,
    );
    let loss = empty(&p, [1], DType::F32);
    let slopes = empty(&p, [2 * classes], DType::F32);
    dice_loss_kernel::launch(
        &client,
        CubeCount::new_single(),
        CubeDim::new_single(),
        sum_parts(parts).into_tensor_arg(),
        loss.clone().into_tensor_arg(),
        slopes.clone().into_tensor_arg(),
        classes,
        1.0 / voxels as f32,
        DICE_SMOOTHING as f32,
    );
    dice_grad_kernel::launch(
        &client,
        count,
        dim,
        p.clone().into_tensor_arg(),
        labels.into_tensor_arg(),
        slopes.into_tensor_arg(),
        voxels,
        classes,
        0.5 / voxels as f32,
    );
    let grad = empty(&p, shape, dtype);
    let values = shape.iter().product();
    let (count, dim) = over(&p, values);
    downsample_kernel::launch(
        &client,
        count,
        dim,
        p.into_tensor_arg(),
        grad.clone().into_tensor_arg(),
        values,
        classes,
        depth,
        height,
        width,
        factors,
        dtype.into(),
    );
    Some((loss, feature_map(grad)))
}
