//! The whole network: embedding, pyramid of convolution and attention, prediction head.

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::attention::{ConvTrans, ConvTransConfig};
use super::blocks::{ConvBlock, DownSample, PreConv, UpCat, kernel};
use super::config::{ConfigError, PctNetConfig};
use super::layers::{Conv3d, Init, Mode};
use crate::model::kernels::Kernels;
use crate::model::precision::Precision;

/// From the image to the first attention level, with the two finest feature maps beside.
#[derive(Module, Debug)]
struct Embedding<B: Backend> {
    proj: Conv3d<B>,
    conv0: ConvBlock<B>,
    conv1: ConvBlock<B>,
    down1: DownSample<B>,
    down2: DownSample<B>,
}

/// The three coarse levels.
#[derive(Module, Debug)]
struct Pyramid<B: Backend> {
    down3: DownSample<B>,
    down4: DownSample<B>,
    up3: UpCat<B>,
    up4: UpCat<B>,
    convtrans_e2: ConvTrans<B>,
    convtrans_d2: ConvTrans<B>,
    convtrans_e3: ConvTrans<B>,
    convtrans_d3: ConvTrans<B>,
    convtrans_e4: ConvTrans<B>,
    out_conv2: PreConv<B>,
    out_conv3: PreConv<B>,
}

/// Back to the image's resolution.
#[derive(Module, Debug)]
struct Head<B: Backend> {
    up1: UpCat<B>,
    up2: UpCat<B>,
    conv0: ConvBlock<B>,
    conv1: ConvBlock<B>,
    out_conv0: PreConv<B>,
    out_conv1: PreConv<B>,
}

/// PCT-Net.
#[derive(Module, Debug)]
pub struct PctNet<B: Backend> {
    embedding: Embedding<B>,
    pyramid: Pyramid<B>,
    head: Head<B>,
}

impl<B: Kernels> PctNet<B> {
    /// A network with freshly drawn parameters; the same seed gives the same ones.
    ///
    /// # Errors
    /// The configuration is not valid.
    pub fn new(config: &PctNetConfig, seed: u64, device: &B::Device) -> Result<Self, ConfigError> {
        config.validate()?;
        let init = &mut Init::<B>::new(seed, device);
        let [c0, c1, c2, c3, c4] = config.feature_chns;
        let [fine, middle] = config.in_plane();
        let windows = config.effective_windows();
        let classes = config.class_num;
        let stage = |level: usize, init: &mut Init<B>| {
            let config = ConvTransConfig {
                channels: config.feature_chns[level + 2],
                heads: config.num_heads[level],
                window: windows[level],
                depth: config.depths[level],
                dropout: config.dropout[level + 2],
                drop_path: config.drop_path,
            };
            ConvTrans::new(&config, init)
        };
        Ok(Self {
            embedding: Embedding {
                proj: Conv3d::new(config.in_chns, c0, kernel(fine), init),
                conv0: ConvBlock::new(c0, kernel(fine), config.dropout[0], init),
                conv1: ConvBlock::new(c1, kernel(middle), config.dropout[1], init),
                down1: DownSample::new(c0, c1, !fine, kernel(middle), init),
                down2: DownSample::new(c1, c2, !middle, kernel(false), init),
            },
            pyramid: Pyramid {
                down3: DownSample::new(c2, c3, true, kernel(false), init),
                down4: DownSample::new(c3, c4, true, kernel(false), init),
                up3: UpCat::new(c2, c3, true, kernel(false), init),
                up4: UpCat::new(c3, c4, true, kernel(false), init),
                convtrans_e2: stage(0, init),
                convtrans_d2: stage(0, init),
                convtrans_e3: stage(1, init),
                convtrans_d3: stage(1, init),
                convtrans_e4: stage(2, init),
                out_conv2: PreConv::new(c2, classes, [1, 1, 1], init),
                out_conv3: PreConv::new(c3, classes, [1, 1, 1], init),
            },
            head: Head {
                up1: UpCat::new(c0, c1, !fine, kernel(fine), init),
                up2: UpCat::new(c1, c2, !middle, kernel(middle), init),
                conv0: ConvBlock::new(c0, kernel(fine), config.dropout[0], init),
                conv1: ConvBlock::new(c1, kernel(middle), config.dropout[1], init),
                out_conv0: PreConv::new(c0, classes, [1, 1, 1], init),
                out_conv1: PreConv::new(c1, classes, [1, 1, 1], init),
            },
        })
    }

    /// Logits of the four scales, finest first.
    ///
    /// # Shapes
    /// - `x` `[batch, in_chns, depth, height, width]`, sides divisible by [`PctNetConfig::stride`]
    /// - output 0 `[batch, class_num, depth, height, width]`; the others at the network's next three resolutions
    pub fn forward(&self, x: Tensor<B, 5>, mode: Mode) -> [Tensor<B, 5>; 4] {
        let walk = &mut OnTensors(mode);
        let (x0, x1, d3, d2) = self.features(walk, x);
        let out3 = walk.pre_conv(d3, &self.pyramid.out_conv3);
        let out2 = walk.pre_conv(d2.clone(), &self.pyramid.out_conv2);
        let d1 = self.up_to_1(walk, x1, d2);
        let out1 = walk.pre_conv(d1.clone(), &self.head.out_conv1);
        [self.up_to_0(walk, x0, d1), out1, out2, out3]
    }

    /// [`PctNet::forward`] with activations of `precision`, on a backend whose [`Kernels`] compute in the type of the
    /// activations (the GPU's): parameters, statistics and gradients of parameters stay float32, as do the logits.
    pub fn forward_in(
        &self,
        x: Tensor<B, 5>,
        mode: Mode,
        precision: Precision,
    ) -> [Tensor<B, 5>; 4] {
        let logits = self.forward(x.cast(precision.dtype()), mode);
        logits.map(|scale| scale.cast(DType::F32))
    }

    /// The finest scale of [`PctNet::forward_in`].
    pub fn forward_finest_in(
        &self,
        x: Tensor<B, 5>,
        mode: Mode,
        precision: Precision,
    ) -> Tensor<B, 5> {
        self.forward_finest(x.cast(precision.dtype()), mode)
            .cast(DType::F32)
    }

    /// The decoded features of the level with an eighth of the width, `[batch, channels, d, h, w]` with
    /// `feature_chns[3]` channels: coarse enough to tell what kind of body a patch shows.
    pub fn coarse_features(&self, x: Tensor<B, 5>) -> Tensor<B, 5> {
        self.coarse(&mut OnTensors(Mode::Eval), x).3
    }

    /// Logits of the finest scale only, `[batch, class_num, depth, height, width]`.
    pub fn forward_finest(&self, x: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        self.walk_finest(&mut OnTensors(mode), x)
    }

    /// From the image to the logits of the finest scale.
    pub(super) fn walk_finest<W: Walk<B>>(&self, walk: &mut W, x: W::Map) -> W::Map {
        let (x0, x1, _, d2) = self.features(walk, x);
        let d1 = self.up_to_1(walk, x1, d2);
        self.up_to_0(walk, x0, d1)
    }

    /// The two fine encoder maps and the two decoded coarse maps (level 3, level 2).
    #[allow(clippy::type_complexity)] // four feature maps of one pass
    fn features<W: Walk<B>>(&self, walk: &mut W, x: W::Map) -> (W::Map, W::Map, W::Map, W::Map) {
        let (x0, x1, x2, d3) = self.coarse(walk, x);
        let d2 = walk.up(x2, d3.clone(), &self.pyramid.up3);
        let d2 = walk.stage(d2, &self.pyramid.convtrans_d2);
        (x0, x1, d3, d2)
    }

    /// The encoder maps of the levels 0, 1 and 2, and the decoded map of level 3.
    #[allow(clippy::type_complexity)] // four feature maps of one pass
    fn coarse<W: Walk<B>>(&self, walk: &mut W, x: W::Map) -> (W::Map, W::Map, W::Map, W::Map) {
        let embedding = &self.embedding;
        let x0 = walk.conv(x, &embedding.proj);
        let x0 = walk.block(x0, &embedding.conv0);
        let x1 = walk.down(x0.clone(), &embedding.down1);
        let x1 = walk.block(x1, &embedding.conv1);
        let x2 = walk.down(x1.clone(), &embedding.down2);

        let pyramid = &self.pyramid;
        let x2 = walk.stage(x2, &pyramid.convtrans_e2);
        let x3 = walk.down(x2.clone(), &pyramid.down3);
        let x3 = walk.stage(x3, &pyramid.convtrans_e3);
        let x4 = walk.down(x3.clone(), &pyramid.down4);
        let x4 = walk.stage(x4, &pyramid.convtrans_e4);
        let d3 = walk.up(x3, x4, &pyramid.up4);
        (x0, x1, x2, walk.stage(d3, &pyramid.convtrans_d3))
    }

    fn up_to_1<W: Walk<B>>(&self, walk: &mut W, x1: W::Map, d2: W::Map) -> W::Map {
        let d1 = walk.up(x1, d2, &self.head.up2);
        walk.block(d1, &self.head.conv1)
    }

    fn up_to_0<W: Walk<B>>(&self, walk: &mut W, x0: W::Map, d1: W::Map) -> W::Map {
        let d0 = walk.up(x0, d1, &self.head.up1);
        let d0 = walk.block(d0, &self.head.conv0);
        walk.pre_conv(d0, &self.head.out_conv0)
    }
}

/// What goes through the network from layer to layer: computes it on tensors, or writes it down as a plan. The order of
/// the layers stands in [`PctNet`] alone.
pub(super) trait Walk<B: Kernels> {
    /// A feature map.
    type Map: Clone;
    fn conv(&mut self, x: Self::Map, layer: &Conv3d<B>) -> Self::Map;
    fn pre_conv(&mut self, x: Self::Map, layer: &PreConv<B>) -> Self::Map;
    fn block(&mut self, x: Self::Map, layer: &ConvBlock<B>) -> Self::Map;
    fn down(&mut self, x: Self::Map, layer: &DownSample<B>) -> Self::Map;
    fn up(&mut self, fine: Self::Map, coarse: Self::Map, layer: &UpCat<B>) -> Self::Map;
    fn stage(&mut self, x: Self::Map, layer: &ConvTrans<B>) -> Self::Map;
}

/// Computes at once; the way of training, and of every backend.
struct OnTensors<'a>(Mode<'a>);

impl<B: Kernels> Walk<B> for OnTensors<'_> {
    type Map = Tensor<B, 5>;

    fn conv(&mut self, x: Self::Map, layer: &Conv3d<B>) -> Self::Map {
        layer.forward(x)
    }

    fn pre_conv(&mut self, x: Self::Map, layer: &PreConv<B>) -> Self::Map {
        layer.forward(x, self.0)
    }

    fn block(&mut self, x: Self::Map, layer: &ConvBlock<B>) -> Self::Map {
        layer.forward(x, self.0)
    }

    fn down(&mut self, x: Self::Map, layer: &DownSample<B>) -> Self::Map {
        layer.forward(x, self.0)
    }

    fn up(&mut self, fine: Self::Map, coarse: Self::Map, layer: &UpCat<B>) -> Self::Map {
        layer.forward(fine, coarse, self.0)
    }

    fn stage(&mut self, x: Self::Map, layer: &ConvTrans<B>) -> Self::Map {
        layer.forward(x, self.0)
    }
}
