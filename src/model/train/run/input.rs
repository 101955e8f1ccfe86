//! What the network sees in a step: patches, and for a model that takes clicks also these.

use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::Trainer;
use crate::model::clicks::GridClicks;
use crate::model::kernels::Kernels;
use crate::model::pct_net::Mode;
use crate::model::train::clicks;
use crate::model::train::samples::Sample;
use crate::model::train::store::StoredCase;
use crate::model::weights::to_f32;
use crate::rng::Rng;

impl<B: Kernels> Trainer<'_, B> {
    /// The network's input of a step: `[batch, channels, d, h, w]`.
    pub(super) fn input<A: Backend<Device = B::Device>>(
        &self,
        samples: &[Sample],
        cases: &[StoredCase],
        clicks: &[Vec<clicks::PatchClick>],
    ) -> Tensor<A, 5> {
        let model = &self.request.model;
        let size @ [d, h, w] = model.patch;
        let mut inputs = Vec::new();
        for (n, sample) in samples.iter().enumerate() {
            inputs.extend_from_slice(&sample.input);
            if let Some(guidance) = model.clicks {
                let places = clicks.get(n).into_iter().flatten().copied();
                let (classes, spacing_mm) =
                    (model.network.class_num, cases[sample.case].spacing_mm);
                GridClicks::at_voxels(guidance, classes, spacing_mm, places).append(
                    [0; 3],
                    size,
                    &mut inputs,
                );
            }
        }
        let shape = [samples.len(), model.network.in_chns, d, h, w];
        Tensor::from_data(TensorData::new(inputs, shape), &self.device)
    }

    /// The clicks of a step, per sample: on mistakes of the network without clicks.
    pub(super) fn clicks(
        &self,
        step: usize,
        samples: &[Sample],
        cases: &[StoredCase],
    ) -> Vec<Vec<clicks::PatchClick>> {
        let model = &self.request.model;
        let rng = Rng::new(self.request.options.seed).named("clicks");
        let of = |n: usize| rng.stream((step * samples.len() + n) as u64);
        let clicked: Vec<bool> = (0..samples.len())
            .map(|n| of(n).chance(clicks::SHARE))
            .collect();
        if model.clicks.is_none() || !clicked.contains(&true) {
            return Vec::new();
        }
        let input = self.input::<B>(samples, cases, &[]);
        let logits = to_f32(
            self.net
                .valid()
                .forward_finest(input, Mode::Eval)
                .into_data(),
        );
        let classes = model.network.class_num;
        let each = samples
            .iter()
            .zip(logits.chunks_exact(logits.len() / samples.len()));
        let clicks = each.enumerate().map(|(n, (sample, logits))| {
            if !clicked[n] {
                return Vec::new();
            }
            let voxels = sample.labels.len();
            let best = |voxel: usize| {
                let logit = |class: usize| logits[class * voxels + voxel];
                (1..classes).fold(0, |best, class| {
                    if logit(class) > logit(best) {
                        class
                    } else {
                        best
                    }
                }) as u8
            };
            let prediction: Vec<u8> = (0..voxels).map(best).collect();
            let case = &cases[sample.case];
            clicks::on_mistakes(
                &prediction,
                &sample.labels,
                &case.annotated,
                model.patch,
                case.spacing_mm,
                &mut of(n).named("places"),
            )
        });
        clicks.collect()
    }
}
