//! How fast this machine computes the network.

use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::engine::{DeviceChoice, Engine, on_engine};
use super::error::ModelError;
use super::kernels::Kernels;
use super::loss::{Target, deep_supervised};
use super::pct_net::{DropoutStream, Mode, PctNet, PctNetConfig, Plan};
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

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Wall clock.
    pub seconds: f64,
    /// Processor time of all threads.
    pub busy_seconds: f64,
}

/// Times of each of `repeats` runs, after one that does not count. Weights and input are random; `patch` is
/// `[depth, height, width]`, batch 1.
pub fn measure(
    work: Work,
    config: &PctNetConfig,
    patch: [usize; 3],
    repeats: usize,
    device: DeviceChoice,
) -> Result<Vec<Run>, ModelError> {
    config.validate()?;
    config.check_patch(patch)?;
    let engine = Engine::open(device)?;
    on_engine!(engine, |B, device| match work {
        Work::Forward => forward::<B>(engine, config, patch, repeats, &device),
        Work::TrainingStep => training_step::<B>(config, patch, repeats, &device),
    })
}

fn noise(patch: [usize; 3]) -> Vec<f32> {
    let rng = Rng::new(1);
    (0..patch.iter().product::<usize>() as u64)
        .map(|i| rng.normal_at(i) as f32)
        .collect()
}

fn tensor<B: Backend>(values: Vec<f32>, [d, h, w]: [usize; 3], device: &B::Device) -> Tensor<B, 5> {
    Tensor::from_data(TensorData::new(values, [1, 1, d, h, w]), device)
}

fn forward<B: Kernels>(
    engine: Engine,
    config: &PctNetConfig,
    patch: [usize; 3],
    repeats: usize,
    device: &B::Device,
) -> Result<Vec<Run>, ModelError> {
    let net = PctNet::<B>::new(config, 1, device)?;
    match engine {
        Engine::Cpu => {
            let mut plan = Plan::new(&net, config.in_chns, patch);
            drop(net);
            let input = noise(patch);
            Ok(timed(repeats, || {
                plan.run(&input);
            }))
        }
        #[cfg(feature = "cuda")]
        Engine::Cuda(_) => {
            let input = tensor::<B>(noise(patch), patch, device);
            Ok(timed(repeats, || {
                to_f32(net.forward_finest(input.clone(), Mode::Eval).into_data());
            }))
        }
    }
}

fn training_step<B: Kernels>(
    config: &PctNetConfig,
    patch: [usize; 3],
    repeats: usize,
    device: &B::Device,
) -> Result<Vec<Run>, ModelError> {
    let mut net = Some(PctNet::<Autodiff<B>>::new(config, 1, device)?);
    let mut optimiser = adam(1e-5).init();
    let input = tensor::<Autodiff<B>>(noise(patch), patch, device);
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

fn timed(repeats: usize, mut work: impl FnMut()) -> Vec<Run> {
    work();
    (0..repeats)
        .map(|_| {
            let (start, busy) = (Instant::now(), processor_s());
            work();
            Run {
                seconds: start.elapsed().as_secs_f64(),
                busy_seconds: processor_s() - busy,
            }
        })
        .collect()
}

/// Processor time of this process so far.
fn processor_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
