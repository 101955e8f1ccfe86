//! The CPU kernels and the plain versions, which every other backend uses, compute the same.

use burn::tensor::{Tensor, TensorData, ops::FloatTensor};
use burn_flex::Flex;

use super::*;
use crate::model::weights::to_f32;
use crate::rng::Rng;

type F = FloatTensor<Flex>;

fn random<const D: usize>(stream: u64, shape: [usize; D]) -> F {
    let rng = Rng::new(11).stream(stream);
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64)
        .map(|i| rng.normal_at(i) as f32)
        .collect();
    raw(Tensor::<Flex, D>::from_data(
        TensorData::new(values, shape),
        &Default::default(),
    ))
}

fn values<const D: usize>(t: F) -> Vec<f32> {
    to_f32(wrap::<Flex, D>(t).into_data())
}

#[track_caller]
fn same<const D: usize>(a: F, b: F) {
    assert_eq!(
        wrap::<Flex, D>(a.clone()).dims(),
        wrap::<Flex, D>(b.clone()).dims()
    );
    let (a, b) = (values::<D>(a), values::<D>(b));
    let largest = b.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    for (a, b) in a.iter().zip(&b) {
        assert!(
            (a - b).abs() <= 1e-4 * largest,
            "{a} and {b}, largest {largest}"
        );
    }
}

#[test]
fn convolution() {
    for kernel in [[3, 3, 3], [1, 3, 3], [1, 1, 1]] {
        let [kd, kh, kw] = kernel;
        let (x, y) = (random(1, [2, 5, 4, 7, 9]), random(2, [2, 6, 4, 7, 9]));
        let (w, b) = (random(3, [6, 5, kd, kh, kw]), random(4, [6]));
        same::<5>(
            Flex::same_conv3d(x.clone(), w.clone(), b.clone()),
            plain::same_conv3d::<Flex>(x.clone(), w.clone(), b),
        );
        same::<5>(
            Flex::same_conv3d_input_grad(w.clone(), y.clone()),
            plain::same_conv3d_input_grad::<Flex>(w.clone(), y.clone()),
        );
        let (w1, b1) = Flex::same_conv3d_weight_grad(x.clone(), w.clone(), y.clone());
        let (w2, b2) = plain::same_conv3d_weight_grad::<Flex>(x, w, y);
        same::<5>(w1, w2);
        same::<1>(b1, b2);
    }
}

#[test]
fn normalisation_and_activation() {
    let (x, grad) = (random(1, [2, 3, 4, 5, 6]), random(2, [2, 3, 4, 5, 6]));
    let (gamma, beta, slope) = (random(3, [3]), random(4, [3]), random(5, [1]));
    let (y1, m1, v1) =
        Flex::batch_norm_prelu(x.clone(), gamma.clone(), beta.clone(), slope.clone());
    let (y2, m2, v2) =
        plain::batch_norm_prelu::<Flex>(x.clone(), gamma.clone(), beta.clone(), slope.clone());
    same::<5>(y1, y2);
    same::<1>(m1.clone(), m2);
    same::<1>(v1.clone(), v2);
    let a = Flex::batch_norm_prelu_grad(
        x.clone(),
        m1.clone(),
        v1.clone(),
        gamma.clone(),
        beta.clone(),
        slope.clone(),
        grad.clone(),
    );
    let b = plain::batch_norm_prelu_grad::<Flex>(
        x.clone(),
        m1,
        v1,
        gamma.clone(),
        beta.clone(),
        slope.clone(),
        grad,
    );
    same::<5>(a.x, b.x);
    same::<1>(a.gamma, b.gamma);
    same::<1>(a.beta, b.beta);
    same::<1>(a.slope, b.slope);
    same::<5>(
        Flex::scale_prelu(x.clone(), gamma.clone(), beta.clone(), slope.clone()),
        plain::scale_prelu::<Flex>(x.clone(), gamma.clone(), beta.clone(), slope.clone()),
    );
    let (w, bias) = (random(6, [4, 3, 3, 3, 3]), random(7, [4]));
    let activated =
        plain::scale_prelu::<Flex>(x.clone(), gamma.clone(), beta.clone(), slope.clone());
    same::<5>(
        Flex::scale_prelu_conv3d(x.clone(), gamma, beta, slope, w.clone(), bias.clone()),
        plain::same_conv3d::<Flex>(activated, w, bias),
    );
    same::<1>(Flex::channel_sum(x.clone()), plain::channel_sum::<Flex>(x));
}

#[test]
fn normalisation_fused_with_a_convolution() {
    for (kernel, slope) in [([3, 3, 3], 0.25), ([1, 3, 3], -0.5), ([1, 1, 1], 0.25)] {
        let [kd, kh, kw] = kernel;
        let (x, grad) = (random(1, [2, 9, 4, 8, 9]), random(2, [2, 10, 4, 8, 9]));
        let (gamma, beta) = (random(3, [9]), random(4, [9]));
        let slope = raw(Tensor::<Flex, 1>::from_floats([slope], &Default::default()));
        let (w, bias) = (random(5, [10, 9, kd, kh, kw]), random(6, [10]));
        let (y, mean, variance) = Flex::batch_norm_conv3d(
            x.clone(),
            gamma.clone(),
            beta.clone(),
            slope.clone(),
            w.clone(),
            bias.clone(),
        );
        let (a, m, v) =
            plain::batch_norm_prelu::<Flex>(x.clone(), gamma.clone(), beta.clone(), slope.clone());
        same::<5>(y, plain::same_conv3d::<Flex>(a, w.clone(), bias));
        same::<1>(mean.clone(), m.clone());
        same::<1>(variance.clone(), v.clone());
        let ours = Flex::batch_norm_conv3d_grad(
            x.clone(),
            mean,
            variance,
            gamma.clone(),
            beta.clone(),
            slope.clone(),
            w.clone(),
            grad.clone(),
        );
        let want = plain::batch_norm_conv3d_grad::<Flex>(x, m, v, gamma, beta, slope, w, grad);
        same::<5>(ours.norm.x, want.norm.x);
        same::<1>(ours.norm.gamma, want.norm.gamma);
        same::<1>(ours.norm.beta, want.norm.beta);
        same::<1>(ours.norm.slope, want.norm.slope);
        same::<5>(ours.weight, want.weight);
        same::<1>(ours.bias, want.bias);
    }
}

#[test]
fn pools() {
    for depth in [true, false] {
        let x = random(1, [2, 3, 4, 6, 8]);
        let y = plain::max_pool::<Flex>(x.clone(), depth);
        same::<5>(Flex::max_pool(x.clone(), depth), y.clone());
        let grad = random(2, wrap::<Flex, 5>(y).dims());
        same::<5>(
            Flex::max_pool_grad(x.clone(), depth, grad.clone()),
            plain::max_pool_grad::<Flex>(x, depth, grad),
        );
    }
}

#[test]
fn rows() {
    let (x, grad) = (random(1, [3, 7, 10]), random(2, [3, 7, 10]));
    let (gamma, beta) = (random(3, [10]), random(4, [10]));
    same::<3>(
        Flex::row_norm(x.clone(), gamma.clone(), beta.clone()),
        plain::row_norm::<Flex>(x.clone(), gamma.clone(), beta),
    );
    let a = Flex::row_norm_grad(x.clone(), gamma.clone(), grad.clone());
    let b = plain::row_norm_grad::<Flex>(x.clone(), gamma, grad.clone());
    let ([ax, ag, ab], [bx, bg, bb]) = (a, b);
    same::<3>(ax, bx);
    same::<1>(ag, bg);
    same::<1>(ab, bb);
    same::<3>(
        Flex::exact_gelu(x.clone()),
        plain::exact_gelu::<Flex>(x.clone()),
    );
    same::<3>(
        Flex::exact_gelu_grad(x.clone(), grad.clone()),
        plain::exact_gelu_grad::<Flex>(x.clone(), grad),
    );
    same::<3>(
        Flex::swap_rows(x.clone()),
        plain::swap_rows::<Flex>(x.clone()),
    );

    let (w, bias, grad) = (random(5, [4, 10]), random(6, [4]), random(7, [3, 7, 4]));
    same::<3>(
        Flex::row_linear(x.clone(), w.clone(), bias.clone()),
        plain::row_linear::<Flex>(x.clone(), w.clone(), bias),
    );
    let [ax, aw, ab] = Flex::row_linear_grad(x.clone(), w.clone(), grad.clone());
    let [bx, bw, bb] = plain::row_linear_grad::<Flex>(x.clone(), w, grad);
    same::<3>(ax, bx);
    same::<2>(aw, bw);
    same::<1>(ab, bb);

    let index = RowIndex::new(vec![3, NO_ROW, 0, 6, NO_ROW, 1, 2, 4, NO_ROW], 7);
    let gathered = plain::gather_rows::<Flex>(x.clone(), &index);
    same::<3>(Flex::gather_rows(x.clone(), &index), gathered.clone());
    let back = values::<3>(Flex::gather_rows(gathered, &index.inverse()));
    for (i, (got, want)) in back.iter().zip(values::<3>(x)).enumerate() {
        let lost = i / 10 % 7 == 5; // the one old row that went nowhere
        assert_eq!(*got, if lost { 0.0 } else { want });
    }
}

#[test]
fn attention() {
    let (windows, tokens, heads, dim) = (4, 27, 2, 5);
    let qkv = random(1, [windows, tokens, 3 * heads * dim]);
    let bias = random(2, [heads, tokens, tokens]);
    let grad = random(3, [windows, tokens, heads * dim]);
    let regions: Vec<u8> = (0..2 * tokens).map(|i| (i % 3) as u8).collect();
    for regions in [None, Some(regions.into())] {
        let layout = AttentionLayout { heads, regions };
        same::<3>(
            Flex::window_attention(qkv.clone(), bias.clone(), &layout),
            plain::window_attention::<Flex>(qkv.clone(), bias.clone(), &layout),
        );
        let [aq, ab] =
            Flex::window_attention_grad(qkv.clone(), bias.clone(), &layout, grad.clone());
        let [bq, bb] =
            plain::window_attention_grad::<Flex>(qkv.clone(), bias.clone(), &layout, grad.clone());
        same::<3>(aq, bq);
        same::<3>(ab, bb);
    }
}

#[test]
fn blocks() {
    for kernel in [[2, 2, 2], [1, 2, 2]] {
        let taps: usize = kernel.iter().product();
        let (x, bias) = (random(1, [2, 3 * taps, 2, 3, 4]), random(2, [3]));
        let y = plain::blocks_to_space::<Flex>(x.clone(), bias.clone(), kernel);
        same::<5>(Flex::blocks_to_space(x, bias, kernel), y.clone());
        same::<5>(
            Flex::blocks_to_space_grad(y.clone(), kernel),
            plain::blocks_to_space_grad::<Flex>(y, kernel),
        );
    }
}

/// A step with a penalty that shows.
pub(super) fn adam(time: usize) -> AdamStep {
    AdamStep {
        rate: 0.01,
        weight_decay: 0.1,
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        time,
    }
}

#[test]
fn one_step_of_adam() {
    for (time, len) in [(1, 5), (7, 70_001)] {
        let tensors = || {
            let second = random::<1>(4, [len]);
            let second =
                plain::exact_gelu::<Flex>(raw(wrap::<Flex, 1>(second).abs().reshape([1, 1, len])));
            [
                random(1, [len]),
                random(2, [len]),
                random(3, [len]),
                raw(wrap::<Flex, 3>(second).reshape([len])),
            ]
        };
        let step = adam(time);
        // One of them is shared, so it is copied; the others change in place.
        let (shared, want) = (tensors(), plain::adam_step::<Flex>(tensors(), step));
        let kept = shared[2].clone();
        let before = values::<1>(kept.clone());
        for (got, want) in Flex::adam_step(shared, step).into_iter().zip(want) {
            same::<1>(got, want);
        }
        assert_eq!(values::<1>(kept), before);
    }
}

#[test]
fn a_mask_keeps_its_share() {
    let (rng, keep) = (Rng::new(3), Keep::with_probability(0.8));
    let mask = plain::keep_values(&rng, 100_001, keep);
    let kept = mask.iter().filter(|&&v| v == 1.25).count();
    assert!(kept.abs_diff(80_000) < 800, "{kept}");
    assert!(mask.iter().all(|&v| v == 0.0 || v == 1.25));
    assert_eq!(mask[..5000], plain::keep_values(&rng, 5000, keep));
}
