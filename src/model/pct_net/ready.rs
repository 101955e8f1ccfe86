//! Inference on a GPU as a list of layers made ready once per network and precision: weights packed, normalisation folded,
//! indices on the device. Concatenations, GELU, residuals and the blocks of transposed convolutions belong to a
//! convolution; attention reads its windows from the map.

use burn::tensor::{DType, Tensor};

use super::attention::{ConvTrans, SwinBlock};
use super::blocks::{ConvBlock, DownSample, PreConv, UpCat};
use super::layers::{BatchNorm, Conv3d, LayerNorm, Linear, PRelu};
use super::net::{PctNet, Walk};
use crate::model::kernels::{
    AttentionLayer, AttentionLayout, ConvLayer, Kernels, ReadyAttention, ReadyConv, raw, wrap,
};
use crate::model::precision::Precision;

/// One layer.
enum Layer<B: Kernels> {
    /// Of the maps read, side by side; the last is added to the result where `adds`.
    Conv {
        ready: Box<dyn ReadyConv<B>>,
        adds: bool,
    },
    Pool {
        depth: bool,
    },
    /// Of each voxel over its channels: scale and shift.
    Norm([Tensor<B, 1>; 2]),
    Attention(Box<dyn ReadyAttention<B>>),
}

struct Step<B: Kernels> {
    layer: Layer<B>,
    reads: Vec<usize>,
    /// Maps that no later step reads.
    ends: Vec<usize>,
}

/// A network made ready for patches of one size and batches of any. It holds its own weights.
pub struct ReadyNet<B: Kernels> {
    /// Step `n` writes map `n + 1`; map 0 is the input.
    steps: Vec<Step<B>>,
    dtype: DType,
}

impl<B: Kernels> ReadyNet<B> {
    /// The finest scale of `net` for patches `[depth, height, width]`, which must divide by the network's stride, with
    /// `channels` input channels, with activations and products of `precision`.
    pub fn new(net: &PctNet<B>, channels: usize, patch: [usize; 3], precision: Precision) -> Self {
        let dtype = precision.dtype();
        let mut preparing = Preparing {
            steps: Vec::new(),
            dtype,
        };
        let input = Map {
            number: 0,
            channels,
            size: patch,
        };
        net.walk_finest(&mut preparing, input);
        let mut steps = preparing.steps;
        // The last step that reads a map lets go of it.
        for map in 0..steps.len() {
            if let Some(step) = steps.iter_mut().rfind(|step| step.reads.contains(&map)) {
                step.ends.push(map);
            }
        }
        Self { steps, dtype }
    }

    /// Logits `[batch, classes, depth, height, width]` of patches `[batch, channels, depth, height, width]`, in the
    /// precision's type.
    pub fn forward(&self, x: Tensor<B, 5>) -> Tensor<B, 5> {
        let last = self.steps.len();
        let mut maps: Vec<Option<Tensor<B, 5>>> = vec![None; last + 1];
        maps[0] = Some(x.cast(self.dtype));
        for (number, step) in self.steps.iter().enumerate() {
            let reads = step.reads.iter().filter_map(|&map| maps[map].clone());
            let result = step.layer.run(reads.collect());
            for &map in &step.ends {
                maps[map] = None;
            }
            maps[number + 1] = Some(result);
        }
        match maps.pop().flatten() {
            Some(logits) => logits,
            None => unreachable!("the last step's result is kept"),
        }
    }
}

/// Channels last, `[batch, voxels, channels]`: only the strides change on a GPU.
fn rows<B: Kernels>(x: Tensor<B, 5>) -> Tensor<B, 3> {
    wrap(B::swap_rows(raw(x.flatten::<3>(2, 4))))
}

impl<B: Kernels> Layer<B> {
    fn run(&self, mut maps: Vec<Tensor<B, 5>>) -> Tensor<B, 5> {
        match self {
            Self::Conv { ready, adds } => {
                let added = if *adds { maps.pop().map(raw) } else { None };
                wrap(ready.run(maps.into_iter().map(raw).collect(), added))
            }
            Self::Pool { depth } => wrap(B::max_pool(raw(one(maps)), *depth)),
            Self::Norm([gamma, beta]) => on_rows(one(maps), |x| {
                B::row_norm(raw(x), raw(gamma.clone()), raw(beta.clone()))
            }),
            Self::Attention(ready) => on_rows(one(maps), |qkv| ready.run(raw(qkv))),
        }
    }
}

fn one<B: Kernels>(mut maps: Vec<Tensor<B, 5>>) -> Tensor<B, 5> {
    maps.swap_remove(0)
}

/// What `change` makes of a map's rows, as a map.
fn on_rows<B: Kernels>(
    x: Tensor<B, 5>,
    change: impl FnOnce(Tensor<B, 3>) -> burn::tensor::ops::FloatTensor<B>,
) -> Tensor<B, 5> {
    let [batch, _, d, h, w] = x.dims();
    let y: Tensor<B, 3> = wrap(B::swap_rows(change(rows(x))));
    let [_, channels, _] = y.dims();
    y.reshape([batch, channels, d, h, w])
}

/// A map of the list.
#[derive(Clone, Copy)]
struct Map {
    number: usize,
    channels: usize,
    size: [usize; 3],
}

struct Preparing<B: Kernels> {
    steps: Vec<Step<B>>,
    dtype: DType,
}

fn activation<B: Kernels>(
    norm: &BatchNorm<B>,
    act: &PRelu<B>,
) -> Option<[burn::tensor::ops::FloatTensor<B>; 3]> {
    let affine = norm.affine();
    Some([raw(affine.scale), raw(affine.shift), raw(act.weight.val())])
}

impl<B: Kernels> Preparing<B> {
    fn step(&mut self, layer: Layer<B>, reads: &[Map], channels: usize, size: [usize; 3]) -> Map {
        self.steps.push(Step {
            layer,
            reads: reads.iter().map(|map| map.number).collect(),
            ends: Vec::new(),
        });
        Map {
            number: self.steps.len(),
            channels,
            size,
        }
    }

    /// A convolution of `sources` side by side. `residual`: added to the result.
    fn convolution(
        &mut self,
        sources: &[Map],
        layer: ConvLayer<B>,
        output: usize,
        residual: Option<Map>,
    ) -> Map {
        let channels: Vec<usize> = sources.iter().map(|map| map.channels).collect();
        let block = layer.spread.unwrap_or([1; 3]);
        let size = [0, 1, 2].map(|axis| sources[0].size[axis] * block[axis]);
        let layer = Layer::Conv {
            ready: B::ready_conv(layer, &channels, self.dtype),
            adds: residual.is_some(),
        };
        let reads: Vec<Map> = sources.iter().copied().chain(residual).collect();
        self.step(layer, &reads, output, size)
    }

    fn layer(
        &mut self,
        sources: &[Map],
        layer: &Conv3d<B>,
        before: Option<(&BatchNorm<B>, &PRelu<B>)>,
        residual: Option<Map>,
    ) -> Map {
        let weight = layer.weight.val();
        let [output, ..] = weight.dims();
        let layer = ConvLayer {
            weight: raw(weight),
            bias: raw(layer.bias.val()),
            activation: before.and_then(|(norm, act)| activation(norm, act)),
            gelu: false,
            spread: None,
        };
        self.convolution(sources, layer, output, residual)
    }

    /// A fully connected layer of each voxel.
    fn linear(&mut self, x: Map, layer: &Linear<B>, gelu: bool, residual: Option<Map>) -> Map {
        let weight = layer.weight.val();
        let [output, input] = weight.dims();
        let layer = ConvLayer {
            weight: raw(weight.reshape([output, input, 1, 1, 1])),
            bias: raw(layer.bias.val()),
            activation: None,
            gelu,
            spread: None,
        };
        self.convolution(&[x], layer, output, residual)
    }

    fn norm(&mut self, x: Map, layer: &LayerNorm<B>) -> Map {
        let layer = Layer::Norm([layer.weight.val(), layer.bias.val()]);
        self.step(layer, &[x], x.channels, x.size)
    }

    fn block_with(&mut self, x: Map, layer: &ConvBlock<B>, residual: Option<Map>) -> Map {
        let before = Some((&layer.first_norm, &layer.first_act));
        let y = self.layer(&[x], &layer.first_conv, before, None);
        let before = Some((&layer.second_norm, &layer.second_act));
        self.layer(&[y], &layer.second_conv, before, residual)
    }

    fn transformer(&mut self, x: Map, layer: &SwinBlock<B>) -> Map {
        let windows = layer.windows(x.size);
        let normed = self.norm(x, &layer.norm1);
        let qkv = self.linear(normed, &layer.attn.qkv, false, None);
        let attention = AttentionLayer {
            bias: raw(layer.attn.bias(windows.side)),
            layout: AttentionLayout {
                heads: layer.attn.heads,
                regions: windows.regions,
            },
            index: windows.index,
            // A token outside the map is zero after normalisation, so its bias is all there is.
            outside: raw(layer.attn.qkv.bias.val()),
            tokens: windows.side.pow(3),
        };
        let attention = Layer::Attention(B::ready_attention(attention, self.dtype));
        let attended = self.step(attention, &[qkv], x.channels, x.size);
        let x = self.linear(attended, &layer.attn.proj, false, Some(x));
        let normed = self.norm(x, &layer.norm2);
        let hidden = self.linear(normed, &layer.mlp.fc1, true, None);
        self.linear(hidden, &layer.mlp.fc2, false, Some(x))
    }
}

impl<B: Kernels> Walk<B> for Preparing<B> {
    type Map = Map;

    fn conv(&mut self, x: Map, layer: &Conv3d<B>) -> Map {
        self.layer(&[x], layer, None, None)
    }

    fn pre_conv(&mut self, x: Map, layer: &PreConv<B>) -> Map {
        let before = Some((&layer.pre_norm, &layer.pre_act));
        self.layer(&[x], &layer.pre_conv, before, None)
    }

    fn block(&mut self, x: Map, layer: &ConvBlock<B>) -> Map {
        self.block_with(x, layer, None)
    }

    fn down(&mut self, x: Map, layer: &DownSample<B>) -> Map {
        let [depth, height, width] = x.size;
        let deep = if layer.pool_depth { 2 } else { 1 };
        let pool = Layer::Pool {
            depth: layer.pool_depth,
        };
        let size = [depth / deep, height / 2, width / 2];
        let pooled = self.step(pool, &[x], x.channels, size);
        self.pre_conv(pooled, &layer.conv)
    }

    fn up(&mut self, fine: Map, coarse: Map, layer: &UpCat<B>) -> Map {
        let up = &layer.up.pre_up;
        let weight = up.weight.val();
        let [input, output, kd, kh, kw] = weight.dims();
        let taps = kd * kh * kw;
        let by_tap = weight.reshape([input, output, taps]).permute([2, 1, 0]);
        let upsample = ConvLayer {
            weight: raw(by_tap.reshape([taps * output, input, 1, 1, 1])),
            bias: raw(up.bias.val().repeat(&[taps])),
            activation: activation(&layer.up.pre_norm, &layer.up.pre_act),
            gelu: false,
            spread: Some([kd, kh, kw]),
        };
        let upsampled = self.convolution(&[coarse], upsample, output, None);
        let conv = &layer.conv;
        let before = Some((&conv.pre_norm, &conv.pre_act));
        self.layer(&[fine, upsampled], &conv.pre_conv, before, None)
    }

    fn stage(&mut self, x: Map, layer: &ConvTrans<B>) -> Map {
        let mut tokens = x;
        for block in &layer.trans.blocks {
            tokens = self.transformer(tokens, block);
        }
        self.block_with(x, &layer.conv, Some(tokens))
    }
}
