//! Every kernel against the plain version on the CPU, on whatever Vulkan device there is (Mesa's lavapipe will do), or in a
//! build for CUDA alone on the first NVIDIA GPU.

mod tiles;

use burn::tensor::{DType, Tensor, TensorData, ops::FloatTensor};
use burn_flex::Flex;

use crate::model::kernels::tests::adam;
use crate::model::kernels::{
    AttentionLayout, Keep, Kernels, NO_ROW, RowIndex, VoxelLabels, plain, raw, wrap,
};
use crate::model::weights::to_f32;
use crate::rng::Rng;

/// The backend under test.
#[cfg(feature = "vulkan")]
pub(crate) type Gpu = burn::backend::Vulkan;
#[cfg(not(feature = "vulkan"))]
pub(crate) type Gpu = burn::backend::Cuda;
/// NVIDIA's tensor units round the factors of float32 products to 10 bits.
pub(crate) const CLOSE: f32 = if cfg!(feature = "vulkan") { 1e-4 } else { 2e-3 };

type Vulkan = Gpu;
type C = FloatTensor<Flex>;
type G = FloatTensor<Vulkan>;

/// Whether a device for the tests is there; says so when it is not.
pub(crate) fn gpu_found() -> bool {
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let found = *FOUND.get_or_init(|| {
        #[cfg(not(feature = "vulkan"))]
        if let Err(reason) = crate::model::kernels::cuda::find(0, true).usable(0) {
            println!("skipped: {reason}");
            return false;
        }
        // wgpu panics without a device; the panic's text then stands above the line that says what is skipped.
        std::panic::catch_unwind(|| {
            let one = Tensor::<Vulkan, 1>::from_floats([1.0], &Default::default());
            to_f32((one.clone() + one).into_data()) == [2.0]
        })
        .unwrap_or(false)
    });
    if !found {
        println!("skipped: there is no device for the GPU kernels");
    }
    found
}

fn random<const D: usize>(stream: u64, shape: [usize; D]) -> C {
    let rng = Rng::new(29).stream(stream);
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64)
        .map(|i| rng.normal_at(i) as f32)
        .collect();
    raw(Tensor::<Flex, D>::from_data(
        TensorData::new(values, shape),
        &Default::default(),
    ))
}

/// The tensor on the GPU.
fn gpu<const D: usize>(x: &C) -> G {
    let data = wrap::<Flex, D>(x.clone()).into_data();
    raw(Tensor::<Vulkan, D>::from_data(data, &Default::default()))
}

/// The same, in half precision.
fn half<const D: usize>(x: &C) -> G {
    raw(wrap::<Vulkan, D>(gpu::<D>(x)).cast(DType::F16))
}

#[track_caller]
fn near<const D: usize>(ours: G, want: C, share: f32) {
    let ours = wrap::<Vulkan, D>(ours);
    let want = wrap::<Flex, D>(want);
    assert_eq!(ours.dims(), want.dims());
    let (ours, want) = (
        to_f32(ours.cast(DType::F32).into_data()),
        to_f32(want.into_data()),
    );
    let largest = want.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in ours.iter().zip(&want).enumerate() {
        assert!(
            (a - b).abs() <= share * largest,
            "{a} and {b} at {i}, largest {largest}"
        );
    }
}

#[track_caller]
fn same<const D: usize>(ours: G, want: C) {
    near::<D>(ours, want, CLOSE);
}

#[test]
fn gpu_convolution() {
    if !gpu_found() {
        return;
    }
    // Through both kernels (few or odd inputs, multiples of eight), more columns than a tile, odd sides.
    for (kernel, input, output) in [
        ([3, 3, 3], 5, 6),
        ([1, 3, 3], 1, 24),
        ([3, 3, 3], 8, 9),
        ([1, 3, 3], 24, 24),
        ([1, 1, 1], 16, 5),
        ([3, 3, 3], 48, 72),
    ] {
        let [kd, kh, kw] = kernel;
        let (x, y) = (
            random(1, [2, input, 3, 5, 7]),
            random(2, [2, output, 3, 5, 7]),
        );
        let (w, b) = (random(3, [output, input, kd, kh, kw]), random(4, [output]));
        let (gx, gy) = (gpu::<5>(&x), gpu::<5>(&y));
        let (gw, gb) = (gpu::<5>(&w), gpu::<1>(&b));
        same::<5>(
            Vulkan::same_conv3d(gx.clone(), gw.clone(), gb),
            plain::same_conv3d::<Flex>(x.clone(), w.clone(), b.clone()),
        );
        same::<5>(
            Vulkan::same_conv3d_input_grad(gw.clone(), gy.clone()),
            plain::same_conv3d_input_grad::<Flex>(w.clone(), y.clone()),
        );
        let (w1, b1) = Vulkan::same_conv3d_weight_grad(gx, gw.clone(), gy);
        let (w2, b2) = plain::same_conv3d_weight_grad::<Flex>(x.clone(), w.clone(), y);
        same::<5>(w1, w2);
        same::<1>(b1, b2);
        near::<5>(
            Vulkan::same_conv3d(half::<5>(&x), gw, gpu::<1>(&b)),
            plain::same_conv3d::<Flex>(x, w, b),
            1e-2,
        );
    }
}

#[test]
fn gpu_normalisation() {
    if !gpu_found() {
        return;
    }
    for (channels, output, kernel, slope) in [
        (3, 4, [3, 3, 3], 0.25),
        (8, 10, [1, 3, 3], -0.5),
        (24, 24, [1, 1, 1], 0.25),
    ] {
        let [kd, kh, kw] = kernel;
        let shape = [2, channels, 4, 5, 6];
        let x = random(1, shape);
        let (gamma, beta) = (random(3, [channels]), random(4, [channels]));
        let slope: C = raw(Tensor::<Flex, 1>::from_floats([slope], &Default::default()));
        let (w, bias) = (
            random(5, [output, channels, kd, kh, kw]),
            random(6, [output]),
        );
        let (gx, ggamma, gbeta) = (gpu::<5>(&x), gpu::<1>(&gamma), gpu::<1>(&beta));
        let (gslope, gw, gbias) = (gpu::<1>(&slope), gpu::<5>(&w), gpu::<1>(&bias));

        same::<5>(
            Vulkan::scale_prelu(gx.clone(), ggamma.clone(), gbeta.clone(), gslope.clone()),
            plain::scale_prelu::<Flex>(x.clone(), gamma.clone(), beta.clone(), slope.clone()),
        );
        let (a, mean, variance) =
            plain::batch_norm_prelu::<Flex>(x.clone(), gamma.clone(), beta.clone(), slope.clone());
        let (y, m, v) =
            Vulkan::batch_norm_prelu(gx.clone(), ggamma.clone(), gbeta.clone(), gslope.clone());
        same::<5>(y, a.clone());
        same::<1>(m.clone(), mean.clone());
        same::<1>(v.clone(), variance.clone());
        let grad = random(2, shape);
        let ours = Vulkan::batch_norm_prelu_grad(
            gx.clone(),
            m,
            v,
            ggamma.clone(),
            gbeta.clone(),
            gslope.clone(),
            gpu::<5>(&grad),
        );
        let want = plain::batch_norm_prelu_grad::<Flex>(
            x.clone(),
            mean.clone(),
            variance.clone(),
            gamma.clone(),
            beta.clone(),
            slope.clone(),
            grad,
        );
        same::<5>(ours.x, want.x);
        same::<1>(ours.gamma, want.gamma);
        same::<1>(ours.beta, want.beta);
        same::<1>(ours.slope, want.slope);

        let (y, m, v) = Vulkan::batch_norm_conv3d(
            gx.clone(),
            ggamma.clone(),
            gbeta.clone(),
            gslope.clone(),
            gw.clone(),
            gbias.clone(),
        );
        same::<5>(y, plain::same_conv3d::<Flex>(a, w.clone(), bias.clone()));
        let grad = random(7, [2, output, 4, 5, 6]);
        let ours = Vulkan::batch_norm_conv3d_grad(
            gx.clone(),
            m,
            v,
            ggamma.clone(),
            gbeta.clone(),
            gslope.clone(),
            gw.clone(),
            gpu::<5>(&grad),
        );
        let want = plain::batch_norm_conv3d_grad::<Flex>(
            x.clone(),
            mean,
            variance,
            gamma.clone(),
            beta.clone(),
            slope.clone(),
            w.clone(),
            grad,
        );
        same::<5>(ours.norm.x, want.norm.x);
        same::<1>(ours.norm.gamma, want.norm.gamma);
        same::<1>(ours.norm.beta, want.norm.beta);
        same::<1>(ours.norm.slope, want.norm.slope);
        same::<5>(ours.weight, want.weight);
        same::<1>(ours.bias, want.bias);

        let activated =
            plain::scale_prelu::<Flex>(x.clone(), gamma.clone(), beta.clone(), slope.clone());
        same::<5>(
            Vulkan::scale_prelu_conv3d(gx.clone(), ggamma, gbeta, gslope, gw, gbias),
            plain::same_conv3d::<Flex>(activated, w, bias),
        );
        same::<1>(Vulkan::channel_sum(gx), plain::channel_sum::<Flex>(x));
    }
}

#[test]
fn gpu_statistics_of_many_voxels_far_from_zero() {
    if !gpu_found() {
        return;
    }
    let shape = [1, 5, 16, 24, 20];
    let far = wrap::<Flex, 5>(random(1, shape)) * 0.1 + 30.0;
    let x: C = raw(far);
    let one: C = raw(Tensor::<Flex, 1>::ones([5], &Default::default()));
    let slope: C = random(3, [1]);
    let (_, m, v) = Vulkan::batch_norm_prelu(
        gpu::<5>(&x),
        gpu::<1>(&one),
        gpu::<1>(&one),
        gpu::<1>(&slope),
    );
    let (_, mean, variance) = plain::batch_norm_prelu::<Flex>(x, one.clone(), one, slope);
    same::<1>(m, mean);
    same::<1>(v, variance);
}

#[test]
fn gpu_pools_and_blocks() {
    if !gpu_found() {
        return;
    }
    for (depth, channels) in [(true, 3), (false, 8)] {
        let x = random(1, [2, channels, 4, 6, 8]);
        let y = plain::max_pool::<Flex>(x.clone(), depth);
        same::<5>(Vulkan::max_pool(gpu::<5>(&x), depth), y.clone());
        let grad = random(2, wrap::<Flex, 5>(y).dims());
        same::<5>(
            Vulkan::max_pool_grad(gpu::<5>(&x), depth, gpu::<5>(&grad)),
            plain::max_pool_grad::<Flex>(x, depth, grad),
        );
    }
    for kernel in [[2, 2, 2], [1, 2, 2]] {
        let taps: usize = kernel.iter().product();
        let (x, bias) = (random(1, [2, 3 * taps, 2, 3, 4]), random(2, [3]));
        let y = plain::blocks_to_space::<Flex>(x.clone(), bias.clone(), kernel);
        same::<5>(
            Vulkan::blocks_to_space(gpu::<5>(&x), gpu::<1>(&bias), kernel),
            y.clone(),
        );
        same::<5>(
            Vulkan::blocks_to_space_grad(gpu::<5>(&y), kernel),
            plain::blocks_to_space_grad::<Flex>(y, kernel),
        );
    }
}

#[test]
fn gpu_rows() {
    if !gpu_found() {
        return;
    }
    for channels in [10, 36] {
        let (x, grad) = (random(1, [3, 7, channels]), random(2, [3, 7, channels]));
        let (gamma, beta) = (random(3, [channels]), random(4, [channels]));
        let (gx, ggrad) = (gpu::<3>(&x), gpu::<3>(&grad));
        let (ggamma, gbeta) = (gpu::<1>(&gamma), gpu::<1>(&beta));
        same::<3>(
            Vulkan::row_norm(gx.clone(), ggamma.clone(), gbeta),
            plain::row_norm::<Flex>(x.clone(), gamma.clone(), beta),
        );
        let [ax, ag, ab] = Vulkan::row_norm_grad(gx.clone(), ggamma, ggrad.clone());
        let [bx, bg, bb] = plain::row_norm_grad::<Flex>(x.clone(), gamma, grad.clone());
        same::<3>(ax, bx);
        same::<1>(ag, bg);
        same::<1>(ab, bb);
        same::<3>(
            Vulkan::exact_gelu(gx.clone()),
            plain::exact_gelu::<Flex>(x.clone()),
        );
        same::<3>(
            Vulkan::exact_gelu_grad(gx.clone(), ggrad),
            plain::exact_gelu_grad::<Flex>(x.clone(), grad),
        );
        same::<3>(
            Vulkan::swap_rows(gx.clone()),
            plain::swap_rows::<Flex>(x.clone()),
        );

        let (w, bias) = (random(5, [4, channels]), random(6, [4]));
        let grad = random(7, [3, 7, 4]);
        let gw = gpu::<2>(&w);
        same::<3>(
            Vulkan::row_linear(gx.clone(), gw.clone(), gpu::<1>(&bias)),
            plain::row_linear::<Flex>(x.clone(), w.clone(), bias),
        );
        let [ax, aw, ab] = Vulkan::row_linear_grad(gx.clone(), gw, gpu::<3>(&grad));
        let [bx, bw, bb] = plain::row_linear_grad::<Flex>(x.clone(), w, grad);
        same::<3>(ax, bx);
        same::<2>(aw, bw);
        same::<1>(ab, bb);

        let index = RowIndex::new(vec![3, NO_ROW, 0, 6, NO_ROW, 1, 2, 4, NO_ROW], 7);
        same::<3>(
            Vulkan::gather_rows(gx, &index),
            plain::gather_rows::<Flex>(x, &index),
        );
    }
}

#[test]
fn gpu_attention() {
    if !gpu_found() {
        return;
    }
    for (windows, tokens, heads, dim) in [(4, 27, 2, 5), (2, 64, 1, 16), (2, 300, 1, 8)] {
        let qkv = random(1, [windows, tokens, 3 * heads * dim]);
        let bias = random(2, [heads, tokens, tokens]);
        let grad = random(3, [windows, tokens, heads * dim]);
        let regions: Vec<u8> = (0..2 * tokens).map(|i| (i % 3) as u8).collect();
        for regions in [None, Some(regions.into())] {
            let layout = AttentionLayout { heads, regions };
            let (gqkv, gbias) = (gpu::<3>(&qkv), gpu::<3>(&bias));
            same::<3>(
                Vulkan::window_attention(gqkv.clone(), gbias.clone(), &layout),
                plain::window_attention::<Flex>(qkv.clone(), bias.clone(), &layout),
            );
            near::<3>(
                Vulkan::window_attention(half::<3>(&qkv), gbias.clone(), &layout),
                plain::window_attention::<Flex>(qkv.clone(), bias.clone(), &layout),
                1e-2,
            );
            let [aq, ab] = Vulkan::window_attention_grad(gqkv, gbias, &layout, gpu::<3>(&grad));
            let [bq, bb] = plain::window_attention_grad::<Flex>(
                qkv.clone(),
                bias.clone(),
                &layout,
                grad.clone(),
            );
            same::<3>(aq, bq);
            same::<3>(ab, bb);
        }
    }
}

#[test]
fn gpu_loss() {
    if !gpu_found() {
        return;
    }
    for (size, factors) in [
        ([3, 4, 5], [1, 1, 1]),
        ([2, 3, 2], [1, 2, 2]),
        ([2, 3, 1], [2, 4, 8]),
    ] {
        let fine = [0, 1, 2].map(|axis| size[axis] * factors[axis]);
        let logits = random(1, [2, 3, size[0], size[1], size[2]]);
        let voxels = 2 * fine.iter().product::<usize>() as u64;
        let rng = Rng::new(5).stream(2);
        let labels = VoxelLabels {
            classes: (0..voxels).map(|i| (rng.at(i) % 3) as u8).collect(),
            size: fine,
        };
        let (a, ga) = Vulkan::dice_cross_entropy(gpu::<5>(&logits), &labels).unwrap();
        let (b, gb) = Flex::dice_cross_entropy(logits, &labels).unwrap();
        same::<1>(a, b);
        same::<5>(ga, gb);
    }
    let labels = VoxelLabels {
        classes: vec![0; 27].into(),
        size: [3, 3, 3],
    };
    let logits = gpu::<5>(&random(1, [1, 2, 2, 2, 2]));
    assert!(Vulkan::dice_cross_entropy(logits, &labels).is_none());
}

#[test]
fn gpu_dropout_masks_are_those_of_the_host() {
    if !gpu_found() {
        return;
    }
    let rng = Rng::new(u64::MAX - 3).stream(11);
    for (shape, keep) in [([1, 2, 3], 0.5), ([3, 41, 40], 0.8), ([1, 1, 4], 1.0)] {
        let keep = Keep::with_probability(keep);
        let mask =
            |values: Vec<f32>| -> Vec<u32> { values.into_iter().map(f32::to_bits).collect() };
        let ours = Vulkan::keep_mask(&rng, shape.into(), keep, &Default::default());
        let want = Flex::keep_mask(&rng, shape.into(), keep, &Default::default());
        assert_eq!(
            mask(to_f32(wrap::<Vulkan, 3>(ours).into_data())),
            mask(to_f32(wrap::<Flex, 3>(want).into_data()))
        );
    }
}

#[test]
fn gpu_adam() {
    if !gpu_found() {
        return;
    }
    let shape = [3, 5, 7];
    let second = raw(wrap::<Flex, 3>(random(4, shape)).abs());
    let tensors = [random(1, shape), random(2, shape), random(3, shape), second];
    for time in [1, 7] {
        let step = adam(time);
        let ours = Vulkan::adam_step(tensors.each_ref().map(gpu::<3>), step);
        let want = plain::adam_step::<Flex>(tensors.clone(), step);
        for (ours, want) in ours.into_iter().zip(want) {
            same::<3>(ours, want);
        }
    }
}

/// Values that every format holds exactly, with products and short sums that float32 does too.
fn quarters<const D: usize>(stream: u64, shape: [usize; D]) -> C {
    raw((wrap::<Flex, D>(random(stream, shape)) * 2.0)
        .round()
        .clamp(-8.0, 8.0)
        * 0.25)
}

/// Distance of `ours` to `want`, relative to its norm.
fn away<const D: usize>(ours: G, want: C) -> f32 {
    let (ours, want) = (wrap::<Vulkan, D>(ours), wrap::<Flex, D>(want));
    assert_eq!(ours.dims(), want.dims());
    let (ours, want) = (
        to_f32(ours.cast(DType::F32).into_data()),
        to_f32(want.into_data()),
    );
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    };
    let difference = norm(&mut ours.iter().zip(&want).map(|(a, b)| a - b));
    (difference / norm(&mut want.iter().copied())) as f32
}
