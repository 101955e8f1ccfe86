//! What a step learns from: patches as one tensor, made by the host or by the device.

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};

use super::samples::Patch;
use super::store::StoredCase;
use crate::model::kernels::{Kernels, wrap};
use crate::model::loss::Target;

/// A patch on the device.
pub struct Input<B: Kernels> {
    /// `[1, 1, d, h, w]`, and with clicks their channels.
    pub voxels: Tensor<B, 5>,
    /// Classes, `[d, h, w]`.
    pub labels: Vec<u8>,
    /// Which classes were annotated in it.
    pub annotated: Vec<bool>,
    /// Number of the case in the store.
    pub case: usize,
}

/// Patches `[d, h, w]` on the device; those that are only drawn are made here.
pub fn inputs<B: Kernels>(
    patches: Vec<Patch>,
    [d, h, w]: [usize; 3],
    device: &B::Device,
) -> Vec<Input<B>> {
    let maker = B::patch_maker();
    let make = |patch: Patch| {
        let (case, annotated) = (patch.case(), patch.annotated().to_vec());
        let sample = match (patch, &maker) {
            (Patch::Drawn(drawn), Some(maker)) => {
                let (input, labels) = (maker.make)(&drawn.into_job(), device);
                let voxels = wrap::<B, 3>(input).reshape([1, 1, d, h, w]);
                return Input {
                    voxels,
                    labels,
                    annotated,
                    case,
                };
            }
            (Patch::Drawn(drawn), None) => drawn.make(),
            (Patch::Made(sample), _) => sample,
        };
        let data = TensorData::new(sample.input, [1, 1, d, h, w]);
        Input {
            voxels: Tensor::from_data(data, device),
            labels: sample.labels,
            annotated,
            case,
        }
    };
    patches.into_iter().map(make).collect()
}

/// The voxels `[batch, channels, d, h, w]` of patches `[d, h, w]` that go through the network together, and what it should say.
pub fn together<B: Kernels>(
    inputs: &[Input<B>],
    size: [usize; 3],
    device: &B::Device,
) -> (Tensor<Autodiff<B>, 5>, Target<Autodiff<B>>) {
    let voxels = inputs.iter().map(|input| input.voxels.clone()).collect();
    let labels = inputs.iter().flat_map(|input| input.labels.iter().copied());
    let labels: Vec<u8> = labels.collect();
    let annotated: Vec<_> = inputs.iter().map(|input| input.annotated.clone()).collect();
    let target = Target::new(&labels, size, &annotated, device);
    (Tensor::from_inner(Tensor::cat(voxels, 0)), target)
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
