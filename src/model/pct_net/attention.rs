//! Windowed self-attention over feature maps, with the published network's quirks where weights depend on them.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::blocks::{ConvBlock, kernel};
use super::layers::{Init, LayerNorm, Linear, Mlp, Mode, drop_path, dropout};
use crate::model::kernels::{Kernels, raw, wrap};

/// Added to the attention between tokens that are neighbours only because the map was rolled.
const MASKED: f32 = -100.0;
/// Width of the two-layer perceptron against the block's channels.
const MLP_RATIO: usize = 4;

/// Attention inside windows of `window`^3 tokens with a learned bias per relative position.
#[derive(Module, Debug)]
pub struct WindowAttention<B: Backend> {
    /// `[(2 * window - 1)^3, heads]`.
    relative_position_bias_table: Param<Tensor<B, 2>>,
    qkv: Linear<B>,
    proj: Linear<B>,
    heads: usize,
    window: usize,
}

impl<B: Kernels> WindowAttention<B> {
    fn new(channels: usize, heads: usize, window: usize, init: &mut Init<B>) -> Self {
        let entries = (2 * window - 1).pow(3);
        Self {
            relative_position_bias_table: init.truncated_normal([entries, heads], 0.02),
            qkv: Linear::new(channels, channels * 3, init),
            proj: Linear::new(channels, channels, init),
            heads,
            window,
        }
    }

    /// `[windows, tokens, channels]`, same out. `mask` is `[windows per sample, tokens, tokens]`.
    fn forward(
        &self,
        x: Tensor<B, 3>,
        side: usize,
        mask: Option<Tensor<B, 3>>,
        drop: f64,
        mode: Mode,
    ) -> Tensor<B, 3> {
        let [windows, tokens, channels] = x.dims();
        let head = channels / self.heads;
        let qkv = self
            .qkv
            .forward(x)
            .reshape([windows, tokens, 3, self.heads, head])
            .permute([2, 0, 3, 1, 4]);
        let part = |i: usize| {
            qkv.clone()
                .slice([i..i + 1])
                .reshape([windows, self.heads, tokens, head])
        };
        let (q, k, v) = (part(0), part(1), part(2));
        let scores = (q * (head as f64).powf(-0.5)).matmul(k.swap_dims(2, 3));
        let mut scores = scores + self.bias(side).unsqueeze();
        if let Some(mask) = mask {
            let per_sample = mask.dims()[0];
            let grouped = scores.reshape([windows / per_sample, per_sample, self.heads, tokens, tokens]);
            let mask = mask.reshape([1, per_sample, 1, tokens, tokens]);
            scores = (grouped + mask).reshape([windows, self.heads, tokens, tokens]);
        }
        let weights: Tensor<B, 4> = wrap(B::attention_softmax(raw(scores)));
        let weights = dropout(weights, drop, mode);
        let y = weights.matmul(v).swap_dims(1, 2).reshape([windows, tokens, channels]);
        dropout(self.proj.forward(y), drop, mode)
    }

    /// Bias of each pair of tokens of a window of `side`^3: `[heads, tokens, tokens]`.
    fn bias(&self, side: usize) -> Tensor<B, 3> {
        let tokens = side.pow(3);
        let table = self.relative_position_bias_table.val();
        let index = relative_position_index(side, self.window);
        let index =
            Tensor::<B, 1, Int>::from_data(TensorData::new(index, [tokens * tokens]), &table.device());
        table
            .select(0, index)
            .reshape([tokens, tokens, self.heads])
            .permute([2, 0, 1])
    }
}

/// Row of the bias table for each pair of tokens of a window of `side`^3, when the table was made for windows of
/// `table_window`^3.
///
/// The published network multiplies the depth offset by `3w - 1` where `(2w - 1)^2` would keep the rows apart: different
/// offsets share rows. Weights were trained with it, so it stays.
fn relative_position_index(side: usize, table_window: usize) -> Vec<i32> {
    let w = table_window as i32;
    let side = side as i32;
    let coordinates: Vec<[i32; 3]> = (0..side)
        .flat_map(|d| (0..side).flat_map(move |h| (0..side).map(move |x| [d, h, x])))
        .collect();
    coordinates
        .iter()
        .flat_map(|a| {
            coordinates.iter().map(move |b| {
                let [d, h, x] = [0, 1, 2].map(|axis| a[axis] - b[axis] + w - 1);
                d * (3 * w - 1) + h * (2 * w - 1) + x
            })
        })
        .collect()
}

/// Attention mask of a rolled map `padded` `[d, h, w]`: tokens of one window attend to each other only if they come
/// from the same side of the cut. `[windows, tokens, tokens]`, windows in the order of [`partition`].
fn shift_mask(padded: [usize; 3], window: usize, shift: usize) -> (Vec<f32>, [usize; 3]) {
    let region = |position: usize, size: usize| -> u8 {
        if position < size - window {
            0
        } else if position < size - shift {
            1
        } else {
            2
        }
    };
    let [wd, wh, ww] = padded.map(|side| side / window);
    let tokens = window.pow(3);
    let mut mask = Vec::with_capacity(wd * wh * ww * tokens * tokens);
    for (d, h, w) in (0..wd).flat_map(|d| (0..wh).flat_map(move |h| (0..ww).map(move |w| (d, h, w)))) {
        let mut regions = Vec::with_capacity(tokens);
        for z in 0..window {
            for y in 0..window {
                for x in 0..window {
                    regions.push([
                        region(d * window + z, padded[0]),
                        region(h * window + y, padded[1]),
                        region(w * window + x, padded[2]),
                    ]);
                }
            }
        }
        for a in &regions {
            mask.extend(regions.iter().map(|b| if a == b { 0.0 } else { MASKED }));
        }
    }
    (mask, [wd * wh * ww, tokens, tokens])
}

/// `[batch, d, h, w, channels]` to `[batch * windows, window^3, channels]`.
fn partition<B: Backend>(x: Tensor<B, 5>, window: usize) -> Tensor<B, 3> {
    let [b, d, h, w, c] = x.dims();
    let (nd, nh, nw) = (d / window, h / window, w / window);
    x.reshape([b, nd, window, nh, window, nw, window, c])
        .permute([0, 1, 3, 5, 2, 4, 6, 7])
        .reshape([b * nd * nh * nw, window.pow(3), c])
}

/// The inverse of [`partition`].
fn merge<B: Backend>(x: Tensor<B, 3>, window: usize, shape: [usize; 5]) -> Tensor<B, 5> {
    let [b, d, h, w, c] = shape;
    x.reshape([b, d / window, h / window, w / window, window, window, window, c])
        .permute([0, 1, 4, 2, 5, 3, 6, 7])
        .reshape(shape)
}

/// One transformer block.
#[derive(Module, Debug)]
pub struct SwinBlock<B: Backend> {
    norm1: LayerNorm<B>,
    attn: WindowAttention<B>,
    norm2: LayerNorm<B>,
    mlp: Mlp<B>,
    shifted: bool,
    dropout: f64,
    drop_path: f64,
}

impl<B: Kernels> SwinBlock<B> {
    /// `x` is `[batch, tokens, channels]` of a map `map` `[d, h, w]`, tokens in that order.
    fn forward(&self, x: Tensor<B, 3>, map: [usize; 3], mode: Mode) -> Tensor<B, 3> {
        let [batch, tokens, channels] = x.dims();
        let smallest = map.into_iter().min().unwrap_or(1);
        let window = self.attn.window.min(smallest);
        let shift = if self.shifted && smallest > self.attn.window { window / 2 } else { 0 };
        let [d, h, w] = map;
        let padded = map.map(|side| side.div_ceil(window) * window);
        let [pd, ph, pw] = padded;
        let device = x.device();

        let mut y = self.norm1.forward(x.clone()).reshape([batch, d, h, w, channels]);
        for (axis, (to, from)) in [(pd, d), (ph, h), (pw, w)].into_iter().enumerate() {
            if to > from {
                let mut shape = y.dims();
                shape[axis + 1] = to - from;
                y = Tensor::cat(vec![y, Tensor::zeros(shape, &device)], axis + 1);
            }
        }
        let mask = (shift > 0).then(|| {
            let (values, shape) = shift_mask(padded, window, shift);
            Tensor::from_data(TensorData::new(values, shape), &device)
        });
        if shift > 0 {
            y = roll(y, shift);
        }
        let y = self.attn.forward(partition(y, window), window, mask, self.dropout, mode);
        let mut y = merge(y, window, [batch, pd, ph, pw, channels]);
        if shift > 0 {
            for axis in 0..3 {
                y = roll_axis(y, axis + 1, padded[axis] - shift);
            }
        }
        let y = y
            .slice([0..batch, 0..d, 0..h, 0..w, 0..channels])
            .reshape([batch, tokens, channels]);
        let x = x + drop_path(y, self.drop_path, mode);
        let y = self.mlp.forward(self.norm2.forward(x.clone()), self.dropout, mode);
        x + drop_path(y, self.drop_path, mode)
    }
}

fn roll<B: Backend>(mut x: Tensor<B, 5>, by: usize) -> Tensor<B, 5> {
    for axis in 1..4 {
        x = roll_axis(x, axis, by);
    }
    x
}

/// Moves the first `by` slices of an axis behind the others.
fn roll_axis<B: Backend>(x: Tensor<B, 5>, axis: usize, by: usize) -> Tensor<B, 5> {
    let size = x.dims()[axis];
    let head = x.clone().narrow(axis, 0, by);
    Tensor::cat(vec![x.narrow(axis, by, size - by), head], axis)
}

/// The transformer branch's blocks.
#[derive(Module, Debug)]
pub struct SwinStage<B: Backend> {
    blocks: Vec<SwinBlock<B>>,
}

/// Shape of a [`ConvTrans`] block.
pub struct ConvTransConfig {
    pub channels: usize,
    pub heads: usize,
    pub window: usize,
    pub depth: usize,
    pub dropout: f64,
    pub drop_path: f64,
}

/// Convolutions and attention side by side on the same features, summed.
#[derive(Module, Debug)]
pub struct ConvTrans<B: Backend> {
    conv: ConvBlock<B>,
    trans: SwinStage<B>,
    dropout: f64,
}

impl<B: Kernels> ConvTrans<B> {
    pub fn new(config: &ConvTransConfig, init: &mut Init<B>) -> Self {
        let &ConvTransConfig { channels, heads, window, depth, dropout, drop_path } = config;
        let conv = ConvBlock::new(channels, kernel(false), dropout, init);
        let blocks = (0..depth)
            .map(|i| SwinBlock {
                norm1: LayerNorm::new(channels, init),
                attn: WindowAttention::new(channels, heads, window, init),
                norm2: LayerNorm::new(channels, init),
                mlp: Mlp::new(channels, channels * MLP_RATIO, init),
                shifted: i % 2 == 1,
                dropout,
                drop_path,
            })
            .collect();
        Self { conv, trans: SwinStage { blocks }, dropout }
    }

    pub fn forward(&self, x: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        let [batch, channels, d, h, w] = x.dims();
        let convolved = self.conv.forward(x.clone(), mode);
        let mut tokens = x.reshape([batch, channels, d * h * w]).swap_dims(1, 2);
        tokens = dropout(tokens, self.dropout, mode);
        for block in &self.trans.blocks {
            tokens = block.forward(tokens, [d, h, w], mode);
        }
        convolved + tokens.swap_dims(1, 2).reshape([batch, channels, d, h, w])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_index_collides_as_published() {
        let index = relative_position_index(6, 6);
        assert_eq!(index.len(), 216 * 216);
        // token 0 against itself: offset 5 on each axis
        assert_eq!(index[0], 5 * 17 + 5 * 11 + 5);
        assert_eq!(index.iter().min(), Some(&0));
        assert_eq!(index.iter().max(), Some(&290));
    }

    #[test]
    fn a_smaller_window_reads_the_rows_of_the_same_offsets() {
        let small = relative_position_index(2, 6);
        let large = relative_position_index(6, 6);
        // in the large window token (0,0,1) is 1, in the small one too; their offset to token 0 is the same
        assert_eq!(small[1], large[1]);
        // token (1,1,1): 7 of 8 in the small window, 36 + 6 + 1 of 216 in the large one
        assert_eq!(small[7], large[43]);
    }

    #[test]
    fn the_mask_cuts_only_what_the_roll_joined() {
        let (mask, shape) = shift_mask([12, 12, 12], 6, 3);
        assert_eq!(shape, [8, 216, 216]);
        // first window: all tokens from one region
        assert!(mask[..216 * 216].iter().all(|&v| v == 0.0));
        // last window: eight regions of 27 tokens each
        let free = mask[7 * 216 * 216..].iter().filter(|&&v| v == 0.0).count();
        assert_eq!(free, 8 * 27 * 27);
    }
}
