//! The small layers that PCT-Net is made of. Tensors and parameters keep PyTorch's layouts, so that checkpoints fit as they are.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::module::{Module, Param, RunningState};
use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::model::kernels::{Keep, Kernels, NORM_EPSILON, plain, raw, wrap};
use crate::rng::Rng;

/// Weight of the newest batch in the running statistics, as in the published network.
const RUNNING_MOMENTUM: f64 = 0.1;

/// How a forward pass behaves.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// Running statistics, no dropout.
    Eval,
    /// The batch's statistics, dropout drawn from the stream.
    Train(&'a DropoutStream),
    /// Running statistics, dropout drawn from the stream: one draw of a network (Monte Carlo dropout, Gal and Ghahramani,
    /// ICML 2016).
    Sample(&'a DropoutStream),
}

impl<'a> Mode<'a> {
    /// Where dropout masks come from; none when nothing is dropped.
    fn masks(self) -> Option<&'a DropoutStream> {
        match self {
            Self::Eval => None,
            Self::Train(stream) | Self::Sample(stream) => Some(stream),
        }
    }
}

/// Seeds of the dropout masks of one training step: the same seed gives the same masks.
pub struct DropoutStream {
    seed: u64,
    drawn: AtomicU64,
    enabled: bool,
}

impl DropoutStream {
    /// Masks that depend on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            drawn: AtomicU64::new(0),
            enabled: true,
        }
    }

    /// Nothing is dropped.
    pub fn off() -> Self {
        Self {
            seed: 0,
            drawn: AtomicU64::new(0),
            enabled: false,
        }
    }

    fn next(&self) -> Rng {
        Rng::new(self.seed).stream(self.drawn.fetch_add(1, Ordering::Relaxed))
    }
}

/// Sets each value to zero with probability `p` in training and scales the others by `1 / (1 - p)`.
pub fn dropout<B: Kernels, const D: usize>(x: Tensor<B, D>, p: f64, mode: Mode) -> Tensor<B, D> {
    let Some(stream) = mode.masks() else { return x };
    if p == 0.0 || !stream.enabled {
        return x;
    }
    let keep = Keep::with_probability(1.0 - p);
    let mask = B::keep_mask(&stream.next(), x.shape(), keep, &x.device());
    let mask = wrap::<B, D>(mask);
    x.clone() * mask.cast(x.dtype())
}

/// Drops a whole sample of a residual branch with probability `p` in training. `x` is `[batch, tokens, channels]`.
pub fn drop_path<B: Backend>(x: Tensor<B, 3>, p: f64, mode: Mode) -> Tensor<B, 3> {
    let Some(stream) = mode.masks() else { return x };
    if p == 0.0 || !stream.enabled {
        return x;
    }
    let batch = x.dims()[0];
    let keep = plain::keep_values(&stream.next(), batch, Keep::with_probability(1.0 - p));
    if keep.iter().all(|scale| *scale == keep[0]) {
        return x * keep[0];
    }
    let mask = Tensor::<B, 3>::from_data(TensorData::new(keep, [batch, 1, 1]), &x.device());
    x.clone() * mask.cast(x.dtype())
}

/// 3D convolution, stride 1, size kept. Weight `[out, in, kd, kh, kw]`.
#[derive(Module, Debug)]
pub struct Conv3d<B: Backend> {
    pub(super) weight: Param<Tensor<B, 5>>,
    pub(super) bias: Param<Tensor<B, 1>>,
}

impl<B: Kernels> Conv3d<B> {
    pub fn new(input: usize, output: usize, kernel: [usize; 3], init: &mut Init<B>) -> Self {
        let fan_in = input * kernel.iter().product::<usize>();
        let [kd, kh, kw] = kernel;
        Self {
            weight: init.uniform([output, input, kd, kh, kw], fan_in),
            bias: init.uniform([output], fan_in),
        }
    }

    pub fn forward(&self, x: Tensor<B, 5>) -> Tensor<B, 5> {
        wrap(B::same_conv3d(
            raw(x),
            raw(self.weight.val()),
            raw(self.bias.val()),
        ))
    }
}

/// PReLU with one slope for all channels.
#[derive(Module, Debug)]
pub struct PRelu<B: Backend> {
    pub(super) weight: Param<Tensor<B, 1>>,
}

impl<B: Backend> PRelu<B> {
    pub fn new(init: &Init<B>) -> Self {
        Self {
            weight: init.constant(1, 0.25),
        }
    }
}

/// Batch normalisation. In training it uses the batch's statistics and updates the running ones with the unbiased
/// variance, as PyTorch does (burn's own takes the biased one).
#[derive(Module, Debug)]
pub struct BatchNorm<B: Backend> {
    pub(super) weight: Param<Tensor<B, 1>>,
    pub(super) bias: Param<Tensor<B, 1>>,
    running_mean: RunningState<Tensor<B, 1>>,
    running_var: RunningState<Tensor<B, 1>>,
}

/// Batch normalisation with running statistics as one multiply-add per channel.
pub(super) struct Affine<B: Backend> {
    pub scale: Tensor<B, 1>,
    pub shift: Tensor<B, 1>,
}

impl<B: Kernels> BatchNorm<B> {
    pub fn new(channels: usize, init: &Init<B>) -> Self {
        Self {
            weight: init.constant(channels, 1.0),
            bias: init.constant(channels, 0.0),
            running_mean: RunningState::new(Tensor::zeros([channels], &init.device)),
            running_var: RunningState::new(Tensor::ones([channels], &init.device)),
        }
    }

    /// As one multiply-add, with the running statistics.
    pub(super) fn affine(&self) -> Affine<B> {
        let scale = self.weight.val() / (self.running_var.value() + NORM_EPSILON).sqrt();
        let shift = self.bias.val() - self.running_mean.value() * scale.clone();
        Affine { scale, shift }
    }

    /// Normalisation and PReLU.
    pub fn forward(&self, x: Tensor<B, 5>, act: &PRelu<B>, mode: Mode) -> Tensor<B, 5> {
        match mode {
            Mode::Eval | Mode::Sample(_) => {
                let affine = self.affine();
                wrap(B::scale_prelu(
                    raw(x),
                    raw(affine.scale),
                    raw(affine.shift),
                    raw(act.weight.val()),
                ))
            }
            Mode::Train(_) => {
                let count = voxels(&x);
                let (y, mean, variance) = B::batch_norm_prelu(
                    raw(x),
                    raw(self.weight.val()),
                    raw(self.bias.val()),
                    raw(act.weight.val()),
                );
                self.observe(wrap(mean), wrap(variance), count);
                wrap(y)
            }
        }
    }

    /// Normalisation, PReLU, convolution.
    pub fn forward_conv(
        &self,
        x: Tensor<B, 5>,
        act: &PRelu<B>,
        conv: &Conv3d<B>,
        mode: Mode,
    ) -> Tensor<B, 5> {
        self.forward_into(x, act, conv.weight.val(), conv.bias.val(), mode)
    }

    /// [`Self::forward_conv`] with a weight `[out, in, kd, kh, kw]` and a bias `[out]`.
    fn forward_into(
        &self,
        x: Tensor<B, 5>,
        act: &PRelu<B>,
        weight: Tensor<B, 5>,
        bias: Tensor<B, 1>,
        mode: Mode,
    ) -> Tensor<B, 5> {
        match mode {
            Mode::Eval | Mode::Sample(_) => {
                let affine = self.affine();
                wrap(B::scale_prelu_conv3d(
                    raw(x),
                    raw(affine.scale),
                    raw(affine.shift),
                    raw(act.weight.val()),
                    raw(weight),
                    raw(bias),
                ))
            }
            Mode::Train(_) => {
                let count = voxels(&x);
                let (y, mean, variance) = B::batch_norm_conv3d(
                    raw(x),
                    raw(self.weight.val()),
                    raw(self.bias.val()),
                    raw(act.weight.val()),
                    raw(weight),
                    raw(bias),
                );
                self.observe(wrap(mean), wrap(variance), count);
                wrap(y)
            }
        }
    }

    /// Takes the moments of a batch of `count` voxels (the variance biased) into the running ones.
    fn observe(&self, mean: Tensor<B, 1>, variance: Tensor<B, 1>, count: f64) {
        update(&self.running_mean, mean);
        update(
            &self.running_var,
            variance * (count / (count - 1.0).max(1.0)),
        );
    }
}

/// Values of one channel over the batch.
fn voxels<B: Backend>(x: &Tensor<B, 5>) -> f64 {
    let [batch, _, depth, height, width] = x.dims();
    (batch * depth * height * width) as f64
}

fn update<B: Backend>(running: &RunningState<Tensor<B, 1>>, newest: Tensor<B, 1>) {
    let old = running.value_sync();
    running.update((old * (1.0 - RUNNING_MOMENTUM) + newest * RUNNING_MOMENTUM).detach());
}

/// Transposed convolution whose kernel equals its stride: every input voxel becomes one block of output voxels, so it is
/// a matrix product and a reshuffle. Weight `[in, out, kd, kh, kw]`.
#[derive(Module, Debug)]
pub struct ConvTranspose3d<B: Backend> {
    pub(super) weight: Param<Tensor<B, 5>>,
    pub(super) bias: Param<Tensor<B, 1>>,
}

impl<B: Kernels> ConvTranspose3d<B> {
    pub fn new(input: usize, output: usize, kernel: [usize; 3], init: &mut Init<B>) -> Self {
        let fan_in = output * kernel.iter().product::<usize>();
        let [kd, kh, kw] = kernel;
        Self {
            weight: init.uniform([input, output, kd, kh, kw], fan_in),
            bias: init.uniform([output], fan_in),
        }
    }

    /// Normalisation, PReLU, transposed convolution: `[batch, in, d, h, w]` to `[batch, out, d * kd, h * kh, w * kw]`.
    pub fn forward_activated(
        &self,
        x: Tensor<B, 5>,
        norm: &BatchNorm<B>,
        act: &PRelu<B>,
        mode: Mode,
    ) -> Tensor<B, 5> {
        let weight = self.weight.val();
        let [input, output, kd, kh, kw] = weight.dims();
        let blocks = output * kd * kh * kw;
        let matrix = weight.reshape([input, blocks]).transpose();
        let blocks = norm.forward_into(
            x,
            act,
            matrix.reshape([blocks, input, 1, 1, 1]),
            Tensor::zeros([blocks], &self.bias.val().device()),
            mode,
        );
        wrap(B::blocks_to_space(
            raw(blocks),
            raw(self.bias.val()),
            [kd, kh, kw],
        ))
    }
}

/// Fully connected layer. Weight `[out, in]`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    pub(super) weight: Param<Tensor<B, 2>>,
    pub(super) bias: Param<Tensor<B, 1>>,
}

impl<B: Kernels> Linear<B> {
    pub fn new(input: usize, output: usize, init: &mut Init<B>) -> Self {
        Self {
            weight: init.uniform([output, input], input),
            bias: init.uniform([output], input),
        }
    }

    /// `[a, b, in]` to `[a, b, out]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        wrap(B::row_linear(
            raw(x),
            raw(self.weight.val()),
            raw(self.bias.val()),
        ))
    }
}

/// Layer normalisation over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    pub(super) weight: Param<Tensor<B, 1>>,
    pub(super) bias: Param<Tensor<B, 1>>,
}

impl<B: Kernels> LayerNorm<B> {
    pub fn new(channels: usize, init: &Init<B>) -> Self {
        Self {
            weight: init.constant(channels, 1.0),
            bias: init.constant(channels, 0.0),
        }
    }

    /// `[a, b, channels]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        wrap(B::row_norm(
            raw(x),
            raw(self.weight.val()),
            raw(self.bias.val()),
        ))
    }
}

/// Two fully connected layers with GELU (the exact one) between.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    pub(super) fc1: Linear<B>,
    pub(super) fc2: Linear<B>,
}

impl<B: Kernels> Mlp<B> {
    pub fn new(channels: usize, hidden: usize, init: &mut Init<B>) -> Self {
        Self {
            fc1: Linear::new(channels, hidden, init),
            fc2: Linear::new(hidden, channels, init),
        }
    }

    /// `[a, b, channels]`, same out.
    pub fn forward(&self, x: Tensor<B, 3>, drop: f64, mode: Mode) -> Tensor<B, 3> {
        let activated = wrap(B::exact_gelu(raw(self.fc1.forward(x))));
        let hidden: Tensor<B, 3> = dropout(activated, drop, mode);
        dropout(self.fc2.forward(hidden), drop, mode)
    }
}

/// Draws initial parameters, each from its own numbered stream of one seed.
pub struct Init<B: Backend> {
    pub(super) device: B::Device,
    seed: u64,
    drawn: u64,
}

impl<B: Backend> Init<B> {
    pub fn new(seed: u64, device: &B::Device) -> Self {
        Self {
            device: device.clone(),
            seed,
            drawn: 0,
        }
    }

    fn next(&mut self) -> Rng {
        self.drawn += 1;
        Rng::new(self.seed).stream(self.drawn)
    }

    fn param<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<B, D>> {
        Param::from_data(TensorData::new(values, shape), &self.device)
    }

    fn constant(&self, len: usize, value: f32) -> Param<Tensor<B, 1>> {
        self.param(vec![value; len], [len])
    }

    /// Uniform in +-1/sqrt(fan_in): what PyTorch draws for convolutions and linear layers.
    fn uniform<const D: usize>(&mut self, shape: [usize; D], fan_in: usize) -> Param<Tensor<B, D>> {
        let bound = 1.0 / (fan_in as f64).sqrt();
        let mut rng = self.next();
        let values = (0..shape.iter().product::<usize>())
            .map(|_| rng.range(-bound, bound) as f32)
            .collect();
        self.param(values, shape)
    }

    /// Normal with mean 0, cut at two standard deviations.
    pub fn truncated_normal<const D: usize>(
        &mut self,
        shape: [usize; D],
        std: f64,
    ) -> Param<Tensor<B, D>> {
        let mut rng = self.next();
        let values = (0..shape.iter().product::<usize>())
            .map(|_| {
                loop {
                    let value = rng.normal();
                    if value.abs() <= 2.0 {
                        break (value * std) as f32;
                    }
                }
            })
            .collect();
        self.param(values, shape)
    }
}
