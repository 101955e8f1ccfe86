//! The network on a GPU (or a Vulkan device that computes on the CPU) against the published outputs, and a training step
//! against the CPU's.

use burn::backend::Autodiff;
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::backend::AutodiffBackend;
use burn_flex::Flex;

use super::kernels::{CLOSE, Gpu, Kernels, gpu_found};
use super::loss::{Target, deep_supervised};
use super::parity::{Fixture, distance, fixture, gradients, network, tensor};
use super::pct_net::{DropoutStream, Mode};
use super::precision::Precision;
use super::train::adam;
use super::weights::to_f32;

/// Distance of each scale's logits to the published ones, relative to their norm.
fn away(fixture: &Fixture, precision: Precision) -> Vec<f32> {
    let net = network::<Gpu>(fixture);
    let input = tensor(&fixture.reference["input"]);
    net.forward_in(input, Mode::Eval, precision)
        .into_iter()
        .enumerate()
        .map(|(i, logits)| {
            let want = &fixture.reference[&format!("logits{i}")].values;
            let norm = distance(want, &vec![0.0; want.len()]);
            distance(&to_f32(logits.into_data()), want) / norm
        })
        .collect()
}

#[test]
fn gpu_network_outputs() {
    if !gpu_found() {
        return;
    }
    let Some(fixture) = fixture("mode0_32x32x32") else {
        return;
    };
    for (precision, bound) in [(Precision::F32, CLOSE / 10.0), (Precision::F16, 1e-2)] {
        let away = away(&fixture, precision);
        eprintln!("in {precision}: {away:?}");
        assert!(away.iter().all(|a| *a <= bound), "{precision}: {away:?}");
    }
}

/// Loss, gradients by name, and the loss after one step of Adam.
fn step<B: Kernels>(
    fixture: &Fixture,
    precision: Precision,
) -> (f32, std::collections::BTreeMap<String, Vec<f32>>, f32)
where
    Autodiff<B>: AutodiffBackend<InnerBackend = B>,
{
    let net = network::<Autodiff<B>>(fixture);
    let input = &fixture.reference["input"];
    let size = [input.shape[2], input.shape[3], input.shape[4]];
    let classes = fixture.config.class_num;
    let voxels = input.shape[0] * size.iter().product::<usize>();
    let labels: Vec<u8> = (0..voxels).map(|i| (i / 37 % classes) as u8).collect();
    let known = vec![vec![true; classes]; input.shape[0]];
    let target = Target::<Autodiff<B>>::new(&labels, size, &known, &Default::default());
    let off = DropoutStream::off();
    let forward = |net: &super::pct_net::PctNet<Autodiff<B>>| {
        let logits = net.forward_in(tensor(input), Mode::Train(&off), precision);
        deep_supervised(&logits, &target)
    };
    let loss = forward(&net);
    let value = to_f32(loss.clone().into_data())[0];
    let grads = GradientsParams::from_grads(loss.backward(), &net);
    let by_name = gradients(&net, &grads, fixture.config.resolution_mode);
    let net = adam(1e-5).init().step(1e-3, net, grads);
    (value, by_name, to_f32(forward(&net).into_data())[0])
}

#[test]
fn gpu_training_step() {
    if !gpu_found() {
        return;
    }
    let Some(fixture) = fixture("mode0_32x32x32") else {
        return;
    };
    let (loss, want, after) = step::<Flex>(&fixture, Precision::F32);
    let whole = |grads: &std::collections::BTreeMap<String, Vec<f32>>| {
        grads.values().flatten().copied().collect::<Vec<f32>>()
    };
    let want = whole(&want);
    let norm = distance(&want, &vec![0.0; want.len()]);
    // Half precision would need its gradients scaled; training is in float32 or bf16, and lavapipe has no bf16.
    let (ours, grads, ours_after) = step::<Gpu>(&fixture, Precision::F32);
    let away = distance(&whole(&grads), &want) / norm;
    eprintln!("loss {ours} and {loss}, gradient {away:e} away, then {ours_after} and {after}");
    assert!((ours - loss).abs() <= CLOSE, "{ours} and {loss}");
    assert!(away <= 10.0 * CLOSE, "{away}");
    assert!(
        (ours_after - after).abs() <= CLOSE,
        "{ours_after} and {after}"
    );
}
