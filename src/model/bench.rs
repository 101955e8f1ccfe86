//! How fast this machine computes the network.

use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::engine::{DeviceChoice, Engine, on_engine};
use super::error::ModelError;
use super::kernels::Kernels;
use super::loss::{Target, deep_supervised};
use super::pct_net::{DropoutStream, Mode, PctNet, PctNetConfig};
use super::train::adam;
use super::weights::to_f32;
use crate::rng::Rng;
use burn::optim::{GradientsParams, Optimizer};

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One patch through the network in evaluation mode, finest scale.
    Forward,
    /// Forward with deep supervision, backward and one Adam step.
    TrainingStep,
}

/// Seconds of each of `repeats` runs, after one that does not count. Weights and input are random; `patch` is
/// `[depth, height, width]`, batch 1.
pub fn measure(
    work: Work,
    config: &PctNetConfig,
    patch: [usize; 3],
    repeats: usize,
    device: DeviceChoice,
) -> Result<Vec<f64>, ModelError> {
    config.validate()?;
    config.check_patch(patch)?;
    let engine = Engine::open(device)?;
    on_engine!(engine, |B, device| match work {
        Work::Forward => forward::<B>(config, patch, repeats, &device),
        Work::TrainingStep => training_step::<B>(config, patch, repeats, &device),
    })
}

fn noise<B: Backend>(patch: [usize; 3], device: &B::Device) -> Tensor<B, 5> {
    let [d, h, w] = patch;
    let rng = Rng::new(1);
    let values = (0..(d * h * w) as u64)
        .map(|i| rng.normal_at(i) as f32)
        .collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, [1, 1, d, h, w]), device)
}

fn forward<B: Kernels>(
    config: &PctNetConfig,
    patch: [usize; 3],
    repeats: usize,
    device: &B::Device,
) -> Result<Vec<f64>, ModelError> {
    let net = PctNet::<B>::new(config, 1, device)?;
    let input = noise::<B>(patch, device);
    Ok(timed(repeats, || {
        to_f32(net.forward_finest(input.clone(), Mode::Eval).into_data());
    }))
}

fn training_step<B: Kernels>(
    config: &PctNetConfig,
    patch: [usize; 3],
    repeats: usize,
    device: &B::Device,
) -> Result<Vec<f64>, ModelError> {
    let mut net = Some(PctNet::<Autodiff<B>>::new(config, 1, device)?);
    let mut optimiser = adam(1e-5).init();
    let input = noise::<Autodiff<B>>(patch, device);
    let mut rng = Rng::new(2);
    let labels: Vec<u8> = (0..patch.iter().product::<usize>())
        .map(|_| rng.below(config.class_num) as u8)
        .collect();
    let target = Target::new(&labels, patch, &[vec![true; config.class_num]], device);
    Ok(timed(repeats, || {
        if let Some(old) = net.take() {
            let dropout = DropoutStream::new(3);
            let loss = deep_supervised(&old.forward(input.clone(), Mode::Train(&dropout)), &target);
            let grads = GradientsParams::from_grads(loss.backward(), &old);
            net = Some(optimiser.step(1e-3, old, grads));
            to_f32(loss.into_data());
        }
    }))
}

fn timed(repeats: usize, mut work: impl FnMut()) -> Vec<f64> {
    work();
    (0..repeats)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect()
}
