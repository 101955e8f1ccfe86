use super::super::Isa;
use super::super::testing::{noise, relative_error};
use super::weight_gradient::backward_weights_on;
use super::*;
use proptest::prelude::*;

/// The definition, in f64: calls `visit(output index, input index, weight index)` for every product.
fn products(s: Conv3dShape, mut visit: impl FnMut(usize, usize, usize)) {
    let [kz, ky, kx] = s.kernel;
    let shifted = |at: usize, tap: usize, k: usize, len: usize| {
        (at + tap).checked_sub(k / 2).filter(|&i| i < len)
    };
    for n in 0..s.batch {
        for o in 0..s.out_channels {
            for i in 0..s.in_channels {
                for z in 0..s.depth {
                    for y in 0..s.height {
                        for x in 0..s.width {
                            let out = (((n * s.out_channels + o) * s.depth + z) * s.height + y)
                                * s.width
                                + x;
                            for tz in 0..kz {
                                for ty in 0..ky {
                                    for tx in 0..kx {
                                        let (Some(z), Some(y), Some(x)) = (
                                            shifted(z, tz, kz, s.depth),
                                            shifted(y, ty, ky, s.height),
                                            shifted(x, tx, kx, s.width),
                                        ) else {
                                            continue;
                                        };
                                        let input = (((n * s.in_channels + i) * s.depth + z)
                                            * s.height
                                            + y)
                                            * s.width
                                            + x;
                                        let weight =
                                            (((o * s.in_channels + i) * kz + tz) * ky + ty) * kx
                                                + tx;
                                        visit(out, input, weight);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The input as two tensors with their channels, split after `first` channels.
fn split(x: &[f32], s: Conv3dShape, first: usize) -> (Vec<f32>, Vec<f32>) {
    let mut parts = (Vec::new(), Vec::new());
    for sample in x.chunks_exact(s.in_channels * s.voxels()) {
        parts.0.extend_from_slice(&sample[..first * s.voxels()]);
        parts.1.extend_from_slice(&sample[first * s.voxels()..]);
    }
    parts
}

/// The size of a sum of so many products of two values in [-1, 1).
fn usual(terms: usize) -> f64 {
    (terms as f64).sqrt() / 3.0
}

/// Winograd's method with four outputs of three taps loses about one digit.
const TOLERANCE: [f64; 2] = [1e-5, 3e-5];

fn check(isa: Isa, s: Conv3dShape, first: usize, with_prologue: bool, seed: u64) {
    let x = noise(seed, s.batch * s.in_channels * s.voxels());
    let w = noise(seed + 1, s.weights());
    let bias = noise(seed + 2, s.out_channels);
    let dy = noise(seed + 3, s.batch * s.out_channels * s.voxels());
    let (scale, shift) = (
        noise(seed + 4, s.in_channels),
        noise(seed + 5, s.in_channels),
    );
    let prologue = with_prologue.then_some(Prologue {
        scale: &scale,
        shift: &shift,
        slope: 0.25,
    });
    let activated: Vec<f64> = x
        .iter()
        .enumerate()
        .map(|(i, &x)| match prologue {
            None => f64::from(x),
            Some(p) => {
                let c = i / s.voxels() % s.in_channels;
                let y = f64::from(x) * f64::from(p.scale[c]) + f64::from(p.shift[c]);
                if y > 0.0 { y } else { y * f64::from(p.slope) }
            }
        })
        .collect();
    let mut want_y: Vec<f64> = (0..dy.len())
        .map(|i| f64::from(bias[i / s.voxels() % s.out_channels]))
        .collect();
    let (mut want_dx, mut want_dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    products(s, |o, i, k| {
        want_y[o] += activated[i] * f64::from(w[k]);
        want_dx[i] += f64::from(dy[o]) * f64::from(w[k]);
        want_dw[k] += f64::from(dy[o]) * activated[i];
    });
    let mut want_db = vec![0.0; s.out_channels];
    for (i, &g) in dy.iter().enumerate() {
        want_db[i / s.voxels() % s.out_channels] += f64::from(g);
    }

    let (a, b) = split(&x, s, first);
    let inputs: &[(&[f32], usize)] = &[(&a, first), (&b, s.in_channels - first)];
    let want: Vec<f32> = want_dx.iter().map(|&v| v as f32).collect();
    let want = split(&want, s, first);
    let want_dx =
        [want.0, want.1].map(|want| want.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    for (fast, tolerance) in [false, true].into_iter().zip(TOLERANCE) {
        let y = conv3d_forward(
            inputs,
            &PackedWeights::forward_on(isa, fast, &w, s),
            Some(&bias),
            prologue,
            s,
        );
        let error = relative_error(&y, &want_y, usual(s.in_channels * s.taps()));
        assert!(error < tolerance, "y {isa:?} {fast} {s:?}: {error}");
        let dx = conv3d_backward_data(
            &dy,
            &PackedWeights::backward_data_on(isa, fast, &w, s),
            s,
            &[first, s.in_channels - first],
        );
        for (dx, want) in dx.iter().zip(&want_dx) {
            let error = relative_error(dx, want, usual(s.out_channels * s.taps()));
            assert!(error < tolerance, "dx {isa:?} {fast} {s:?}: {error}");
        }
    }
    for (fast, tolerance) in [false, true].into_iter().zip(TOLERANCE) {
        let (dw, db) = backward_weights_on(isa, fast, inputs, &dy, prologue, s);
        let error = relative_error(&dw, &want_dw, usual(s.batch * s.voxels()));
        assert!(error < tolerance, "dw {isa:?} {fast} {s:?}: {error}");
        assert!(
            relative_error(&db, &want_db, usual(s.batch * s.voxels())) < 1e-5,
            "db {isa:?} {s:?}"
        );
    }
}

fn kernels() -> impl Strategy<Value = [usize; 3]> {
    prop_oneof![
        Just([3, 3, 3]),
        Just([1, 3, 3]),
        Just([1, 1, 1]),
        Just([3, 1, 5])
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn matches_the_definition(
        (batch, in_channels, out_channels) in (1usize..3, 1usize..30, 1usize..30),
        (depth, height, width) in (1usize..5, 1usize..8, 1usize..40),
        kernel in kernels(),
        first in 0usize..30,
        with_prologue: bool,
        seed in 0u64..1000,
    ) {
        let shape = Conv3dShape { batch, in_channels, out_channels, depth, height, width, kernel };
        for isa in Isa::available() {
            check(isa, shape, first.min(in_channels), with_prologue, seed);
        }
    }
}

/// Enough channels and rows that channels are cut into chunks, positions into tiles, and sums into parts.
#[test]
fn matches_the_definition_when_cut() {
    for (channels, size) in [
        ((130, 20), [2, 6, 8]),
        ((9, 13), [11, 60, 33]),
        ((200, 24), [1, 8, 150]),
    ] {
        for kernel in [[3, 3, 3], [1, 3, 3], [1, 1, 1]] {
            let shape = Conv3dShape {
                batch: 2,
                in_channels: channels.0,
                out_channels: channels.1,
                depth: size[0],
                height: size[1],
                width: size[2],
                kernel,
            };
            for isa in Isa::available() {
                check(isa, shape, channels.0 / 2, true, 7);
            }
        }
    }
}

/// Reproducibility: the number of threads must not change a bit.
#[test]
fn threads_do_not_change_the_result() {
    let s = Conv3dShape {
        batch: 1,
        in_channels: 70,
        out_channels: 13,
        depth: 7,
        height: 20,
        width: 19,
        kernel: [3, 3, 3],
    };
    let x = noise(1, s.in_channels * s.voxels());
    let dy = noise(2, s.out_channels * s.voxels());
    let w = noise(3, s.weights());
    let run = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| {
                let y = conv3d_forward(
                    &[(&x, s.in_channels)],
                    &PackedWeights::forward(&w, s),
                    None,
                    None,
                    s,
                );
                let dx = conv3d_backward_data(
                    &dy,
                    &PackedWeights::backward_data(&w, s),
                    s,
                    &[s.in_channels],
                );
                (
                    y,
                    dx,
                    conv3d_backward_weights(&[(&x, s.in_channels)], &dy, None, s),
                )
            })
    };
    assert_eq!(run(1), run(5));
}

#[test]
fn what_is_fused_into_the_store() {
    for (kernel, channels, width) in [([3, 3, 3], 12, 19), ([1, 3, 3], 9, 16), ([1, 1, 1], 5, 8)] {
        let shape = Conv3dShape {
            batch: 2,
            in_channels: channels,
            out_channels: 13,
            depth: 5,
            height: 7,
            width,
            kernel,
        };
        let x = noise(1, shape.batch * channels * shape.voxels());
        let (weights, bias) = (noise(2, shape.weights()), noise(3, 13));
        let packed = PackedWeights::to_keep(&weights, shape);
        let inputs = [(&x[..], channels)];
        let plain = conv3d_forward(&inputs, &packed, Some(&bias), None, shape);
        let residual = noise(4, plain.len());
        let want = super::super::gelu::gelu(&plain);
        let mut got = vec![f32::NAN; plain.len()];
        let epilogue = Epilogue {
            gelu: true,
            residual: Some(&residual),
        };
        conv3d_forward_into(&inputs, &packed, &bias, None, epilogue, shape, &mut got);
        for ((got, want), residual) in got.iter().zip(&want).zip(&residual) {
            assert!((got - want - residual).abs() < 1e-5, "{kernel:?}: {got}");
        }
    }
}

/// To bfloat16, to the nearest, ties to even.
fn rounded(values: &[f32]) -> Vec<f32> {
    let to_even = |bits: u32| bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    values
        .iter()
        .map(|v| f32::from_bits(to_even(v.to_bits())))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pairs_of_bfloat16_are_products_of_rounded_factors(
        (batch, in_channels, out_channels) in (1usize..3, 1usize..40, 1usize..30),
        (depth, height, width) in (1usize..5, 1usize..8, 1usize..40),
        kernel in kernels(),
        first in 0usize..30,
        seed in 0u64..1000,
    ) {
        let s = Conv3dShape { batch, in_channels, out_channels, depth, height, width, kernel };
        let (x, w) = (noise(seed, batch * in_channels * s.voxels()), noise(seed + 1, s.weights()));
        let bias = noise(seed + 2, out_channels);
        let (x16, w16) = (rounded(&x), rounded(&w));
        let mut want: Vec<f64> = (0..batch * out_channels * s.voxels())
            .map(|i| f64::from(bias[i / s.voxels() % out_channels]))
            .collect();
        products(s, |o, i, k| want[o] += f64::from(x16[i]) * f64::from(w16[k]));
        let (a, b) = split(&x, s, first.min(in_channels));
        let inputs: &[(&[f32], usize)] = &[(&a, first.min(in_channels)), (&b, in_channels - first.min(in_channels))];
        for isa in Isa::available().into_iter().filter(|isa| isa.has_bf16()) {
            let packed = PackedWeights::pairs_on(isa, false, &w, s);
            let y = conv3d_forward(inputs, &packed, Some(&bias), None, s);
            let error = relative_error(&y, &want, usual(in_channels * s.taps()));
            prop_assert!(error < 1e-5, "{isa:?} {s:?}: {error}");
            // Here the transformed factors are rounded, so products differ by their rounding.
            let packed = PackedWeights::pairs_on(isa, true, &w, s);
            let y = conv3d_forward(inputs, &packed, Some(&bias), None, s);
            let error = relative_error(&y, &want, usual(in_channels * s.taps()));
            prop_assert!(error < 5e-2, "Winograd {isa:?} {s:?}: {error}");
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(packed) = PackedWeights::tiles(&w, s) {
            let y = conv3d_forward(inputs, &packed, Some(&bias), None, s);
            let error = relative_error(&y, &want, usual(in_channels * s.taps()));
            prop_assert!(error < 1e-5, "matrix units {s:?}: {error}");
        }
    }
}

/// Channels in several loads, a prologue, and a store with GELU and residual, as the plan uses them.
#[test]
fn pairs_of_bfloat16_with_all_that_is_fused() {
    for (channels, kernel, size) in [
        ((130, 20), [3, 3, 3], [2, 6, 8]),
        ((48, 24), [1, 3, 3], [3, 40, 128]),
        ((201, 24), [1, 1, 1], [1, 8, 150]),
    ] {
        let shape = Conv3dShape {
            batch: 1,
            in_channels: channels.0,
            out_channels: channels.1,
            depth: size[0],
            height: size[1],
            width: size[2],
            kernel,
        };
        let x = noise(1, channels.0 * shape.voxels());
        let w = noise(2, shape.weights());
        let bias = noise(3, channels.1);
        let (scale, shift) = (noise(4, channels.0), noise(5, channels.0));
        let residual = noise(6, channels.1 * shape.voxels());
        let run = |packed: &PackedWeights| {
            let prologue = Prologue {
                scale: &scale,
                shift: &shift,
                slope: 0.25,
            };
            let epilogue = Epilogue {
                gelu: true,
                residual: Some(&residual),
            };
            let mut y = vec![f32::NAN; residual.len()];
            let inputs = [(&x[..], channels.0)];
            conv3d_forward_into(
                &inputs,
                packed,
                &bias,
                Some(prologue),
                epilogue,
                shape,
                &mut y,
            );
            y
        };
        let want = run(&PackedWeights::to_keep(&w, shape));
        let got = run(&PackedWeights::to_keep_bf16(&w, shape));
        let norm =
            |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let distance = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        assert!(
            distance <= 5e-3 * norm(&mut want.iter().copied()),
            "{shape:?}: {distance}"
        );
    }
}
