//! The steps of inference on the CPU, one by one.

use super::measure::noise;
use crate::model::error::ModelError;
use crate::model::infer::cpu_precision;
use crate::model::kernels::{cpu::machine, pages::give_back};
use crate::model::pct_net::{PctNet, PctNetConfig, Plan, StepTime};
use crate::model::precision::PrecisionChoice;

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

/// Times each step of inference on the CPU with random weights, batch 1.
///
/// # Errors
/// A patch that the network does not accept, a precision that the processor does not have.
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
    plan.run(&noise(patch.iter().product()));
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
