//! Windowed self-attention over feature maps, with the published network's quirks where weights depend on them.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::blocks::{ConvBlock, kernel};
use super::layers::{Init, LayerNorm, Linear, Mlp, Mode, drop_path, dropout};
use crate::model::kernels::{AttentionLayout, Kernels, NO_ROW, RowIndex, raw, wrap};

/// Width of the two-layer perceptron against the block's channels.
const MLP_RATIO: usize = 4;

/// Attention inside windows of `window`^3 tokens with a learned bias per relative position.
#[derive(Module, Debug)]
pub struct WindowAttention<B: Backend> {
    /// `[(2 * window - 1)^3, heads]`.
    relative_position_bias_table: Param<Tensor<B, 2>>,
    pub(super) qkv: Linear<B>,
    pub(super) proj: Linear<B>,
    pub(super) heads: usize,
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

    /// `[windows, tokens, channels]`, same out, for windows of `side`^3 tokens.
    ///
    /// The published code also drops attention weights in training; here they are never stored, so the dropout of the
    /// projection, of the tokens and of the perceptron must do.
    fn forward(
        &self,
        x: Tensor<B, 3>,
        side: usize,
        regions: Option<Arc<[u8]>>,
        drop: f64,
        mode: Mode,
    ) -> Tensor<B, 3> {
        let layout = AttentionLayout {
            heads: self.heads,
            regions,
        };
        let y = B::window_attention(raw(self.qkv.forward(x)), raw(self.bias(side)), &layout);
        dropout(self.proj.forward(wrap(y)), drop, mode)
    }

    /// Bias of each pair of tokens of a window of `side`^3: `[heads, tokens, tokens]`.
    pub(super) fn bias(&self, side: usize) -> Tensor<B, 3> {
        let tokens = side.pow(3);
        let table = self.relative_position_bias_table.val();
        let index = relative_position_index(side, self.window);
        let index = Tensor::<B, 1, Int>::from_data(
            TensorData::new(index, [tokens * tokens]),
            &table.device(),
        );
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

/// How a map `[d, h, w]` is cut into windows of `window`^3 tokens, after padding with zeros to whole windows and rolling
/// by `shift`.
pub(super) struct Windows {
    /// Token of the map for each token of each window, windows first.
    pub index: RowIndex,
    /// Which side of the roll's cut each token of each window comes from; `None` without a roll. Tokens that are
    /// neighbours only because the map was rolled must not attend to each other.
    pub regions: Option<Arc<[u8]>>,
    /// Windows of one map.
    pub count: usize,
    /// Side of a window.
    pub side: usize,
}

impl Windows {
    fn new(map: [usize; 3], window: usize, shift: usize) -> Self {
        let [d, h, w] = map;
        let padded = map.map(|side| side.div_ceil(window) * window);
        let [nd, nh, nw] = padded.map(|side| side / window);
        let count = nd * nh * nw;
        let tokens = window.pow(3);
        let (mut from, mut regions) = (Vec::with_capacity(count * tokens), Vec::new());
        for cell in 0..count {
            let corner = [cell / (nh * nw), cell / nw % nh, cell % nw].map(|i| i * window);
            for token in 0..tokens {
                let inside = [
                    token / (window * window),
                    token / window % window,
                    token % window,
                ];
                let rolled = [0, 1, 2].map(|axis| corner[axis] + inside[axis]);
                let [z, y, x] = [0, 1, 2].map(|axis| (rolled[axis] + shift) % padded[axis]);
                let there = z < d && y < h && x < w;
                from.push(if there {
                    ((z * h + y) * w + x) as u32
                } else {
                    NO_ROW
                });
                if shift > 0 {
                    let region =
                        [0, 1, 2].map(|axis| region(rolled[axis], padded[axis], window, shift));
                    regions.push(region[0] * 9 + region[1] * 3 + region[2]);
                }
            }
        }
        let regions = (shift > 0).then(|| regions.into());
        Self {
            index: RowIndex::new(from, d * h * w),
            regions,
            count,
            side: window,
        }
    }
}

/// Side of the cut along one axis: before the last window, its first part, its part that was rolled in.
fn region(position: usize, size: usize, window: usize, shift: usize) -> u8 {
    if position < size - window {
        0
    } else if position < size - shift {
        1
    } else {
        2
    }
}

/// One transformer block.
#[derive(Module, Debug)]
pub struct SwinBlock<B: Backend> {
    pub(super) norm1: LayerNorm<B>,
    pub(super) attn: WindowAttention<B>,
    pub(super) norm2: LayerNorm<B>,
    pub(super) mlp: Mlp<B>,
    shifted: bool,
    dropout: f64,
    drop_path: f64,
}

impl<B: Kernels> SwinBlock<B> {
    /// How the block cuts a map `[d, h, w]`.
    pub(super) fn windows(&self, map: [usize; 3]) -> Windows {
        let smallest = map.into_iter().min().unwrap_or(1);
        let window = self.attn.window.min(smallest);
        let shift = if self.shifted && smallest > self.attn.window {
            window / 2
        } else {
            0
        };
        Windows::new(map, window, shift)
    }

    /// `x` is `[batch, tokens, channels]` of a map `map` `[d, h, w]`, tokens in that order.
    fn forward(&self, x: Tensor<B, 3>, map: [usize; 3], mode: Mode) -> Tensor<B, 3> {
        let [batch, _, channels] = x.dims();
        let windows = self.windows(map);
        let window = windows.side;

        let y = B::gather_rows(raw(self.norm1.forward(x.clone())), &windows.index);
        let y = wrap::<B, 3>(y).reshape([batch * windows.count, window.pow(3), channels]);
        let y = self
            .attn
            .forward(y, window, windows.regions, self.dropout, mode);
        let y = y.reshape([batch, windows.count * window.pow(3), channels]);
        let y: Tensor<B, 3> = wrap(B::gather_rows(raw(y), &windows.index.inverse()));
        let x = x + drop_path(y, self.drop_path, mode);
        let y = self
            .mlp
            .forward(self.norm2.forward(x.clone()), self.dropout, mode);
        x + drop_path(y, self.drop_path, mode)
    }
}

/// The transformer branch's blocks.
#[derive(Module, Debug)]
pub struct SwinStage<B: Backend> {
    pub(super) blocks: Vec<SwinBlock<B>>,
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
    pub(super) conv: ConvBlock<B>,
    pub(super) trans: SwinStage<B>,
    dropout: f64,
}

impl<B: Kernels> ConvTrans<B> {
    pub fn new(config: &ConvTransConfig, init: &mut Init<B>) -> Self {
        let &ConvTransConfig {
            channels,
            heads,
            window,
            depth,
            dropout,
            drop_path,
        } = config;
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
        Self {
            conv,
            trans: SwinStage { blocks },
            dropout,
        }
    }

    pub fn forward(&self, x: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        let [batch, channels, d, h, w] = x.dims();
        let convolved = self.conv.forward(x.clone(), mode);
        let rows = x.reshape([batch, channels, d * h * w]);
        let mut tokens: Tensor<B, 3> = wrap(B::swap_rows(raw(rows)));
        tokens = dropout(tokens, self.dropout, mode);
        for block in &self.trans.blocks {
            tokens = block.forward(tokens, [d, h, w], mode);
        }
        let attended: Tensor<B, 3> = wrap(B::swap_rows(raw(tokens)));
        convolved + attended.reshape([batch, channels, d, h, w])
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
    fn the_roll_cuts_the_last_windows() {
        let windows = Windows::new([12, 12, 12], 6, 3);
        let regions = windows.regions.unwrap();
        assert_eq!((windows.count, regions.len()), (8, 8 * 216));
        // first window: all tokens from one region; last window: eight regions of 27 tokens each
        assert!(regions[..216].iter().all(|r| *r == regions[0]));
        let last = &regions[7 * 216..];
        assert!(
            (0..27).all(|region| [0, 27].contains(&last.iter().filter(|r| **r == region).count()))
        );
        // the first token of the first window is the one at (3, 3, 3)
        assert_eq!(windows.index.from[0], (3 * 12 + 3) * 12 + 3);
    }

    #[test]
    fn every_token_is_in_one_window() {
        for (map, window, shift) in [([8, 9, 7], 6, 3), ([4, 4, 4], 4, 0), ([5, 13, 6], 5, 0)] {
            let windows = Windows::new(map, window, shift);
            let mut taken: Vec<u32> = windows
                .index
                .from
                .iter()
                .copied()
                .filter(|&t| t != NO_ROW)
                .collect();
            taken.sort_unstable();
            assert!(
                taken
                    .iter()
                    .copied()
                    .eq(0..map.iter().product::<usize>() as u32)
            );
            assert!(windows.index.to.iter().all(|&t| t != NO_ROW));
        }
    }
}
