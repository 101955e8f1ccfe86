//! Adam and its learning rate.

use burn::backend::Autodiff;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{AdamState, AdaptiveMomentumState, LearningRate, SimpleOptimizer};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::model::kernels::{AdamStep, Kernels, raw, wrap};
use crate::model::pct_net::PctNet;

/// Power of the polynomial learning-rate decay.
const DECAY_POWER: f64 = 0.9;
/// Parts of a run after each of which the step schedule halves the rate.
const STEP_PARTS: usize = 5;

/// The optimiser of a network that computes on backend `B`.
pub(in crate::model) type AdamOf<B> = OptimizerAdaptor<Adam, PctNet<Autodiff<B>>, Autodiff<B>>;

/// Adam as `torch.optim.Adam` computes it: epsilon 1e-8, the weight decay added to the gradient. Its state is that of
/// burn's Adam; a parameter is changed in one pass.
#[derive(Clone)]
pub(in crate::model) struct Adam {
    weight_decay: f32,
}

/// See [`Adam`].
pub(in crate::model) fn adam(weight_decay: f32) -> Adam {
    Adam { weight_decay }
}

impl Adam {
    /// An optimiser without a past.
    pub fn init<B: Kernels>(self) -> AdamOf<B> {
        OptimizerAdaptor::from(self)
    }
}

impl<B: Kernels> SimpleOptimizer<B> for Adam {
    type State<const D: usize> = AdamState<B, D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        parameter: Tensor<B, D>,
        grad: Tensor<B, D>,
        state: Option<AdamState<B, D>>,
    ) -> (Tensor<B, D>, Option<AdamState<B, D>>) {
        let old = state.map_or_else(
            || AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()),
            |state| state.momentum,
        );
        let time = old.time + 1;
        let step = AdamStep {
            rate: rate as f32,
            weight_decay: self.weight_decay,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            time,
        };
        let tensors = [parameter, grad, old.moment_1, old.moment_2].map(raw);
        let [parameter, first, second] = B::adam_step(tensors, step).map(wrap);
        let momentum = AdaptiveMomentumState::new(time, first, second);
        (parameter, Some(AdamState::new(momentum)))
    }

    fn to_device<const D: usize>(
        mut state: AdamState<B, D>,
        device: &B::Device,
    ) -> AdamState<B, D> {
        state.momentum = state.momentum.to_device(device);
        state
    }
}

/// How the learning rate falls over a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Proportional to `(1 - step / steps)^0.9`.
    Polynomial,
    /// Halved after each fifth of the run, as in the publication's pretraining.
    Step,
}

impl Schedule {
    /// The rate of step number `step`, counted from 0, of `steps`.
    pub fn rate(self, start: f64, step: usize, steps: usize) -> f64 {
        let steps = steps.max(1);
        match self {
            Self::Polynomial => {
                start * (1.0 - step.min(steps) as f64 / steps as f64).powf(DECAY_POWER)
            }
            Self::Step => start * 0.5f64.powi((step * STEP_PARTS / steps) as i32),
        }
    }
}

impl std::str::FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "polynomial" => Ok(Self::Polynomial),
            "step" => Ok(Self::Step),
            _ => Err(format!(
                "{text:?} is not a schedule; use polynomial or step"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_fall_from_the_start_to_the_end() {
        let rate = |schedule: Schedule, step| schedule.rate(1e-3, step, 100);
        assert_eq!(rate(Schedule::Polynomial, 0), 1e-3);
        assert!((rate(Schedule::Polynomial, 50) - 1e-3 * 0.5f64.powf(0.9)).abs() < 1e-12);
        assert_eq!(rate(Schedule::Polynomial, 100), 0.0);
        let steps = [0, 19, 20, 59, 60, 99].map(|step| rate(Schedule::Step, step) * 1e3);
        assert_eq!(steps, [1.0, 1.0, 0.5, 0.25, 0.125, 0.0625]);
    }
}
