//! Rates of the CPU kernels. `cargo bench --bench kernels [-- filter]`: each line is the best of several runs.

#![allow(unsafe_code)] // the machine's peak is measured with its own instructions

use fewlabel::model::kernels::cpu::conv3d::*;
use std::hint::black_box;
use std::time::Instant;

/// Processor time of all threads of this process, s.
fn busy_s() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0.0;
    };
    let ns = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("schedstat"))
            .ok()?
            .split(' ')
            .next()?
            .parse::<f64>()
            .ok()
    };
    tasks.flatten().filter_map(ns).sum::<f64>() * 1e-9
}

/// The best time of several runs. With `BUSY=1`: the mean processor time divided by the number of threads, which other processes disturb less.
fn best_s<T>(mut run: impl FnMut() -> T) -> f64 {
    if std::env::var_os("BUSY").is_some() {
        black_box(run());
        let (begin, busy) = (Instant::now(), busy_s());
        let mut runs = 0;
        while runs < 2 || begin.elapsed().as_secs_f64() < 0.5 {
            black_box(run());
            runs += 1;
        }
        return (busy_s() - busy) / f64::from(runs) / rayon::current_num_threads() as f64;
    }
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    let mut runs = 0;
    while runs < 3 || (begin.elapsed().as_secs_f64() < 1.0 && runs < 50) {
        let start = Instant::now();
        black_box(run());
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn values(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7919) % 1013) as f32 / 507.0 - 1.0)
        .collect()
}

fn convolutions(filter: &str) {
    println!(
        "{:34} {:>8} {:>8} {:>8}   GFLOP/s (ms; packing of the weights for forward and dx)",
        "conv3d", "forward", "dx", "dw"
    );
    let k333 = [3, 3, 3];
    let k133 = [1, 3, 3];
    for (i, o, [d, h, w], kernel) in [
        (12, 12, [64, 128, 128], k133),
        (12, 12, [64, 128, 128], k333),
        (24, 24, [64, 128, 128], k133),
        (24, 24, [64, 128, 128], k333),
        (48, 24, [64, 128, 128], k333),
        (24, 24, [32, 64, 64], k133),
        (24, 24, [32, 64, 64], k333),
        (48, 24, [32, 64, 64], k333),
        (24, 48, [32, 64, 64], k333),
        (48, 48, [32, 64, 64], k333),
        (96, 48, [32, 64, 64], k333),
        (96, 96, [16, 32, 32], k333),
        (128, 128, [16, 32, 32], k333),
        (192, 192, [8, 16, 16], k333),
        (192, 192, [4, 8, 8], k333),
        (512, 512, [4, 8, 8], k333),
        (24, 8, [64, 128, 128], [1, 1, 1]),
        (48, 48, [32, 64, 64], [1, 1, 1]),
    ] {
        let shape = Conv3dShape {
            batch: 1,
            in_channels: i,
            out_channels: o,
            depth: d,
            height: h,
            width: w,
            kernel,
        };
        let name = format!(
            "{i}->{o} {d}x{h}x{w} k{}{}{}",
            kernel[0], kernel[1], kernel[2]
        );
        if !name.contains(filter) {
            continue;
        }
        let gflop = 2e-9 * (shape.weights() * shape.voxels()) as f64;
        let x = values(i * shape.voxels());
        let dy = values(o * shape.voxels());
        let weights = values(shape.weights());
        let bias = values(o);
        let forward = PackedWeights::forward(&weights, shape);
        let backward = PackedWeights::backward_data(&weights, shape);
        let f = best_s(|| conv3d_forward(&[(&x, i)], &forward, Some(&bias), None, shape));
        let b = best_s(|| conv3d_backward_data(&dy, &backward, shape, &[i]));
        let g = best_s(|| conv3d_backward_weights(&[(&x, i)], &dy, None, shape));
        println!(
            "{name:34} {:8.1} {:8.1} {:8.1}   ({:.2}, {:.2}, {:.2}; {:.2}, {:.2})",
            gflop / f,
            gflop / b,
            gflop / g,
            f * 1e3,
            b * 1e3,
            g * 1e3,
            best_s(|| PackedWeights::forward(&weights, shape)) * 1e3,
            best_s(|| PackedWeights::backward_data(&weights, shape)) * 1e3
        );
    }
}

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|a| !a.starts_with('-'))
        .unwrap_or_default();
    machine();
    convolutions(&filter);
    memory_bound(&filter);
    attention(&filter);
    machine();
}

/// What two threads can do at this moment: fused multiply-adds from registers (GFLOP/s), and copies (GB/s, one way).
fn machine() {
    let threads = rayon::current_num_threads();
    let steps = 2_000_000usize;
    let fma = best_s(|| {
        rayon::broadcast(|_| {
            let mut sums = [[0.5f32; 16]; 24];
            multiply_add(&mut sums, steps);
            black_box(sums);
        })
    });
    let from = values(64 << 20);
    let mut to = vec![0.0f32; from.len()];
    let copy = best_s(|| {
        use rayon::prelude::*;
        to.par_chunks_mut(1 << 16)
            .zip(from.par_chunks(1 << 16))
            .for_each(|(to, from)| to.copy_from_slice(from));
    });
    let gflop = 2e-9 * (steps * 24 * 16 * threads) as f64;
    println!(
        "machine: {threads} threads, {:.0} GFLOP/s, copy {:.1} GB/s",
        gflop / fma,
        4e-9 * from.len() as f64 / copy
    );
}

#[cfg(target_arch = "x86_64")]
fn multiply_add(sums: &mut [[f32; 16]; 24], steps: usize) {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f")]
    fn run(sums: &mut [[f32; 16]; 24], steps: usize) {
        let mut registers = sums.map(|s| unsafe { _mm512_loadu_ps(s.as_ptr()) });
        let (a, b) = (
            _mm512_set1_ps(black_box(0.5)),
            _mm512_set1_ps(black_box(0.25)),
        );
        for _ in 0..steps {
            for r in &mut registers {
                *r = _mm512_fmadd_ps(*r, a, b);
            }
        }
        for (s, r) in sums.iter_mut().zip(registers) {
            unsafe { _mm512_storeu_ps(s.as_mut_ptr(), r) };
        }
    }
    if is_x86_feature_detected!("avx512f") {
        unsafe { run(sums, steps) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add(_: &mut [[f32; 16]; 24], _: usize) {}

fn attention(filter: &str) {
    use fewlabel::model::kernels::cpu::window_attention::*;
    for (windows, heads, dim) in [(200, 4, 12), (200, 4, 32), (54, 8, 32)] {
        let shape = AttentionShape {
            windows,
            heads,
            tokens: 216,
            dim,
        };
        let name = format!("attention {windows}x{heads}x216x{dim}");
        if !name.contains(filter) {
            continue;
        }
        let len = windows * heads * 216 * dim;
        let (q, k, v, dy) = (
            values(len),
            values(len + 1),
            values(len + 2),
            values(len + 3),
        );
        let bias = values(heads * 216 * 216);
        let terms = AttentionBias {
            scale: 0.2,
            bias: &bias,
            regions: None,
            masked: -100.0,
        };
        let (k, v, dy) = (&k[1..], &v[2..], &dy[3..]);
        let (y, logs) = window_attention(&q, k, v, terms, shape);
        let f = best_s(|| window_attention(&q, k, v, terms, shape));
        let b = best_s(|| window_attention_backward(&q, k, v, &y, &logs, dy, terms, shape));
        let gflop = 4e-9 * (windows * heads * 216 * 216 * dim) as f64;
        println!(
            "{name:40} {:8.2} {:8.2}   ms ({:.0}, {:.0} GFLOP/s)",
            f * 1e3,
            b * 1e3,
            gflop / f,
            2.5 * gflop / b
        );
    }
}

fn memory_bound(filter: &str) {
    use fewlabel::model::kernels::cpu::{
        batch_norm::*, gelu::*, layer_norm::*, pool::*, softmax::*, upsample::*,
    };
    println!("{:40} {:>8} {:>8}   ms", "others", "forward", "backward");
    let line = |name: &str, forward: &mut dyn FnMut(), backward: &mut dyn FnMut()| {
        if name.contains(filter) {
            let f = best_s(forward);
            let b = best_s(backward);
            println!("{name:40} {:8.2} {:8.2}", f * 1e3, b * 1e3);
        }
    };
    for (channels, [d, h, w]) in [(24, [64, 128, 128]), (24, [32, 64, 64])] {
        let shape = BatchNormShape {
            batch: 1,
            channels,
            voxels: d * h * w,
        };
        let (x, dy) = (values(channels * d * h * w), values(channels * d * h * w));
        let ones = vec![1.0; channels];
        let norm = BatchNorm {
            gamma: &ones,
            beta: &ones,
            slope: 0.25,
            epsilon: 1e-5,
        };
        let m = moments(&x, shape);
        let name = format!("bn+prelu train {channels} {d}x{h}x{w}");
        line(
            &name,
            &mut || drop(black_box(batch_norm_prelu(&x, norm, shape))),
            &mut || {
                drop(black_box(batch_norm_prelu_backward(
                    &x, &dy, norm, &m, shape,
                )))
            },
        );
        let (name, other) = (
            format!("bn+prelu eval {channels} {d}x{h}x{w}, moments"),
            (&ones, &ones),
        );
        line(
            &name,
            &mut || {
                drop(black_box(scale_shift_prelu(
                    &x, other.0, other.1, 0.25, shape,
                )))
            },
            &mut || drop(black_box(moments(&x, shape))),
        );
        for pool_depth in [false, true] {
            let shape = PoolShape {
                volumes: channels,
                depth: d,
                height: h,
                width: w,
                pool_depth,
            };
            let (y, places) = max_pool(&x, shape);
            let name = format!("max pool {channels} {d}x{h}x{w} depth {pool_depth}");
            line(
                &name,
                &mut || drop(black_box(max_pool(&x, shape))),
                &mut || drop(black_box(max_pool_backward(&y, &places, shape))),
            );
        }
    }
    let (x, dy) = (values(43_200 * 512), values(43_200 * 512));
    line(
        "gelu 43200x512",
        &mut || drop(black_box(gelu(&x))),
        &mut || drop(black_box(gelu_backward(&x, &dy))),
    );
    let (gamma, beta) = (values(512), values(512));
    line(
        "layer norm 43200x512",
        &mut || drop(black_box(layer_norm(&x, &gamma, &beta, 1e-5))),
        &mut || drop(black_box(layer_norm_backward(&x, &dy, &gamma, 1e-5))),
    );
    let (x, dy) = (values(200 * 4 * 216 * 216), values(200 * 4 * 216 * 216));
    let y = softmax(&x, 216);
    line(
        "softmax 200x4x216x216",
        &mut || drop(black_box(softmax(&x, 216))),
        &mut || drop(black_box(softmax_backward(&y, &dy, 216))),
    );
    let shape = UpsampleShape {
        volumes: 8,
        size: [32, 64, 64],
        factors: [2, 2, 2],
    };
    let (x, dy) = (values(8 * 32 * 64 * 64), values(8 * 64 * 128 * 128));
    line(
        "upsample 8 32x64x64 x2",
        &mut || drop(black_box(upsample(&x, shape))),
        &mut || drop(black_box(upsample_backward(&dy, shape))),
    );
}
