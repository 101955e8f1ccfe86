//! Layers of inference with what surrounds them, made ready once per version of a model and used for every patch.
//!
//! The structures here compute with the operations of [`Kernels`]; a backend that packs weights or fuses more has its own.

use burn::tensor::{DType, Shape, Tensor, ops::FloatTensor};

use super::{AttentionLayout, Kernels, RowIndex, raw, wrap};

/// A convolution: `gelu?(conv(prelu(x * scale + shift)) + bias) + added?`.
pub struct ConvLayer<B: Kernels> {
    /// `[out, in, kd, kh, kw]`.
    pub weight: FloatTensor<B>,
    /// `[out]`.
    pub bias: FloatTensor<B>,
    /// Scale `[in]`, shift `[in]` and slope `[1]` of what is done to the input.
    pub activation: Option<[FloatTensor<B>; 3]>,
    /// GELU follows, the exact one.
    pub gelu: bool,
    /// The outputs are the taps of blocks `[kd, kh, kw]`, `out = tap * channels + channel`; each voxel becomes such a block.
    pub spread: Option<[usize; 3]>,
}

/// A [`ConvLayer`] made ready.
pub trait ReadyConv<B: Kernels>: Send {
    /// Of maps `[batch, channels, d, h, w]` whose channels lie side by side; `added` has the shape of the result.
    fn run(&self, sources: Vec<FloatTensor<B>>, added: Option<FloatTensor<B>>) -> FloatTensor<B>;
}

/// Attention inside windows of a map's tokens.
pub struct AttentionLayer<B: Kernels> {
    /// `[heads, tokens, tokens]`.
    pub bias: FloatTensor<B>,
    /// Heads and regions.
    pub layout: AttentionLayout,
    /// Token of the map for each token of each window.
    pub index: RowIndex,
    /// Queries, keys and values of tokens outside the map, `[3 * channels]`.
    pub outside: FloatTensor<B>,
    /// Tokens of a window.
    pub tokens: usize,
}

/// An [`AttentionLayer`] made ready.
pub trait ReadyAttention<B: Kernels>: Send {
    /// Rows `[batch, tokens of the map, 3 * channels]` to `[batch, tokens of the map, channels]`.
    fn run(&self, qkv: FloatTensor<B>) -> FloatTensor<B>;
}

/// [`Kernels::ready_conv`] by way of the other operations.
pub struct PlainConv<B: Kernels>(pub ConvLayer<B>);

impl<B: Kernels> ReadyConv<B> for PlainConv<B> {
    fn run(&self, sources: Vec<FloatTensor<B>>, added: Option<FloatTensor<B>>) -> FloatTensor<B> {
        let layer = &self.0;
        let sources: Vec<Tensor<B, 5>> = sources.into_iter().map(wrap).collect();
        let x = raw(Tensor::cat(sources, 1));
        let (weight, bias) = (layer.weight.clone(), layer.bias.clone());
        let y = match layer.activation.clone() {
            Some([scale, shift, slope]) => {
                B::scale_prelu_conv3d(x, scale, shift, slope, weight, bias)
            }
            None => B::same_conv3d(x, weight, bias),
        };
        let y = if layer.gelu {
            let shape = wrap::<B, 5>(y.clone()).dims();
            let rows = wrap::<B, 5>(y).flatten::<3>(2, 4);
            let y: Tensor<B, 3> = wrap(B::exact_gelu(raw(rows)));
            raw(y.reshape(shape))
        } else {
            y
        };
        let y = match layer.spread {
            Some(block) => spread::<B>(y, block),
            None => y,
        };
        match added {
            Some(added) => raw(wrap::<B, 5>(y) + wrap::<B, 5>(added)),
            None => y,
        }
    }
}

/// Blocks out of taps: [`Kernels::blocks_to_space`] wants a channel's taps side by side.
fn spread<B: Kernels>(x: FloatTensor<B>, block: [usize; 3]) -> FloatTensor<B> {
    let x = wrap::<B, 5>(x);
    let [batch, out, d, h, w] = x.dims();
    let taps: usize = block.iter().product();
    let channels = out / taps;
    let x = x
        .reshape([batch, taps, channels, d * h * w])
        .swap_dims(1, 2)
        .reshape([batch, out, d, h, w]);
    let device = x.device();
    let none = Tensor::<B, 1>::zeros([channels], (&device, x.dtype()));
    B::blocks_to_space(raw(x), raw(none), block)
}

/// [`Kernels::ready_attention`] by way of the other operations.
pub struct PlainAttention<B: Kernels> {
    layer: AttentionLayer<B>,
    /// What tokens outside the map have, zeros for the others, `[1, rows, 3 * channels]`.
    outside: FloatTensor<B>,
}

impl<B: Kernels> PlainAttention<B> {
    /// Makes a layer ready for maps of `dtype`.
    pub fn new(layer: AttentionLayer<B>, dtype: DType) -> Self {
        let outside = wrap::<B, 1>(layer.outside.clone());
        let rows = layer.index.from.len();
        let there: Vec<f32> = layer
            .index
            .from
            .iter()
            .map(|&row| f32::from(u8::from(row == super::NO_ROW)))
            .collect();
        let device = outside.device();
        let there = Tensor::<B, 1>::from_floats(&*there, &device).reshape([1, rows, 1]);
        let outside = raw((there * outside.unsqueeze()).cast(dtype));
        Self { layer, outside }
    }
}

impl<B: Kernels> ReadyAttention<B> for PlainAttention<B> {
    fn run(&self, qkv: FloatTensor<B>) -> FloatTensor<B> {
        let layer = &self.layer;
        let gathered = wrap::<B, 3>(B::gather_rows(qkv, &layer.index));
        let [batch, rows, channels] = gathered.dims();
        let windows = batch * rows / layer.tokens;
        let qkv = (gathered + wrap::<B, 3>(self.outside.clone())).reshape([
            windows,
            layer.tokens,
            channels,
        ]);
        let y = B::window_attention(raw(qkv), layer.bias.clone(), &layer.layout);
        let y = B::float_reshape(y, Shape::from([batch, rows, channels / 3]));
        B::gather_rows(y, &layer.index.inverse())
    }
}
