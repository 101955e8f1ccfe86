//! Adam and its learning rate.

use burn::backend::Autodiff;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{Adam, AdamConfig, decay::WeightDecayConfig};
use serde::{Deserialize, Serialize};

use crate::model::pct_net::PctNet;

/// Power of the polynomial learning-rate decay.
const DECAY_POWER: f64 = 0.9;
/// Parts of a run after each of which the step schedule halves the rate.
const STEP_PARTS: usize = 5;

/// The optimiser of a network that computes on backend `B`.
pub(in crate::model) type AdamOf<B> = OptimizerAdaptor<Adam, PctNet<Autodiff<B>>, Autodiff<B>>;

/// Adam as `torch.optim.Adam` computes it: epsilon 1e-8, the weight decay added to the gradient.
pub(in crate::model) fn adam(weight_decay: f32) -> AdamConfig {
    let decay = (weight_decay > 0.0).then(|| WeightDecayConfig::new(weight_decay));
    AdamConfig::new()
        .with_epsilon(1e-8)
        .with_weight_decay(decay)
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
