//! Fine-tuning on labelled cases.

use burn::optim::{AdamConfig, decay::WeightDecayConfig};

/// Adam as `torch.optim.Adam` computes it: epsilon 1e-8, the weight decay added to the gradient.
pub(crate) fn adam(weight_decay: f32) -> AdamConfig {
    let decay = (weight_decay > 0.0).then(|| WeightDecayConfig::new(weight_decay));
    AdamConfig::new().with_epsilon(1e-8).with_weight_decay(decay)
}
