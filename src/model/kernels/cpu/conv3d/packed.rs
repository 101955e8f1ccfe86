//! Weights in the order in which the inner kernel reads them.

use super::super::Isa;
use super::Conv3dShape;
use super::micro::Kernel;
use rayon::prelude::*;

/// Weights ready for [`super::conv3d_forward`]. Worth keeping between calls where the weights do not change (inference).
pub struct PackedWeights {
    /// `[block of rows][in channel][tap][row]`, zero where a block goes past the last channel.
    data: Vec<f32>,
    pub(super) micro: Kernel,
    pub(super) isa: Isa,
    pub(super) out_channels: usize,
    pub(super) in_channels: usize,
    pub(super) kernel: [usize; 3],
}

impl PackedWeights {
    /// From weights `[out, in, kz, ky, kx]`, for the forward convolution of `shape`.
    pub fn forward(weights: &[f32], shape: Conv3dShape) -> Self {
        Self::forward_on(Isa::best(), weights, shape)
    }

    /// From the same weights `[out, in, kz, ky, kx]`, for the gradient of the input: `shape` is that of the forward convolution.
    pub fn backward_data(weights: &[f32], shape: Conv3dShape) -> Self {
        Self::backward_data_on(Isa::best(), weights, shape)
    }

    pub(super) fn forward_on(isa: Isa, weights: &[f32], shape: Conv3dShape) -> Self {
        assert_eq!(weights.len(), shape.weights(), "conv3d: length of the weights");
        let taps = shape.taps();
        Self::pack(isa, shape.out_channels, shape.in_channels, shape.kernel, |out, input, to: &mut Lane| {
            let from = &weights[(out * shape.in_channels + input) * taps..][..taps];
            to.fill(from.iter());
        })
    }

    pub(super) fn backward_data_on(isa: Isa, weights: &[f32], shape: Conv3dShape) -> Self {
        assert_eq!(weights.len(), shape.weights(), "conv3d: length of the weights");
        let taps = shape.taps();
        Self::pack(isa, shape.in_channels, shape.out_channels, shape.kernel, |out, input, to: &mut Lane| {
            let from = &weights[(input * shape.in_channels + out) * taps..][..taps];
            to.fill(from.iter().rev());
        })
    }

    fn pack(isa: Isa, out_channels: usize, in_channels: usize, kernel: [usize; 3], copy: impl Fn(usize, usize, &mut Lane) + Sync) -> Self {
        let micro = Kernel::for_rows(isa, out_channels);
        let (rows, taps) = (micro.rows, kernel.iter().product::<usize>());
        let mut data = vec![0.0; out_channels.div_ceil(rows) * in_channels * taps * rows];
        if !data.is_empty() {
            data.par_chunks_mut(in_channels * taps * rows).enumerate().for_each(|(block, data)| {
                for (input, data) in data.chunks_exact_mut(taps * rows).enumerate() {
                    for row in 0..rows.min(out_channels - block * rows) {
                        copy(block * rows + row, input, &mut Lane { data: &mut data[row..], step: rows });
                    }
                }
            });
        }
        Self { data, micro, isa, out_channels, in_channels, kernel }
    }

    /// Number of blocks of rows.
    pub(super) fn blocks(&self) -> usize {
        self.out_channels.div_ceil(self.micro.rows)
    }

    /// The weights of a block of rows from an input channel on: `[in channel][tap][row]`.
    pub(super) fn block(&self, block: usize, from_channel: usize) -> &[f32] {
        let per_channel = self.kernel.iter().product::<usize>() * self.micro.rows;
        &self.data[(block * self.in_channels + from_channel) * per_channel..(block + 1) * self.in_channels * per_channel]
    }
}

/// Every `step`-th float of `data`.
struct Lane<'a> {
    data: &'a mut [f32],
    step: usize,
}

impl Lane<'_> {
    fn fill<'a>(&mut self, from: impl Iterator<Item = &'a f32>) {
        for (to, &from) in self.data.iter_mut().step_by(self.step).zip(from) {
            *to = from;
        }
    }
}
