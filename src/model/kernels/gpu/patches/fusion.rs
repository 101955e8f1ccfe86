//! Volume Fusion's samples: resized, stretched in contrast and blended.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::super::layout::{empty, over, upload, upload_floats};
use super::packed;
use crate::model::kernels::{Cut, FusionJob};

/// Units that search one order statistic.
const UNITS: usize = 256;
/// Order statistics of a patch: the smallest, two around each percentile, the largest.
const RANKS: usize = 6;

/// `taps`: for each axis and voxel of the patch the low and high voxel of the cut; `weights` of the high ones.
#[cube(launch)]
fn resize_kernel(
    values: &Tensor<f32>,
    taps: &Tensor<u32>,
    weights: &Tensor<f32>,
    out: &mut Tensor<f32>,
    voxels: usize,
    depth: usize,
    height: usize,
    width: usize,
    cut_height: usize,
    cut_width: usize,
) {
    let at = ABSOLUTE_POS;
    if at < voxels {
        let z = at / (width * height);
        let y = depth + at / width % height;
        let x = depth + height + at % width;
        let mut sum = 0.0f32;
        #[unroll]
        for row in 0..4usize {
            let high_z = comptime![row / 2];
            let high_y = comptime![row % 2];
            let wz = if comptime![high_z == 1] {
                weights[z]
            } else {
                1.0f32 - weights[z]
            };
            let wy = if comptime![high_y == 1] {
                weights[y]
            } else {
                1.0f32 - weights[y]
            };
            let from_z = taps[z * 2 + high_z] as usize;
            let from_y = taps[y * 2 + high_y] as usize;
            let start = (from_z * cut_height + from_y) * cut_width;
            let low = values[start + taps[x * 2] as usize];
            let high = values[start + taps[x * 2 + 1] as usize];
            sum += wz * wy * (low + (high - low) * weights[x]);
        }
        out[at] = sum;
    }
}

/// A number whose order among whole numbers is the value's among values.
#[cube]
fn key_of(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    select(
        bits >= 0x80000000u32,
        bits ^ 0xffffffffu32,
        bits | 0x80000000u32,
    )
}

/// Order statistics: cube `i` finds the value with `ranks[i]` smaller ones (or equal ones before it), bit by bit.
#[cube(launch)]
fn select_kernel(
    values: &Tensor<f32>,
    ranks: &Tensor<u32>,
    out: &mut Tensor<f32>,
    voxels: usize,
    count: usize,
) {
    let mut shared = SharedMemory::<u32>::new(UNITS);
    let unit = UNIT_POS as usize;
    let own = min(CUBE_POS, count - 1);
    let rank = ranks[own];
    let mut found = 0u32;
    for step in 0..32u32 {
        let tried = found | (0x80000000u32 >> step);
        let mut below = 0u32;
        for at in range_stepped(unit, voxels, UNITS) {
            below += select(key_of(values[at]) < tried, 1u32, 0u32);
        }
        sync_cube();
        shared[unit] = below;
        sync_cube();
        let mut total = 0u32;
        for other in 0..UNITS {
            total += shared[other];
        }
        if total <= rank {
            found = tried;
        }
    }
    if unit == 0 && CUBE_POS < count {
        let bits = select(
            found >= 0x80000000u32,
            found & 0x7fffffffu32,
            found ^ 0xffffffffu32,
        );
        out[own] = f32::reinterpret(bits);
    }
}

/// A value after the stretch of contrast, in [0, 1].
#[cube]
fn stretched(v: f32, low: f32, v0: f32, v1: f32, high: f32) -> f32 {
    let mut mapped = 0.1f32;
    if v < v0 {
        mapped = (v - low) / (v0 - low) * 0.1f32;
    } else if v > v1 {
        mapped = 0.9f32 + (v - v1) / (high - v1) * 0.1f32;
    } else if v1 > v0 {
        mapped = 0.1f32 + (v - v0) / (v1 - v0) * 0.8f32;
    }
    min(max(mapped, 0.0f32), 1.0f32)
}

/// The value of a patch as the network is given it, but for the inversion. `statistics`: see [`RANKS`]; `numbers`: the
/// share between the order statistics around each percentile, and gamma.
#[cube]
fn changed(patch: &Tensor<f32>, at: usize, statistics: &Tensor<f32>, numbers: &Tensor<f32>) -> f32 {
    let low = statistics[0];
    let high = statistics[5];
    let v0 = statistics[1] + (statistics[2] - statistics[1]) * numbers[0];
    let v1 = statistics[3] + (statistics[4] - statistics[3]) * numbers[1];
    let value = stretched(patch[at], low, v0, v1, high);
    let least = stretched(low, low, v0, v1, high);
    let span = stretched(high, low, v0, v1, high) - least;
    let mut bent = value;
    if span > 0.0f32 {
        let unit = max((value - least) / span, 0.0f32);
        bent = unit.powf(numbers[2]) * span + least;
    }
    bent * 2.0f32 - 1.0f32
}

#[cube(launch)]
fn fuse_kernel(
    foreground: &Tensor<f32>,
    background: &Tensor<f32>,
    first_statistics: &Tensor<f32>,
    second_statistics: &Tensor<f32>,
    first_numbers: &Tensor<f32>,
    second_numbers: &Tensor<f32>,
    classes: &Tensor<u32>,
    out: &mut Tensor<f32>,
    voxels: usize,
    highest: f32,
    sign: f32,
) {
    let at = ABSOLUTE_POS;
    if at < voxels {
        let class = (classes[at / 4] >> ((at % 4) as u32 * 8)) & 255u32;
        let weight = f32::cast_from(class) / highest;
        let first = changed(foreground, at, first_statistics, first_numbers);
        let second = changed(background, at, second_statistics, second_numbers);
        out[at] = sign * (weight * first + (1.0f32 - weight) * second);
    }
}

fn resized<R: CubeRuntime>(cut: &Cut, size: [usize; 3], like: &CubeTensor<R>) -> CubeTensor<R> {
    let out = empty(like, size, DType::F32);
    let voxels = size.iter().product();
    let taps: Vec<_> = cut.taps.iter().flatten().collect();
    let places: Vec<u32> = taps
        .iter()
        .flat_map(|tap| [tap.low as u32, tap.high as u32])
        .collect();
    let weights: Vec<f32> = taps.iter().map(|tap| tap.weight).collect();
    let (count, dim) = over(like, voxels);
    resize_kernel::launch(
        &out.client,
        count,
        dim,
        upload_floats(like, &cut.values).into_tensor_arg(),
        upload(like, &places).into_tensor_arg(),
        upload_floats(like, &weights).into_tensor_arg(),
        out.clone().into_tensor_arg(),
        voxels,
        size[0],
        size[1],
        size[2],
        cut.shape[1],
        cut.shape[2],
    );
    out
}

/// The ranks that the percentiles of `len` values lie between, and how far between.
fn ranks(percents: [f64; 2], len: usize) -> ([u32; RANKS], [f32; 2]) {
    let last = len.saturating_sub(1);
    let [(a, share_a), (b, share_b)] = percents.map(|percent| {
        let place = last as f64 * percent / 100.0;
        let below = (place as usize).min(last);
        (below, (place - below as f64) as f32)
    });
    let next = |rank: usize| (rank + 1).min(last);
    let ranks = [0, a, next(a), b, next(b), last].map(|rank| rank as u32);
    (ranks, [share_a, share_b])
}

/// A patch with its order statistics, and the numbers that its values are changed by.
struct Resized<R: CubeRuntime> {
    patch: CubeTensor<R>,
    statistics: CubeTensor<R>,
    numbers: CubeTensor<R>,
}

impl<R: CubeRuntime> Resized<R> {
    fn new(cut: &Cut, size: [usize; 3], like: &CubeTensor<R>) -> Self {
        let patch = resized(cut, size, like);
        let (ranks, [first, second]) = ranks(cut.percents, patch.meta.num_elements());
        let statistics = empty(like, [RANKS], DType::F32);
        select_kernel::launch(
            &patch.client,
            CubeCount::Static(RANKS as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            patch.clone().into_tensor_arg(),
            upload(like, &ranks).into_tensor_arg(),
            statistics.clone().into_tensor_arg(),
            patch.meta.num_elements(),
            RANKS,
        );
        Self {
            patch,
            statistics,
            numbers: upload_floats(like, &[first, second, cut.gamma]),
        }
    }
}

/// A sample's network input `[d, h, w]`.
pub fn fuse<R: CubeRuntime>(job: &FusionJob, like: &CubeTensor<R>) -> CubeTensor<R> {
    let voxels: usize = job.size.iter().product();
    let [first, second] = job
        .cuts
        .each_ref()
        .map(|cut| Resized::new(cut, job.size, like));
    let out = empty(like, job.size, DType::F32);
    let (count, dim) = over(like, voxels);
    fuse_kernel::launch(
        &out.client,
        count,
        dim,
        first.patch.into_tensor_arg(),
        second.patch.into_tensor_arg(),
        first.statistics.into_tensor_arg(),
        second.statistics.into_tensor_arg(),
        first.numbers.into_tensor_arg(),
        second.numbers.into_tensor_arg(),
        upload(like, &packed(&job.classes)).into_tensor_arg(),
        out.clone().into_tensor_arg(),
        voxels,
        job.highest as f32,
        if job.inverted { -1.0 } else { 1.0 },
    );
    out
}
