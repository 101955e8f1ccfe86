//! How fast this machine computes the network.

use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::engine::{DeviceChoice, Engine, on_engine};
use super::error::ModelError;
use super::infer::cpu_precision;
use super::kernels::{
    Kernels,
    cpu::machine,
    pages::{KeepPages, give_back},
};
use super::loss::{Target, deep_supervised};
use super::pct_net::{DropoutStream, Mode, PctNet, PctNetConfig, Plan, StepTime};
use super::precision::PrecisionChoice;
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
    precision: PrecisionChoice,
) -> Result<Vec<Run>, ModelError> {
    config.validate()?;
    config.check_patch(patch)?;
    let engine = Engine::open(device)?;
    on_engine!(engine, |B, device| match work {
        Work::Forward => forward::<B>(engine, config, patch, repeats, precision, &device),
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
    precision: PrecisionChoice,
    device: &B::Device,
) -> Result<Vec<Run>, ModelError> {
    let net = PctNet::<B>::new(config, 1, device)?;
    match engine {
        Engine::Cpu => {
            let precision = cpu_precision(precision)?;
            let mut plan = Plan::new(&net, config.in_chns, patch, precision);
            drop(net);
            give_back();
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
    let _pages = KeepPages::new();
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

/// The steps of inference on the CPU, and what they are measured against.
#[derive(Debug, Clone)]
pub struct Layers {
    /// Each step's median of the runs.
    pub steps: Vec<StepTime>,
    /// Operations per second that the processor reaches on data in its caches: float32, and bfloat16 where it has them.
    pub peak: (f64, Option<f64>),
    /// Bytes per second of copying memory.
    pub bandwidth: f64,
}

impl Layers {
    /// The least seconds that a step could take by its definition: its operations at the peak, or its bytes at the
    /// bandwidth.
    pub fn bound_s(&self, step: &StepTime) -> f64 {
        let (f32, bf16) = self.peak;
        let peak = if step.bf16 { bf16.unwrap_or(f32) } else { f32 };
        (step.operations / peak).max(step.bytes / self.bandwidth)
    }
}

/// Times each step of inference on the CPU; see [`measure`].
pub fn measure_layers(
    config: &PctNetConfig,
    patch: [usize; 3],
    repeats: usize,
    precision: PrecisionChoice,
) -> Result<Layers, ModelError> {
    config.validate()?;
    config.check_patch(patch)?;
    let precision = cpu_precision(precision)?;
    let peak = (
        machine::peak_operations_per_s(false).unwrap_or(f64::INFINITY),
        machine::peak_operations_per_s(true),
    );
    let bandwidth = machine::bandwidth_bytes_per_s();
    let mut plan = {
        let net = PctNet::<burn_flex::Flex>::new(config, 1, &Default::default())?;
        Plan::new(&net, config.in_chns, patch, precision)
    };
    give_back();
    plan.run(&noise(patch));
    let mut runs: Vec<Vec<StepTime>> = (0..repeats.max(1)).map(|_| plan.time_steps()).collect();
    let mut steps = runs.pop().unwrap_or_default();
    for (i, step) in steps.iter_mut().enumerate() {
        let all = runs.iter().map(|run| run[i].seconds);
        let mut seconds: Vec<f64> = all.chain([step.seconds]).collect();
        seconds.sort_by(f64::total_cmp);
        step.seconds = seconds[seconds.len() / 2];
    }
    Ok(Layers {
        steps,
        peak,
        bandwidth,
    })
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
