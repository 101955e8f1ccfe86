//! Patches of training, made where they are used: the same drawing and the same steps as on the CPU, in float32.
//!
//! At 64x128x128: one interpolation of 8 taps a voxel, then up to seven passes that read and write 4 MB each: 0.1 GFLOP over
//! some 60 MB, 0.02 ms on an H100, bound by memory; the region's HU come over the bus, 6 MB or 0.2 ms.

mod fusion;
mod lines;

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

pub use fusion::fuse;

use super::layout::{empty, over, upload, upload_floats};
use super::random::{draw, key_and_counter, stream};
use crate::model::kernels::{PatchJob, ValueChanges};

/// Voxels of a unit: the labels of one word.
const VOXELS: usize = 4;
/// Words of the table of labels on the other side.
const TABLE: usize = 256;

/// HU number `at`, two to a word.
#[cube]
fn hu_of(hu: &Tensor<u32>, at: usize) -> f32 {
    let half = (hu[at / 2] >> ((at % 2) as u32 * 16)) & 0xffffu32;
    let value = f32::cast_from(half);
    select(half >= 0x8000u32, value - 65536.0f32, value)
}

#[cube]
fn byte_of(bytes: &Tensor<u32>, at: usize) -> u32 {
    (bytes[at / 4] >> ((at % 4) as u32 * 8)) & 255u32
}

/// Value and class of each voxel of the patch. `numbers`: matrix (9), the centre's position in the region (3), the
/// patch's half sides (3), lower end of the HU window, factor of the window, control points along z of a voxel, gamma,
/// contrast, brightness.
#[cube(launch)]
fn cut_kernel(
    hu: &Tensor<u32>,
    labels: &Tensor<u32>,
    planes: &Tensor<f32>,
    numbers: &Tensor<f32>,
    values: &mut Tensor<f32>,
    classes: &mut Tensor<u32>,
    voxels: usize,
    height: usize,
    width: usize,
    plane_len: usize,
    region_depth: i32,
    region_height: i32,
    region_width: i32,
    #[comptime] bent: bool,
    #[comptime] gamma: bool,
) {
    let at = ABSOLUTE_POS;
    if at < voxels {
        let x = at % width;
        let y = at / width % height;
        let z = at / (width * height);
        let mut offset = Array::<f32>::new(3usize);
        offset[0] = f32::cast_from(z) - numbers[12];
        offset[1] = f32::cast_from(y) - numbers[13];
        offset[2] = f32::cast_from(x) - numbers[14];
        if bent {
            let place = f32::cast_from(z) * numbers[17];
            let first = place.floor();
            let t = place - first;
            let u = 1.0f32 - t;
            let mut weights = Array::<f32>::new(4usize);
            weights[0] = u * u * u / 6.0f32;
            weights[1] = (3.0f32 * t * t * t - 6.0f32 * t * t + 4.0f32) / 6.0f32;
            weights[2] = (3.0f32 * t * t - 3.0f32 * t * t * t + 3.0f32 * t + 1.0f32) / 6.0f32;
            weights[3] = t * t * t / 6.0f32;
            let row = (usize::cast_from(first) * height + y) * width + x;
            #[unroll]
            for axis in 0..3usize {
                #[unroll]
                for k in 0..4usize {
                    let from = axis * plane_len + k * height * width + row;
                    offset[axis] += weights[k] * planes[from];
                }
            }
        }
        let mut low = Array::<i32>::new(3usize);
        let mut share = Array::<f32>::new(3usize);
        #[unroll]
        for axis in 0..3usize {
            let place = numbers[9 + axis]
                + numbers[axis * 3] * offset[0]
                + numbers[axis * 3 + 1] * offset[1]
                + numbers[axis * 3 + 2] * offset[2];
            let floor = place.floor();
            low[axis] = i32::cast_from(floor);
            share[axis] = place - floor;
        }
        let mut sum = 0.0f32;
        let mut voted = Array::<u32>::new(8usize);
        let mut weights = Array::<f32>::new(8usize);
        #[unroll]
        for tap in 0..8usize {
            let z = low[0] + comptime![(tap / 4) as i32];
            let y = low[1] + comptime![(tap / 2 % 2) as i32];
            let x = low[2] + comptime![(tap % 2) as i32];
            let wz = if comptime![tap / 4 == 1] {
                share[0]
            } else {
                1.0f32 - share[0]
            };
            let wy = if comptime![tap / 2 % 2 == 1] {
                share[1]
            } else {
                1.0f32 - share[1]
            };
            let wx = if comptime![tap % 2 == 1] {
                share[2]
            } else {
                1.0f32 - share[2]
            };
            let weight = wz * wy * wx;
            let mut value = numbers[15];
            let mut label = 0u32;
            let inside = z >= 0
                && z < region_depth
                && y >= 0
                && y < region_height
                && x >= 0
                && x < region_width;
            if inside {
                let from = ((z * region_height + y) * region_width + x) as usize;
                value = hu_of(hu, from);
                label = byte_of(labels, from);
            }
            sum += value * weight;
            voted[tap] = label;
            weights[tap] = weight;
        }
        // The label with the largest share; the first one met among equals.
        let mut best = 0u32;
        let mut most = 0.0f32;
        #[unroll]
        for tap in 0..8usize {
            let mut votes = 0.0f32;
            #[unroll]
            for other in 0..8usize {
                votes += select(voted[other] == voted[tap], weights[other], 0.0f32);
            }
            if votes > most {
                most = votes;
                best = voted[tap];
            }
        }
        classes[at] = best;
        let mut value = (sum - numbers[15]) * numbers[16] - 1.0f32;
        if gamma {
            let unit = min(max((value + 1.0f32) * 0.5f32, 0.0f32), 1.0f32);
            value = unit.powf(numbers[18]) * 2.0f32 - 1.0f32;
        }
        values[at] = value * numbers[19] + numbers[20];
    }
}

/// Noise, exchanged sides, and labels four to a word.
#[cube(launch)]
fn finish_kernel(
    values: &Tensor<f32>,
    classes: &Tensor<u32>,
    table: &Tensor<u32>,
    stream: &Tensor<u32>,
    out: &mut Tensor<f32>,
    words: &mut Tensor<u32>,
    voxels: usize,
    width: usize,
    sigma: f32,
    #[comptime] noisy: bool,
    #[comptime] mirrored: bool,
) {
    let unit = ABSOLUTE_POS;
    if unit * VOXELS < voxels {
        let mut word = 0u32;
        #[unroll]
        for part in 0..VOXELS {
            let at = unit * VOXELS + part;
            if at < voxels {
                let mut from = at;
                if mirrored {
                    from = at / width * width + width - 1 - at % width;
                }
                let mut value = values[from];
                let mut label = classes[from];
                if mirrored {
                    label = table[label as usize];
                }
                if noisy {
                    let (key, first) = key_and_counter(stream);
                    let counter = first + u64::cast_from(from) * 2u64;
                    let whole = 9007199254740992.0f32;
                    let one = 0x20000000000000u64;
                    let a = f32::cast_from(one - (draw(key, counter) >> 11u64)) / whole;
                    let b = f32::cast_from(draw(key, counter + 1u64) >> 11u64) / whole;
                    let normal = (a.ln() * -2.0f32).sqrt() * (b * 6.2831855f32).cos();
                    value += normal * sigma;
                }
                out[at] = value;
                word |= label << comptime![part as u32 * 8];
            }
        }
        words[unit] = word;
    }
}

/// Bytes four to a word, zeros behind the last.
fn packed(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks(4)
        .map(|chunk| {
            let bits = |(i, &byte): (usize, &u8)| u32::from(byte) << (8 * i);
            chunk.iter().enumerate().map(bits).sum()
        })
        .collect()
}

/// Something to bind where nothing is read.
fn or_one(mut words: Vec<u32>) -> Vec<u32> {
    if words.is_empty() {
        words.push(0);
    }
    words
}

/// A patch: values `[d, h, w]` in float32, and its classes on the host.
pub fn make<R: CubeRuntime>(job: &PatchJob, like: &CubeTensor<R>) -> (CubeTensor<R>, Vec<u8>) {
    let [depth, height, width] = job.size;
    let voxels = depth * height * width;
    let (values, classes) = cut(job, like);
    let values = change(values, job);

    let out = empty(like, [depth, height, width], DType::F32);
    let words = empty(like, [voxels.div_ceil(VOXELS)], DType::U32);
    let (sigma, words_of_stream) = match &job.changes.noise {
        Some((sigma, rng)) => (*sigma as f32, stream(rng)),
        None => (0.0, [0; 4]),
    };
    let mut table: Vec<u32> = vec![0; TABLE];
    for (from, to) in job.mirror.iter().flatten().enumerate() {
        table[from] = u32::from(*to);
    }
    let (count, dim) = over(like, voxels.div_ceil(VOXELS));
    finish_kernel::launch(
        &like.client,
        count,
        dim,
        values.into_tensor_arg(),
        classes.into_tensor_arg(),
        upload(like, &table).into_tensor_arg(),
        upload(like, &words_of_stream).into_tensor_arg(),
        out.clone().into_tensor_arg(),
        words.clone().into_tensor_arg(),
        voxels,
        width,
        sigma,
        sigma > 0.0,
        job.mirror.is_some(),
    );
    let mut labels = like.client.read_one_unchecked(words.handle).to_vec();
    labels.truncate(voxels);
    (out, labels)
}

/// Values and classes of the cut, bent patch, the changes of single values made.
fn cut<R: CubeRuntime>(job: &PatchJob, like: &CubeTensor<R>) -> (CubeTensor<R>, CubeTensor<R>) {
    let [depth, height, width] = job.size;
    let voxels = depth * height * width;
    let [low, high] = job.hu_window;
    let ValueChanges {
        gamma,
        contrast,
        brightness,
        ..
    } = job.changes;
    let mut numbers: Vec<f32> = job.matrix.iter().flatten().map(|&v| v as f32).collect();
    numbers.extend([0, 1, 2].map(|axis| (job.centre[axis] - job.low[axis] as f64) as f32));
    numbers.extend(job.size.map(|side| (side as f32 - 1.0) * 0.5));
    let step_z = job.bend.as_ref().map_or(0.0, |bend| bend.step_z as f32);
    numbers.extend([low, 2.0 / (high - low), step_z, gamma.unwrap_or(1.0)]);
    numbers.extend([contrast.unwrap_or(1.0), brightness.unwrap_or(0.0)]);
    let planes: Vec<f32> = match &job.bend {
        Some(bend) => bend.planes.concat(),
        None => vec![0.0],
    };
    let plane_len = planes.len() / 3;
    let pairs = job.hu.chunks(2).map(|pair| {
        let bits = |i: usize| pair.get(i).map_or(0, |&hu| u32::from(hu as u16));
        bits(0) | (bits(1) << 16)
    });
    let values = empty(like, [depth, height, width], DType::F32);
    let classes = empty(like, [voxels], DType::U32);
    let (count, dim) = over(like, voxels);
    let shape = job.shape.map(|side| side as i32);
    cut_kernel::launch(
        &like.client,
        count,
        dim,
        upload(like, &or_one(pairs.collect())).into_tensor_arg(),
        upload(like, &or_one(packed(&job.labels))).into_tensor_arg(),
        upload_floats(like, &planes).into_tensor_arg(),
        upload_floats(like, &numbers).into_tensor_arg(),
        values.clone().into_tensor_arg(),
        classes.clone().into_tensor_arg(),
        voxels,
        height,
        width,
        plane_len,
        shape[0],
        shape[1],
        shape[2],
        job.bend.is_some(),
        gamma.is_some(),
    );
    (values, classes)
}

/// The changes that look along the axes.
fn change<R: CubeRuntime>(mut values: CubeTensor<R>, job: &PatchJob) -> CubeTensor<R> {
    if let Some(factors) = job.changes.low_resolution {
        for (axis, factor) in factors.into_iter().enumerate() {
            let side = job.size[axis];
            let coarse = ((side as f64 / factor).round() as usize).max(1);
            if coarse < side {
                values = lines::low_resolution(values, job.size, axis, coarse);
            }
        }
    }
    if let Some(sigma) = job.changes.blur {
        for (axis, sigma) in sigma.into_iter().enumerate() {
            if sigma > 0.0 && job.size[axis] > 1 {
                values = lines::blur(values, job.size, axis, sigma);
            }
        }
    }
    values
}
