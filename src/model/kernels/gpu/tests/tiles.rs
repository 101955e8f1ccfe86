//! Tensor units, whose products are emulated.

use super::super::tiles::{Format, emulation};
use super::*;

/// Formats of tensor units and how far a product may be from float32.
const FORMATS: [(Format, f32); 3] = [
    (Format::Tf32, 1e-3),
    (Format::F16, 2e-3),
    (Format::Bf16, 1e-2),
];

#[test]
fn gpu_tiles_convolve_exactly_what_is_exact() {
    if !gpu_found() {
        return;
    }
    // One to several tiles of voxels, terms and columns, none of them whole; odd numbers of outputs.
    for (kernel, input, output) in [
        ([1, 1, 1], 8, 5),
        ([1, 3, 3], 24, 24),
        ([3, 3, 3], 16, 40),
        ([1, 1, 1], 40, 136),
    ] {
        let [kd, kh, kw] = kernel;
        let size = [2, 3, 5, 9];
        let x = quarters(1, [size[0], input, size[1], size[2], size[3]]);
        let y = quarters(2, [size[0], output, size[1], size[2], size[3]]);
        let (w, b) = (
            quarters(3, [output, input, kd, kh, kw]),
            quarters(4, [output]),
        );
        let want = plain::same_conv3d::<Flex>(x.clone(), w.clone(), b.clone());
        let x_grad = plain::same_conv3d_input_grad::<Flex>(w.clone(), y.clone());
        let (w_grad, b_grad) =
            plain::same_conv3d_weight_grad::<Flex>(x.clone(), w.clone(), y.clone());
        for format in [Format::Tf32, Format::Bf16] {
            emulation::with(format, || {
                let (gx, gy, gw) = (gpu::<5>(&x), gpu::<5>(&y), gpu::<5>(&w));
                let close = |ours: G, want: C| {
                    // What is stored is rounded once.
                    let share = if format == Format::Tf32 { 1e-6 } else { 5e-3 };
                    near::<5>(ours, want, share);
                };
                close(
                    Vulkan::same_conv3d(gx.clone(), gw.clone(), gpu::<1>(&b)),
                    want.clone(),
                );
                let ours = Vulkan::same_conv3d_input_grad(gw.clone(), gy.clone());
                close(ours, x_grad.clone());
                let (ours, ours_b) = Vulkan::same_conv3d_weight_grad(gx, gw, gy);
                near::<5>(ours, w_grad.clone(), 1e-6);
                near::<1>(ours_b, b_grad.clone(), 1e-6);
            });
        }
    }
}

#[test]
fn gpu_tiles_round_as_their_format() {
    if !gpu_found() {
        return;
    }
    let (x, grad) = (random(1, [1, 24, 4, 6, 10]), random(2, [1, 24, 4, 6, 10]));
    let (gamma, beta, slope) = (random(3, [24]), random(4, [24]), random(5, [1]));
    let (w, b) = (random(6, [24, 24, 3, 3, 3]), random(7, [24]));
    let read = plain::scale_prelu::<Flex>(x.clone(), gamma.clone(), beta.clone(), slope.clone());
    let want = plain::same_conv3d::<Flex>(read.clone(), w.clone(), b.clone());
    let x_grad = plain::same_conv3d_input_grad::<Flex>(w.clone(), grad.clone());
    let (w_grad, _) = plain::same_conv3d_weight_grad::<Flex>(read, w.clone(), grad.clone());
    let rows = random(8, [2, 37, 48]);
    let row_grad = random(9, [2, 37, 24]);
    let (matrix, bias) = (random(10, [24, 48]), random(11, [24]));
    let linear = plain::row_linear::<Flex>(rows.clone(), matrix.clone(), bias.clone());
    let linear_grads =
        plain::row_linear_grad::<Flex>(rows.clone(), matrix.clone(), row_grad.clone());
    for (format, bound) in FORMATS {
        emulation::with(format, || {
            let close = |what: &str, distance: f32| {
                eprintln!("{format:?} {what}: {distance:e}");
                // A product that is closer was not rounded at all.
                assert!(
                    (bound * 1e-2..=bound).contains(&distance),
                    "{what}: {distance}"
                );
            };
            let activation = [&gamma, &beta, &slope].map(gpu::<1>);
            let [scale, shift, slope] = activation;
            let (gx, ggrad, gw) = (gpu::<5>(&x), gpu::<5>(&grad), gpu::<5>(&w));
            let ours = Vulkan::scale_prelu_conv3d(
                gx.clone(),
                scale.clone(),
                shift.clone(),
                slope.clone(),
                gw.clone(),
                gpu::<1>(&b),
            );
            close("convolution", away::<5>(ours, want.clone()));
            let ours = Vulkan::same_conv3d_input_grad(gw.clone(), ggrad.clone());
            close("gradient by data", away::<5>(ours, x_grad.clone()));
            let read = Vulkan::scale_prelu(gx, scale, shift, slope);
            let (ours, _) = Vulkan::same_conv3d_weight_grad(read, gw, ggrad);
            close("gradient by weights", away::<5>(ours, w_grad.clone()));
            let (grows, gmatrix) = (gpu::<3>(&rows), gpu::<2>(&matrix));
            let ours = Vulkan::row_linear(grows.clone(), gmatrix.clone(), gpu::<1>(&bias));
            close("linear", away::<3>(ours, linear.clone()));
            let [dx, dw, db] = Vulkan::row_linear_grad(grows, gmatrix, gpu::<3>(&row_grad));
            let [wx, ww, wb] = linear_grads.clone();
            close("linear, by data", away::<3>(dx, wx));
            close("linear, by weights", away::<2>(dw, ww));
            assert!(away::<1>(db, wb) < 1e-5);
        });
    }
}

#[test]
fn gpu_tiles_attend() {
    if !gpu_found() {
        return;
    }
    for (windows, tokens, heads, dim) in [(4, 27, 2, 16), (2, 64, 1, 32)] {
        let qkv = random(1, [windows, tokens, 3 * heads * dim]);
        let bias = random(2, [heads, tokens, tokens]);
        let grad = random(3, [windows, tokens, heads * dim]);
        let regions: Vec<u8> = (0..2 * tokens).map(|i| (i % 3) as u8).collect();
        for (format, bound) in FORMATS {
            let regions = (format != Format::F16).then(|| regions.clone().into());
            let layout = AttentionLayout { heads, regions };
            let want = plain::window_attention::<Flex>(qkv.clone(), bias.clone(), &layout);
            let [wq, wb] = plain::window_attention_grad::<Flex>(
                qkv.clone(),
                bias.clone(),
                &layout,
                grad.clone(),
            );
            emulation::with(format, || {
                let close = |what: &str, distance: f32| {
                    eprintln!("{format:?} {what}: {distance:e}");
                    assert!(
                        (bound * 1e-2..=bound).contains(&distance),
                        "{what}: {distance}"
                    );
                };
                let (gqkv, gbias) = (gpu::<3>(&qkv), gpu::<3>(&bias));
                let ours = Vulkan::window_attention(gqkv.clone(), gbias.clone(), &layout);
                close("attention", away::<3>(ours, want.clone()));
                let [dq, db] = Vulkan::window_attention_grad(gqkv, gbias, &layout, gpu::<3>(&grad));
                close("attention, by tokens", away::<3>(dq, wq.clone()));
                close("attention, by bias", away::<3>(db, wb.clone()));
            });
        }
    }
}

#[test]
fn gpu_tiles_take_halves() {
    if !gpu_found() {
        return;
    }
    // The type of the map is the one of the products, as on tensor units.
    let (x, w, b) = (
        random(1, [1, 16, 3, 5, 7]),
        random(2, [24, 16, 1, 3, 3]),
        random(3, [24]),
    );
    let want = plain::same_conv3d::<Flex>(x.clone(), w.clone(), b.clone());
    let qkv = random(4, [2, 27, 96]);
    let bias = random(5, [1, 27, 27]);
    let layout = AttentionLayout {
        heads: 1,
        regions: None,
    };
    let attended = plain::window_attention::<Flex>(qkv.clone(), bias.clone(), &layout);
    emulation::with(Format::F16, || {
        let ours = Vulkan::same_conv3d(half::<5>(&x), gpu::<5>(&w), gpu::<1>(&b));
        assert!(away::<5>(ours, want) <= 2e-3);
        let ours = Vulkan::window_attention(half::<3>(&qkv), gpu::<3>(&bias), &layout);
        assert!(away::<3>(ours, attended) <= 2e-3);
    });
}
