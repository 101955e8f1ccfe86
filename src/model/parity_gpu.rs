//! The network on a GPU (or a Vulkan device that computes on the CPU) against the published outputs, and training against
//! the CPU's; also in the formats of tensor units, whose products are emulated here.

use burn::backend::Autodiff;
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::{DType, Tensor, TensorData, backend::AutodiffBackend};
use burn_flex::Flex;

use super::kernels::{CLOSE, Format, Gpu, Kernels, emulation, gpu_found};
use super::loss::{Target, deep_supervised};
use super::parity::{Fixture, distance, fixture, gradients, network, tensor};
use super::pct_net::{DropoutStream, Mode, PctNet, PctNetConfig, ReadyNet};
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

/// A network all of whose layers but the first are for tensor units, and a patch for it.
fn tiled() -> (PctNetConfig, [usize; 3]) {
    let patch = [8, 32, 32];
    let mut config = PctNetConfig::pct_net(3, patch, 1);
    config.feature_chns = [8, 16, 32, 48, 64];
    config.num_heads = [2, 3, 4];
    (config, patch)
}

fn noise<B: Kernels>(patch: [usize; 3], batch: usize) -> Tensor<B, 5> {
    let rng = crate::rng::Rng::new(11);
    let count = batch * patch.iter().product::<usize>();
    let values: Vec<f32> = (0..count)
        .map(|i| rng.normal_at(i as u64) as f32 * 0.5)
        .collect();
    let shape = [batch, 1, patch[0], patch[1], patch[2]];
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn relative(ours: &[f32], want: &[f32]) -> f32 {
    distance(ours, want) / distance(want, &vec![0.0; want.len()])
}

#[test]
fn gpu_ready_network() {
    if !gpu_found() {
        return;
    }
    let (config, patch) = tiled();
    let host = PctNet::<Flex>::new(&config, 3, &Default::default()).unwrap();
    let want = host.forward_finest(noise(patch, 2), Mode::Eval);
    let want = to_f32(want.into_data());
    let run = |precision| {
        let net = PctNet::<Gpu>::new(&config, 3, &Default::default()).unwrap();
        let net = ReadyNet::new(&net, config.in_chns, patch, precision);
        let logits = net.forward(noise(patch, 2)).cast(DType::F32);
        relative(&to_f32(logits.into_data()), &want)
    };
    let plain = ReadyNet::new(&host, config.in_chns, patch, Precision::F32);
    let plain = relative(&to_f32(plain.forward(noise(patch, 2)).into_data()), &want);
    let ordinary = run(Precision::F32);
    let halves = run(Precision::F16);
    let of = |format| emulation::with(format, || run(Precision::F32));
    let (tf32, f16, bf16) = (of(Format::Tf32), of(Format::F16), of(Format::Bf16));
    eprintln!("plain {plain:e}, f32 {ordinary:e}, halves {halves:e}");
    eprintln!("tf32 {tf32:e}, f16 {f16:e}, bf16 {bf16:e}");
    assert!(plain <= 1e-5 && ordinary <= 1e-5);
    assert!(halves <= 1e-2);
    assert!((1e-6..=1e-3).contains(&tf32));
    assert!((1e-6..=2e-3).contains(&f16));
    assert!((1e-5..=1e-2).contains(&bf16));
}

/// A patch whose labels can be learned from it.
fn learnable([depth, height, width]: [usize; 3]) -> (Vec<f32>, Vec<u8>) {
    let rng = crate::rng::Rng::new(11);
    let mut waves = Vec::new();
    for z in 0..depth {
        for y in 0..height {
            for x in 0..width {
                let [z, y, x] = [z, y, x].map(|at| at as f32);
                waves
                    .push((0.3 * z).sin() + (0.35 * y + 0.2 * x).sin() + (0.4 * x - 0.1 * y).cos());
            }
        }
    }
    let label = |wave: &f32| u8::from(*wave > 0.0) + u8::from(*wave > 0.8);
    let labels = waves.iter().map(label).collect();
    let noisy = |(i, wave): (usize, &f32)| 0.5 * wave + 0.1 * rng.normal_at(i as u64) as f32;
    (waves.iter().enumerate().map(noisy).collect(), labels)
}

/// Gradients of the first step, and the losses of so many; `scale` keeps gradients within the range of half precision.
/// `read` is what becomes of the input before it comes to the network.
fn training<B: Kernels>(
    steps: usize,
    precision: Precision,
    scale: f32,
    read: fn(f32) -> f32,
) -> (Vec<f32>, Vec<f32>)
where
    Autodiff<B>: AutodiffBackend<InnerBackend = B>,
{
    let (config, patch) = tiled();
    let mut net = PctNet::<Autodiff<B>>::new(&config, 3, &Default::default()).unwrap();
    let (values, labels) = learnable(patch);
    let values: Vec<f32> = values.into_iter().map(read).collect();
    let input = TensorData::new(values, [1, 1, patch[0], patch[1], patch[2]]);
    let target = Target::<Autodiff<B>>::new(&labels, patch, &[vec![true; 3]], &Default::default());
    let off = DropoutStream::off();
    let mut optimiser = adam(1e-5).init();
    let (mut first, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        let input = Tensor::from_data(input.clone(), &Default::default());
        let logits = net.forward_in(input, Mode::Train(&off), precision);
        let loss = deep_supervised(&logits, &target);
        losses.push(to_f32(loss.clone().into_data())[0]);
        let grads = GradientsParams::from_grads((loss * scale).backward(), &net);
        if first.is_empty() {
            let by_name = gradients(&net, &grads, config.resolution_mode);
            let values = by_name.into_values().flatten();
            first = values.map(|value| value / scale).collect();
        }
        // Adam does not see the scale.
        net = optimiser.step(3e-3, net, grads);
    }
    (first, losses)
}

/// Weights, statistics and the sums of products are float32 whatever the activations are.
///
/// Batch normalisation makes the gradient of an untrained network so sensitive that in float32 on the CPU, rounding its
/// input alone to the 10 bits of a half turns it by a tenth. That is the measure here for what rounding may do everywhere.
#[test]
fn gpu_mixed_precision_training() {
    if !gpu_found() {
        return;
    }
    let exact: fn(f32) -> f32 = |value| value;
    let f16: fn(f32) -> f32 = |value| half::f16::from_f32(value).to_f32();
    let bf16: fn(f32) -> f32 = |value| half::bf16::from_f32(value).to_f32();
    let (want, losses) = training::<Flex>(3, Precision::F32, 1.0, exact);
    assert!(losses[2] < 0.9 * losses[0], "it learns: {losses:?}");
    let check = |name: &str, round, (grads, ours): (Vec<f32>, Vec<f32>)| {
        let (moved, _) = training::<Flex>(1, Precision::F32, 1.0, round);
        let bound = 2.5 * relative(&moved, &want);
        let away = relative(&grads, &want);
        eprintln!(
            "{name}: gradient {away:e} away, at most {bound:e}; losses {ours:?} and {losses:?}"
        );
        assert!(away <= bound.min(0.9), "{name}: {away}");
        assert!((ours[0] - losses[0]).abs() <= 1e-3 * losses[0], "{name}");
        // Steps go where the gradient points, so what they learn may differ by as much as 15 %.
        let learned = |losses: &[f32]| losses[0] - losses[2];
        let share = learned(&ours) / learned(&losses);
        assert!((share - 1.0).abs() <= 0.15, "{name}: learns {share} of it");
    };
    let halves = training::<Gpu>(3, Precision::F16, 4096.0, exact);
    check("f16", f16, halves);
    let tiles = || training::<Gpu>(3, Precision::F32, 1.0, exact);
    // As many bits as a half has.
    check("tf32", f16, emulation::with(Format::Tf32, tiles));
    check("bf16", bf16, emulation::with(Format::Bf16, tiles));
}
