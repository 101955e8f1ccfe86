//! The convolution: what to read and write, and its tasks.

use super::super::simd::{Output, ranges};
use super::load::Sources;
use super::plan::Plan;
use super::{Conv3dShape, PackedWeights, Prologue};
use rayon::prelude::*;

/// `y = conv(prologue(x)) + bias`, `[batch, out_channels, depth, height, width]`.
///
/// `inputs`: tensors `[batch, channels, depth, height, width]` with their channels, read as if concatenated along the channels.
/// `weights`: from [`PackedWeights::forward`]. `bias`: one value per output channel. `prologue`: applied to the input before the padding.
pub fn conv3d_forward(
    inputs: &[(&[f32], usize)],
    weights: &PackedWeights,
    bias: Option<&[f32]>,
    prologue: Option<Prologue<'_>>,
    shape: Conv3dShape,
) -> Vec<f32> {
    convolve(
        inputs,
        weights,
        bias,
        prologue,
        shape,
        &[shape.out_channels],
    )
    .pop()
    .unwrap_or_default()
}

/// The gradient of the input, one tensor `[batch, channels, depth, height, width]` per entry of `split` (channels of each source).
///
/// `dy`: `[batch, out_channels, depth, height, width]`. `weights`: from [`PackedWeights::backward_data`]. `shape`: that of the forward convolution.
/// The gradient is that of what was convolved: where a prologue was used, of its result.
pub fn conv3d_backward_data(
    dy: &[f32],
    weights: &PackedWeights,
    shape: Conv3dShape,
    split: &[usize],
) -> Vec<Vec<f32>> {
    let transposed = Conv3dShape {
        in_channels: shape.out_channels,
        out_channels: shape.in_channels,
        ..shape
    };
    convolve(
        &[(dy, shape.out_channels)],
        weights,
        None,
        None,
        transposed,
        split,
    )
}

/// Output channels in several tensors.
pub struct Outputs {
    tensors: Vec<Output>,
    /// Per channel: its tensor, channels of that tensor, channel in it.
    channels: Vec<(usize, usize, usize)>,
    voxels: usize,
}

impl Outputs {
    fn new(shape: Conv3dShape, split: &[usize]) -> Self {
        assert_eq!(
            split.iter().sum::<usize>(),
            shape.out_channels,
            "conv3d: output channels of the parts together"
        );
        let tensors = split
            .iter()
            .map(|channels| Output::new(shape.batch * channels * shape.voxels()))
            .collect();
        let channels = split
            .iter()
            .enumerate()
            .flat_map(|(i, &count)| (0..count).map(move |channel| (i, count, channel)))
            .collect();
        Self {
            tensors,
            channels,
            voxels: shape.voxels(),
        }
    }

    /// # Safety
    /// As [`Output::slice`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn voxels(
        &self,
        sample: usize,
        channel: usize,
        from: usize,
        len: usize,
    ) -> &mut [f32] {
        let (tensor, count, channel) = self.channels[channel];
        // SAFETY: by the contract of this function.
        unsafe { self.tensors[tensor].slice((sample * count + channel) * self.voxels + from, len) }
    }
}

fn convolve(
    inputs: &[(&[f32], usize)],
    weights: &PackedWeights,
    bias: Option<&[f32]>,
    prologue: Option<Prologue<'_>>,
    shape: Conv3dShape,
    split: &[usize],
) -> Vec<Vec<f32>> {
    assert_eq!(
        (weights.in_channels, weights.out_channels, weights.kernel),
        (shape.in_channels, shape.out_channels, shape.kernel),
        "conv3d: packed weights"
    );
    if let Some(p) = prologue {
        assert_eq!(
            (p.scale.len(), p.shift.len()),
            (shape.in_channels, shape.in_channels),
            "conv3d: length of the prologue"
        );
    }
    let mut start = vec![0.0; weights.blocks() * weights.micro.rows];
    if let Some(bias) = bias {
        assert_eq!(bias.len(), shape.out_channels, "conv3d: length of the bias");
        start[..bias.len()].copy_from_slice(bias);
    }
    let outputs = Outputs::new(shape, split);
    if shape.in_channels == 0 {
        fill_with_bias(&outputs, &start, shape);
    } else if shape.batch * shape.voxels() > 0 {
        let plan = Plan::new(
            shape,
            weights.micro,
            weights.winograd,
            rayon::current_num_threads(),
        );
        let job = Job {
            sources: Sources::new(inputs, shape),
            weights,
            start: &start,
            prologue,
            shape,
            plan,
            outputs: &outputs,
        };
        let mut tasks = Vec::new();
        for sample in 0..shape.batch {
            for z in ranges(shape.depth, plan.planes) {
                for y in ranges(shape.height, plan.rows) {
                    for blocks in ranges(weights.blocks(), weights.blocks().div_ceil(plan.groups)) {
                        tasks.push((sample, z.clone(), y.clone(), blocks));
                    }
                }
            }
        }
        tasks
            .into_par_iter()
            .for_each(|(sample, z, y, blocks)| match weights.winograd {
                None => job.direct_tile(sample, z, y, blocks),
                Some(winograd) => job.winograd_tile(winograd, sample, z, y, blocks),
            });
    }
    // SAFETY: the tasks cover every sample, row and output channel.
    outputs
        .tensors
        .into_iter()
        .map(|tensor| unsafe { tensor.finish() })
        .collect()
}

fn fill_with_bias(outputs: &Outputs, bias: &[f32], shape: Conv3dShape) {
    for sample in 0..shape.batch {
        for (channel, &bias) in bias.iter().enumerate().take(shape.out_channels) {
            // SAFETY: one slice at a time.
            unsafe { outputs.voxels(sample, channel, 0, shape.voxels()) }.fill(bias);
        }
    }
}

/// One call, as its tasks see it.
pub struct Job<'a> {
    pub sources: Sources<'a>,
    pub weights: &'a PackedWeights,
    /// What each output channel starts from.
    pub start: &'a [f32],
    pub prologue: Option<Prologue<'a>>,
    pub shape: Conv3dShape,
    pub plan: Plan,
    pub outputs: &'a Outputs,
}
