//! The convolution: what to read and write, and its tasks.

use super::super::simd::{Output, ranges};
use super::super::{gelu, simd::per_isa};
use super::load::{Sources, Window, load_padded, of_channel, pack_pairs};
use super::packed::Method;
use super::plan::Plan;
use super::{Conv3dShape, Epilogue, PackedWeights, Prologue};
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
    let outputs = Outputs::new(shape, &[shape.out_channels]);
    convolve(
        inputs,
        weights,
        bias,
        prologue,
        Epilogue::default(),
        shape,
        &outputs,
    );
    // SAFETY: `convolve` writes every output.
    unsafe { outputs.finish() }.pop().unwrap_or_default()
}

/// [`conv3d_forward`] and then `epilogue`, into a buffer of the length of the result.
pub fn conv3d_forward_into(
    inputs: &[(&[f32], usize)],
    weights: &PackedWeights,
    bias: &[f32],
    prologue: Option<Prologue<'_>>,
    epilogue: Epilogue<'_>,
    shape: Conv3dShape,
    to: &mut [f32],
) {
    let outputs = Outputs::over(shape, to);
    convolve(
        inputs,
        weights,
        Some(bias),
        prologue,
        epilogue,
        shape,
        &outputs,
    );
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
    let outputs = Outputs::new(transposed, split);
    convolve(
        &[(dy, shape.out_channels)],
        weights,
        None,
        None,
        Epilogue::default(),
        transposed,
        &outputs,
    );
    // SAFETY: `convolve` writes every output.
    unsafe { outputs.finish() }
}

/// Output channels in several tensors.
pub struct Outputs<'a> {
    tensors: Vec<Output<'a>>,
    /// Per channel: its tensor, channels of that tensor, channel in it.
    channels: Vec<(usize, usize, usize)>,
    voxels: usize,
}

impl<'a> Outputs<'a> {
    fn over(shape: Conv3dShape, to: &'a mut [f32]) -> Self {
        assert_eq!(
            to.len(),
            shape.batch * shape.out_channels * shape.voxels(),
            "conv3d: length of the output"
        );
        Self {
            tensors: vec![Output::over(to)],
            channels: (0..shape.out_channels)
                .map(|channel| (0, shape.out_channels, channel))
                .collect(),
            voxels: shape.voxels(),
        }
    }

    /// # Safety
    /// Every element was written.
    unsafe fn finish(self) -> Vec<Vec<f32>> {
        self.tensors
            .into_iter()
            // SAFETY: by the contract of this function.
            .map(|tensor| unsafe { tensor.finish() })
            .collect()
    }

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
    epilogue: Epilogue<'_>,
    shape: Conv3dShape,
    outputs: &Outputs<'_>,
) {
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
    let mut start = vec![0.0; weights.blocks() * weights.block_rows()];
    if let Some(bias) = bias {
        assert_eq!(bias.len(), shape.out_channels, "conv3d: length of the bias");
        start[..bias.len()].copy_from_slice(bias);
    }
    if let Some(residual) = epilogue.residual {
        assert_eq!(
            residual.len(),
            shape.batch * shape.out_channels * shape.voxels(),
            "conv3d: length of the residual"
        );
    }
    if shape.in_channels == 0 {
        fill_with_bias(outputs, &start, shape);
    } else if shape.batch * shape.voxels() > 0 {
        let of_slots = Conv3dShape {
            in_channels: weights.slots(),
            ..shape
        };
        let threads = rayon::current_num_threads();
        let plan = match weights.method {
            Method::Direct => Plan::direct(of_slots, weights.micro, threads),
            Method::Winograd(winograd) => {
                Plan::winograd(of_slots, weights.micro, winograd, threads)
            }
            #[cfg(target_arch = "x86_64")]
            Method::Tiles(tiles) => Plan::tiles(of_slots, tiles, threads),
        };
        let job = Job {
            sources: Sources::new(inputs, shape),
            weights,
            start: &start,
            prologue,
            shape,
            plan,
            epilogue,
            outputs,
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
            .for_each(|(sample, z, y, blocks)| match weights.method {
                Method::Direct => job.direct_tile(sample, z, y, blocks),
                Method::Winograd(winograd) => job.winograd_tile(winograd, sample, z, y, blocks),
                #[cfg(target_arch = "x86_64")]
                Method::Tiles(tiles) => job.amx_tile(tiles, sample, z, y, blocks),
            });
    }
}

fn fill_with_bias(outputs: &Outputs<'_>, bias: &[f32], shape: Conv3dShape) {
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
    pub epilogue: Epilogue<'a>,
    pub outputs: &'a Outputs<'a>,
}

impl Job<'_> {
    /// The padded copy of a channel.
    pub fn load_channel(&self, sample: usize, channel: usize, window: &Window, to: &mut [f32]) {
        let values = self.sources.volume(sample, channel);
        let prologue = of_channel(self.prologue, channel);
        load_padded(self.weights.isa, values, window, prologue, to);
    }

    /// The padded copy of what a slot of the weights multiplies: one channel, or two side by side. `spare`: scratch memory for one of them.
    pub fn load(
        &self,
        sample: usize,
        slot: usize,
        window: &Window,
        spare: &mut [f32],
        to: &mut [f32],
    ) {
        if !self.weights.pairs {
            return self.load_channel(sample, slot, window, to);
        }
        let (len, second) = (window.channel(), 2 * slot + 1);
        self.load_channel(sample, 2 * slot, window, spare);
        if second < self.shape.in_channels {
            self.load_channel(sample, second, window, to);
        } else {
            to[..len].fill(0.0);
        }
        pack_pairs(self.weights.isa, &spare[..len], &mut to[..len]);
    }

    /// Applies the epilogue to finished output of a channel, `from` voxels after its first.
    pub fn finish(&self, sample: usize, channel: usize, from: usize, values: &mut [f32]) {
        if self.epilogue.gelu {
            gelu::gelu_in_place(self.weights.isa, values);
        }
        if let Some(residual) = self.epilogue.residual {
            let at = (sample * self.shape.out_channels + channel) * self.shape.voxels() + from;
            add(self.weights.isa, values, &residual[at..][..values.len()]);
        }
    }
}

per_isa! {
    fn add(values: &mut [f32], more: &[f32]) {
        values.iter_mut().zip(more).for_each(|(v, m)| *v += m);
    }
}
