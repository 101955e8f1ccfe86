//! Weights in the order in which the inner kernel reads them.

use super::super::micro::Kernel;
use super::super::simd::{Isa, Output};
use super::Conv3dShape;
use super::winograd::Winograd;

/// Weights ready for [`super::conv3d_forward`]. Worth keeping between calls where the weights do not change (inference).
pub struct PackedWeights {
    /// `[block of rows][in channel][tap][row]`, or `[block of rows][component][in channel][tap x][row]` for Winograd's method; zero where a block
    /// goes past the last channel.
    data: Vec<f32>,
    pub(super) winograd: Option<Winograd>,
    pub(super) micro: Kernel,
    pub(super) isa: Isa,
    pub(super) out_channels: usize,
    pub(super) in_channels: usize,
    pub(super) kernel: [usize; 3],
}

/// Below so many output voxels the transform of the weights, or reading the longer result, costs more than the saved products.
const WINOGRAD_VOXELS: usize = 256;
const WINOGRAD_CHANNELS: usize = 8;
/// Pairs of channels per voxel above which the memory of kept weights counts more than the saved products.
const WEIGHTS_PER_VOXEL: usize = 128;

impl PackedWeights {
    /// From weights `[out, in, kz, ky, kx]`, for the forward convolution of `shape`.
    pub fn forward(weights: &[f32], shape: Conv3dShape) -> Self {
        Self::forward_on(Isa::best(), pays(shape, WINOGRAD_VOXELS), weights, shape)
    }

    /// As [`Self::forward`], for weights that are kept between calls: transformed weights are longer, so where many of them serve few voxels
    /// they stay as they are.
    pub fn to_keep(weights: &[f32], shape: Conv3dShape) -> Self {
        let many = shape.in_channels * shape.out_channels > WEIGHTS_PER_VOXEL * shape.voxels();
        Self::forward_on(
            Isa::best(),
            pays(shape, WINOGRAD_VOXELS) && !many,
            weights,
            shape,
        )
    }

    /// From the same weights `[out, in, kz, ky, kx]`, for the gradient of the input: `shape` is that of the forward convolution.
    pub fn backward_data(weights: &[f32], shape: Conv3dShape) -> Self {
        Self::backward_data_on(Isa::best(), pays(shape, WINOGRAD_VOXELS), weights, shape)
    }

    pub(super) fn forward_on(isa: Isa, fast: bool, weights: &[f32], shape: Conv3dShape) -> Self {
        assert_eq!(
            weights.len(),
            shape.weights(),
            "conv3d: length of the weights"
        );
        let (inputs, taps) = (shape.in_channels, shape.taps());
        let channels = [shape.out_channels, shape.in_channels];
        Self::pack(isa, fast, channels, shape.kernel, false, |out, input| {
            &weights[(out * inputs + input) * taps..][..taps]
        })
    }

    pub(super) fn backward_data_on(
        isa: Isa,
        fast: bool,
        weights: &[f32],
        shape: Conv3dShape,
    ) -> Self {
        assert_eq!(
            weights.len(),
            shape.weights(),
            "conv3d: length of the weights"
        );
        let (inputs, taps) = (shape.in_channels, shape.taps());
        let channels = [shape.in_channels, shape.out_channels];
        Self::pack(isa, fast, channels, shape.kernel, true, |out, input| {
            &weights[(input * inputs + out) * taps..][..taps]
        })
    }

    /// `fast`: by Winograd's method where the kernel allows it. `flip`: with the taps in reverse order. `pair(out, in)`: the taps of two channels.
    fn pack<'a>(
        isa: Isa,
        fast: bool,
        [out_channels, in_channels]: [usize; 2],
        kernel: [usize; 3],
        flip: bool,
        pair: impl Fn(usize, usize) -> &'a [f32] + Sync,
    ) -> Self {
        let micro = Kernel::for_rows(isa, out_channels);
        let winograd = Winograd::for_kernel(isa, kernel).filter(|_| fast);
        let (rows, taps) = (micro.rows, kernel.iter().product::<usize>());
        let components = winograd.map_or(1, |w| w.components());
        // What a channel has in each component.
        let part = rows * if winograd.is_some() { kernel[2] } else { taps };
        let block_len = components * in_channels * part;
        let write = |block: usize, data: &mut [f32]| {
            let (mut plain, mut middle) = (vec![0.0; taps * rows], Vec::new());
            let mut transformed = vec![0.0; components * part];
            for input in 0..in_channels {
                for row in 0..rows.min(out_channels - block * rows) {
                    let (pair, to) = (
                        pair(block * rows + row, input),
                        plain[row..].iter_mut().step_by(rows),
                    );
                    if flip {
                        to.zip(pair.iter().rev()).for_each(|(to, &from)| *to = from);
                    } else {
                        to.zip(pair).for_each(|(to, &from)| *to = from);
                    }
                }
                let from = match winograd {
                    None => &plain,
                    Some(winograd) => {
                        winograd.transform_weights(isa, &plain, &mut middle, &mut transformed);
                        &transformed
                    }
                };
                for (component, from) in from.chunks_exact(part).enumerate() {
                    data[(component * in_channels + input) * part..][..part].copy_from_slice(from);
                }
            }
        };
        // SAFETY: `write` writes every channel of every component of its block.
        let data =
            unsafe { Output::in_chunks(out_channels.div_ceil(rows) * block_len, block_len, write) };
        Self {
            data,
            winograd,
            micro,
            isa,
            out_channels,
            in_channels,
            kernel,
        }
    }

    /// Number of blocks of rows.
    pub(super) fn blocks(&self) -> usize {
        self.out_channels.div_ceil(self.micro.rows)
    }

    /// The weights of a block of rows (and a component, 0 but for Winograd's method) from an input channel on: `[in channel][tap][row]`.
    pub(super) fn block(&self, block: usize, component: usize, from_channel: usize) -> &[f32] {
        let (components, steps) = match self.winograd {
            None => (1, self.kernel.iter().product()),
            Some(winograd) => (winograd.components(), self.kernel[2]),
        };
        let per_channel = steps * self.micro.rows;
        let matrix = block * components + component;
        &self.data[(matrix * self.in_channels + from_channel) * per_channel
            ..(matrix + 1) * self.in_channels * per_channel]
    }
}

/// Whether Winograd's method is worth its transforms.
pub(super) fn pays(shape: Conv3dShape, from_voxels: usize) -> bool {
    shape.batch * shape.voxels() >= from_voxels
        && shape.in_channels.min(shape.out_channels) >= WINOGRAD_CHANNELS
}
