//! Writes the network down as a [`Plan`]: steps on feature maps, with weights packed and normalisation folded.

use burn::tensor::Tensor;

use super::attention::{ConvTrans, SwinBlock};
use super::blocks::{ConvBlock, DownSample, PreConv, UpCat};
use super::layers::{BatchNorm, Conv3d, LayerNorm, Linear, PRelu};
use super::net::Walk;
use super::plan::{Activation, AttentionTerms, Convolution, Step, StepKind, Value};
use crate::model::kernels::Kernels;
use crate::model::kernels::cpu::conv3d::{Conv3dShape, PackedWeights};
use crate::model::kernels::cpu::pool::PoolShape;
use crate::model::kernels::cpu::window_attention::AttentionShape;
use crate::model::weights::to_f32;

/// A feature map of the plan, `[channels, depth, height, width]`.
#[derive(Clone, Copy)]
pub(super) struct Map {
    pub value: Value,
    pub channels: usize,
    pub size: [usize; 3],
}

impl Map {
    /// The same voxels for a layer that looks at one voxel at a time: rows mean nothing then, and long ones are faster.
    fn in_long_rows(self) -> Self {
        let voxels: usize = self.size.iter().product();
        let width = [128, 64, 32, 16]
            .into_iter()
            .find(|&width| voxels.is_multiple_of(width));
        let size = width.map_or(self.size, |width| [1, voxels / width, width]);
        Self { size, ..self }
    }
}

/// Steps so far.
pub(super) struct Recorder {
    /// Whether weights are packed as bfloat16.
    bf16: bool,
    pub steps: Vec<Step>,
    /// Floats of each value.
    pub lens: Vec<usize>,
}

fn host<B: Kernels, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    to_f32(tensor.into_data())
}

fn activation<B: Kernels>(norm: &BatchNorm<B>, act: &PRelu<B>) -> Activation {
    let affine = norm.affine();
    Activation {
        scale: host(affine.scale),
        shift: host(affine.shift),
        slope: host(act.weight.val())[0],
    }
}

impl Recorder {
    pub fn new(bf16: bool) -> Self {
        Self {
            bf16,
            steps: Vec::new(),
            lens: Vec::new(),
        }
    }

    /// A map that no step has written yet.
    pub fn map(&mut self, channels: usize, size: [usize; 3]) -> Map {
        self.lens.push(channels * size.iter().product::<usize>());
        Map {
            value: Value(self.lens.len() - 1),
            channels,
            size,
        }
    }

    fn step(&mut self, kind: StepKind, reads: &[Map], channels: usize, size: [usize; 3]) -> Map {
        let to = self.map(channels, size);
        self.steps.push(Step {
            kind,
            reads: reads.iter().map(|map| map.value).collect(),
            writes: to.value,
        });
        to
    }

    /// A convolution of `sources` side by side; `weights` `[out, in, kz, ky, kx]`. `residual`: added to the result.
    #[allow(clippy::too_many_arguments)] // everything that one step fuses
    fn convolution(
        &mut self,
        sources: &[Map],
        weights: &[f32],
        bias: Vec<f32>,
        kernel: [usize; 3],
        activation: Option<Activation>,
        gelu: bool,
        residual: Option<Map>,
    ) -> Map {
        let [depth, height, width] = sources[0].size;
        let shape = Conv3dShape {
            batch: 1,
            in_channels: sources.iter().map(|map| map.channels).sum(),
            out_channels: bias.len(),
            depth,
            height,
            width,
            kernel,
        };
        let kind = StepKind::Convolution(Box::new(Convolution {
            weights: if self.bf16 {
                PackedWeights::to_keep_bf16(weights, shape)
            } else {
                PackedWeights::to_keep(weights, shape)
            },
            channels: sources.iter().map(|map| map.channels).collect(),
            bias,
            activation,
            gelu,
            residual: residual.is_some(),
            shape,
        }));
        let reads: Vec<Map> = sources.iter().copied().chain(residual).collect();
        self.step(kind, &reads, shape.out_channels, sources[0].size)
    }

    fn layer<B: Kernels>(
        &mut self,
        sources: &[Map],
        layer: &Conv3d<B>,
        activation: Option<Activation>,
        residual: Option<Map>,
    ) -> Map {
        let weight = layer.weight.val();
        let [_, _, kz, ky, kx] = weight.dims();
        let bias = host(layer.bias.val());
        self.convolution(
            sources,
            &host(weight),
            bias,
            [kz, ky, kx],
            activation,
            false,
            residual,
        )
    }

    /// A fully connected layer of each voxel.
    fn linear<B: Kernels>(
        &mut self,
        x: Map,
        layer: &Linear<B>,
        gelu: bool,
        residual: Option<Map>,
    ) -> Map {
        let (weights, bias) = (host(layer.weight.val()), host(layer.bias.val()));
        let y = self.convolution(
            &[x.in_long_rows()],
            &weights,
            bias,
            [1; 3],
            None,
            gelu,
            residual,
        );
        Map { size: x.size, ..y }
    }

    fn norm<B: Kernels>(&mut self, x: Map, layer: &LayerNorm<B>) -> Map {
        let kind = StepKind::LayerNorm {
            gamma: host(layer.weight.val()),
            beta: host(layer.bias.val()),
        };
        self.step(kind, &[x], x.channels, x.size)
    }

    fn block_with<B: Kernels>(
        &mut self,
        x: Map,
        layer: &ConvBlock<B>,
        residual: Option<Map>,
    ) -> Map {
        let first = activation(&layer.first_norm, &layer.first_act);
        let y = self.layer(&[x], &layer.first_conv, Some(first), None);
        let second = activation(&layer.second_norm, &layer.second_act);
        self.layer(&[y], &layer.second_conv, Some(second), residual)
    }

    fn transformer<B: Kernels>(&mut self, x: Map, layer: &SwinBlock<B>) -> Map {
        let windows = layer.windows(x.size);
        let normed = self.norm(x, &layer.norm1);
        let qkv = self.linear(normed, &layer.attn.qkv, false, None);
        let shape = AttentionShape {
            windows: windows.count,
            heads: layer.attn.heads,
            tokens: windows.side.pow(3),
            dim: x.channels / layer.attn.heads,
        };
        let kind = StepKind::Attention(AttentionTerms {
            // A token outside the map is zero after normalisation, so its bias is all there is.
            outside: host(layer.attn.qkv.bias.val()),
            index: windows.index.from,
            bias: host(layer.attn.bias(windows.side)),
            regions: windows.regions,
            shape,
        });
        let attended = self.step(kind, &[qkv], x.channels, x.size);
        let x = self.linear(attended, &layer.attn.proj, false, Some(x));
        let normed = self.norm(x, &layer.norm2);
        let hidden = self.linear(normed, &layer.mlp.fc1, true, None);
        self.linear(hidden, &layer.mlp.fc2, false, Some(x))
    }
}

impl<B: Kernels> Walk<B> for Recorder {
    type Map = Map;

    fn conv(&mut self, x: Map, layer: &Conv3d<B>) -> Map {
        self.layer(&[x], layer, None, None)
    }

    fn pre_conv(&mut self, x: Map, layer: &PreConv<B>) -> Map {
        let act = activation(&layer.pre_norm, &layer.pre_act);
        self.layer(&[x], &layer.pre_conv, Some(act), None)
    }

    fn block(&mut self, x: Map, layer: &ConvBlock<B>) -> Map {
        self.block_with(x, layer, None)
    }

    fn down(&mut self, x: Map, layer: &DownSample<B>) -> Map {
        let [depth, height, width] = x.size;
        let shape = PoolShape {
            volumes: x.channels,
            depth,
            height,
            width,
            pool_depth: layer.pool_depth,
        };
        let pooled = self.step(StepKind::Pool(shape), &[x], x.channels, shape.output());
        self.pre_conv(pooled, &layer.conv)
    }

    fn up(&mut self, fine: Map, coarse: Map, layer: &UpCat<B>) -> Map {
        let up = &layer.up.pre_up;
        let weight = up.weight.val();
        let [input, output, kz, ky, kx] = weight.dims();
        let blocks = output * kz * ky * kx;
        let matrix = host(weight.reshape([input, blocks]).transpose());
        let act = activation(&layer.up.pre_norm, &layer.up.pre_act);
        let flat = coarse.in_long_rows();
        let zeros = vec![0.0; blocks];
        let product = self.convolution(&[flat], &matrix, zeros, [1; 3], Some(act), false, None);
        let kind = StepKind::BlocksToSpace {
            bias: host(up.bias.val()),
            kernel: [kz, ky, kx],
            map: coarse.size,
        };
        let size = fine.size;
        let upsampled = self.step(kind, &[product], output, size);
        let conv = &layer.conv;
        let act = activation(&conv.pre_norm, &conv.pre_act);
        self.layer(&[fine, upsampled], &conv.pre_conv, Some(act), None)
    }

    fn stage(&mut self, x: Map, layer: &ConvTrans<B>) -> Map {
        let mut tokens = x;
        for block in &layer.trans.blocks {
            tokens = self.transformer(tokens, block);
        }
        self.block_with(x, &layer.conv, Some(tokens))
    }
}
