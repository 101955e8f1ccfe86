//! Convolution blocks of PCT-Net. Everything is pre-activated: normalisation, PReLU, convolution.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::layers::{BatchNorm, Conv3d, ConvTranspose3d, Init, Mode, PRelu, dropout};
use crate::model::kernels::{Kernels, raw, wrap};

/// Kernel side 3, or 1 along depth at the levels that work in plane.
pub fn kernel(in_plane: bool) -> [usize; 3] {
    if in_plane { [1, 3, 3] } else { [3, 3, 3] }
}

/// One pre-activated convolution.
#[derive(Module, Debug)]
pub struct PreConv<B: Backend> {
    pub(super) pre_norm: BatchNorm<B>,
    pub(super) pre_act: PRelu<B>,
    pub(super) pre_conv: Conv3d<B>,
}

impl<B: Kernels> PreConv<B> {
    pub fn new(input: usize, output: usize, kernel: [usize; 3], init: &mut Init<B>) -> Self {
        Self {
            pre_norm: BatchNorm::new(input, init),
            pre_act: PRelu::new(init),
            pre_conv: Conv3d::new(input, output, kernel, init),
        }
    }

    pub fn forward(&self, x: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        self.pre_norm
            .forward_conv(x, &self.pre_act, &self.pre_conv, mode)
    }
}

/// Two pre-activated convolutions with dropout before the second.
#[derive(Module, Debug)]
pub struct ConvBlock<B: Backend> {
    pub(super) first_norm: BatchNorm<B>,
    pub(super) first_act: PRelu<B>,
    pub(super) first_conv: Conv3d<B>,
    pub(super) second_norm: BatchNorm<B>,
    pub(super) second_act: PRelu<B>,
    pub(super) second_conv: Conv3d<B>,
    dropout: f64,
}

impl<B: Kernels> ConvBlock<B> {
    pub fn new(channels: usize, kernel: [usize; 3], dropout: f64, init: &mut Init<B>) -> Self {
        Self {
            first_norm: BatchNorm::new(channels, init),
            first_act: PRelu::new(init),
            first_conv: Conv3d::new(channels, channels, kernel, init),
            second_norm: BatchNorm::new(channels, init),
            second_act: PRelu::new(init),
            second_conv: Conv3d::new(channels, channels, kernel, init),
            dropout,
        }
    }

    pub fn forward(&self, x: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        let x = self
            .first_norm
            .forward_conv(x, &self.first_act, &self.first_conv, mode);
        match mode {
            Mode::Train(_) | Mode::Sample(_) if self.dropout > 0.0 => {
                let x = self.second_norm.forward(x, &self.second_act, mode);
                self.second_conv.forward(dropout(x, self.dropout, mode))
            }
            _ => self
                .second_norm
                .forward_conv(x, &self.second_act, &self.second_conv, mode),
        }
    }
}

/// Max pool, then a pre-activated convolution.
#[derive(Module, Debug)]
pub struct DownSample<B: Backend> {
    pub(super) conv: PreConv<B>,
    pub(super) pool_depth: bool,
}

impl<B: Kernels> DownSample<B> {
    pub fn new(
        input: usize,
        output: usize,
        pool_depth: bool,
        kernel: [usize; 3],
        init: &mut Init<B>,
    ) -> Self {
        Self {
            conv: PreConv::new(input, output, kernel, init),
            pool_depth,
        }
    }

    pub fn forward(&self, x: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        self.conv
            .forward(wrap(B::max_pool(raw(x), self.pool_depth)), mode)
    }
}

/// Pre-activated transposed convolution.
#[derive(Module, Debug)]
pub struct PreUp<B: Backend> {
    pub(super) pre_norm: BatchNorm<B>,
    pub(super) pre_act: PRelu<B>,
    pub(super) pre_up: ConvTranspose3d<B>,
}

/// Upsampled coarse features joined to the finer ones, then a pre-activated convolution.
#[derive(Module, Debug)]
pub struct UpCat<B: Backend> {
    pub(super) up: PreUp<B>,
    pub(super) conv: PreConv<B>,
}

impl<B: Kernels> UpCat<B> {
    pub fn new(
        fine: usize,
        coarse: usize,
        up_depth: bool,
        kernel: [usize; 3],
        init: &mut Init<B>,
    ) -> Self {
        let block = [if up_depth { 2 } else { 1 }, 2, 2];
        Self {
            up: PreUp {
                pre_norm: BatchNorm::new(coarse, init),
                pre_act: PRelu::new(init),
                pre_up: ConvTranspose3d::new(coarse, fine, block, init),
            },
            conv: PreConv::new(fine * 2, fine, kernel, init),
        }
    }

    pub fn forward(&self, fine: Tensor<B, 5>, coarse: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        let up = &self.up;
        let up = up
            .pre_up
            .forward_activated(coarse, &up.pre_norm, &up.pre_act, mode);
        self.conv.forward(Tensor::cat(vec![fine, up], 1), mode)
    }
}
