//! Convolution with stride 1 and zero padding to the same size, its two gradients, and what can be fused into its loads.
//!
//! The gradient of the input is the forward kernel on flipped, transposed weights ([`PackedWeights::backward_data`]).

#[cfg(target_arch = "x86_64")]
mod amx_tile;
mod direct;
mod forward;
mod load;
mod packed;
mod plan;
#[cfg(test)]
mod tests;
mod weight_gradient;
mod weight_gradient_winograd;
mod winograd;
mod winograd_tile;

pub use forward::{conv3d_backward_data, conv3d_forward, conv3d_forward_into};
pub use packed::PackedWeights;
pub use weight_gradient::conv3d_backward_weights;

/// Sizes of one convolution: input `[batch, in_channels, depth, height, width]`, output `[batch, out_channels, depth, height, width]`,
/// weights `[out_channels, in_channels, kernel[0], kernel[1], kernel[2]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv3dShape {
    pub batch: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    pub depth: usize,
    pub height: usize,
    pub width: usize,
    /// Odd sides, `[z, y, x]`.
    pub kernel: [usize; 3],
}

impl Conv3dShape {
    /// Voxels of one channel.
    pub fn voxels(&self) -> usize {
        self.depth * self.height * self.width
    }

    /// Weights per pair of channels.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Length of the weights.
    pub fn weights(&self) -> usize {
        self.out_channels * self.in_channels * self.taps()
    }

    /// The zeros added at each end, `[z, y, x]`.
    fn pad(&self) -> [usize; 3] {
        assert!(
            self.kernel.iter().all(|k| k % 2 == 1),
            "conv3d: the kernel {:?} has an even side",
            self.kernel
        );
        self.kernel.map(|k| k / 2)
    }
}

/// What is applied to the result while it is written: `gelu(y)` and then `y + residual`. The default does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Whether GELU follows.
    pub gelu: bool,
    /// Of the length of the result.
    pub residual: Option<&'a [f32]>,
}

/// What is applied to the input while it is read, before the padding: `prelu(x * scale[c] + shift[c])` with one slope for all channels.
/// `scale` and `shift` have one value per input channel, over all sources.
#[derive(Clone, Copy, Debug)]
pub struct Prologue<'a> {
    pub scale: &'a [f32],
    pub shift: &'a [f32],
    pub slope: f32,
}
