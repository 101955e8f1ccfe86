//! What the network sees in a step: patches, and for a model that takes clicks also these.

use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};

use super::Trainer;
use crate::model::clicks::GridClicks;
use crate::model::kernels::Kernels;
use crate::model::pct_net::Mode;
use crate::model::train::batch::Input;
use crate::model::train::clicks;
use crate::model::train::store::StoredCase;
use crate::model::weights::to_f32;
use crate::rng::Rng;

impl<B: Kernels> Trainer<'_, B> {
    /// The network's input of a patch, `[1, channels, d, h, w]`; without clicks for a model that takes none.
    pub(super) fn with_clicks(
        &self,
        input: &Input<B>,
        cases: &[StoredCase],
        clicks: &[clicks::PatchClick],
    ) -> Tensor<B, 5> {
        let model = &self.request.model;
        let Some(guidance) = model.clicks else {
            return input.voxels.clone();
        };
        let (classes, spacing_mm) = (model.network.class_num, cases[input.case].spacing_mm);
        let mut channels = Vec::new();
        GridClicks::at_voxels(guidance, classes, spacing_mm, clicks.iter().copied()).append(
            [0; 3],
            model.patch,
            &mut channels,
        );
        let [d, h, w] = model.patch;
        let data = TensorData::new(channels, [1, classes, d, h, w]);
        let shown = Tensor::from_data(data, &self.device);
        Tensor::cat(vec![input.voxels.clone(), shown], 1)
    }

    /// The clicks of a step, per patch: on mistakes of the network without clicks.
    pub(super) fn clicks(
        &self,
        step: usize,
        inputs: &[Input<B>],
        cases: &[StoredCase],
    ) -> Vec<Vec<clicks::PatchClick>> {
        let rng = Rng::new(self.request.options.seed).named("clicks");
        let of = |n: usize| rng.stream((step * inputs.len() + n) as u64);
        let takes = self.request.model.clicks.is_some();
        let clicked: Vec<bool> = (0..inputs.len())
            .map(|n| takes && of(n).chance(clicks::SHARE))
            .collect();
        let net = clicked.contains(&true).then(|| self.net.valid());
        let clicks = inputs.iter().enumerate().map(|(n, input)| {
            let Some(net) = net.as_ref().filter(|_| clicked[n]) else {
                return Vec::new();
            };
            let logits = net.forward_finest(self.with_clicks(input, cases, &[]), Mode::Eval);
            clicks::on_mistakes(
                &best(&to_f32(logits.into_data()), input.labels.len()),
                &input.labels,
                &input.annotated,
                self.request.model.patch,
                cases[input.case].spacing_mm,
                &mut of(n).named("places"),
            )
        });
        clicks.collect()
    }
}

/// The class with the largest of the logits `[classes, voxels]`, the first of equals.
fn best(logits: &[f32], voxels: usize) -> Vec<u8> {
    let best = |voxel: usize| {
        let of_class = logits.iter().skip(voxel).step_by(voxels);
        let (class, _) =
            of_class
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |best, (class, logit)| {
                    if *logit > best.1 {
                        (class, *logit)
                    } else {
                        best
                    }
                });
        class as u8
    };
    (0..voxels).map(best).collect()
}
