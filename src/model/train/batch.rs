//! What a step learns from: patches as one tensor, made by the host or by the device.

use burn::tensor::{Tensor, TensorData};

use super::samples::Patch;
use super::store::StoredCase;
use crate::model::kernels::{Kernels, wrap};

/// The input `[batch, 1, d, h, w]` and the labels of patches; those that are only drawn are made here.
pub fn inputs<B: Kernels>(
    patches: Vec<Patch>,
    [d, h, w]: [usize; 3],
    device: &B::Device,
) -> (Tensor<B, 5>, Vec<u8>) {
    let maker = B::patch_maker();
    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    for patch in patches {
        let sample = match (patch, &maker) {
            (Patch::Drawn(drawn), Some(maker)) => {
                let (input, of_patch) = (maker.make)(&drawn.into_job(), device);
                inputs.push(wrap::<B, 3>(input).reshape([1, 1, d, h, w]));
                labels.extend(of_patch);
                continue;
            }
            (Patch::Drawn(drawn), None) => drawn.make(),
            (Patch::Made(sample), _) => sample,
        };
        let data = TensorData::new(sample.input, [1, 1, d, h, w]);
        inputs.push(Tensor::from_data(data, device));
        labels.extend(sample.labels);
    }
    (Tensor::cat(inputs, 0), labels)
}

/// The cases to name when their patches give no finite numbers: those with a patch that is not finite itself, else all.
pub fn names(patches: &[Patch], cases: &[StoredCase]) -> String {
    let bad = |patch: &&Patch| match patch {
        Patch::Made(sample) => sample.input.iter().any(|v| !v.is_finite()),
        // Its HU are whole numbers.
        Patch::Drawn(_) => false,
    };
    let mut named: Vec<&Patch> = patches.iter().filter(bad).collect();
    if named.is_empty() {
        named = patches.iter().collect();
    }
    let names: Vec<&str> = named
        .iter()
        .map(|patch| cases[patch.case()].name.as_str())
        .collect();
    format!("on patches of {}", names.join(", "))
}
