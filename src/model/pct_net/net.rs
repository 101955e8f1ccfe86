//! The whole network: embedding, pyramid of convolution and attention, prediction head.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use super::attention::{ConvTrans, ConvTransConfig};
use super::blocks::{ConvBlock, DownSample, PreConv, UpCat, kernel};
use super::config::{ConfigError, PctNetConfig};
use super::layers::{Conv3d, Init, Mode};
use crate::model::kernels::Kernels;

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
        let (x0, x1, d3, d2) = self.features(x, mode);
        let out3 = self.pyramid.out_conv3.forward(d3, mode);
        let out2 = self.pyramid.out_conv2.forward(d2.clone(), mode);
        let d1 = self.up_to_1(x1, d2, mode);
        let out1 = self.head.out_conv1.forward(d1.clone(), mode);
        [self.up_to_0(x0, d1, mode), out1, out2, out3]
    }

    /// Logits of the finest scale only, `[batch, class_num, depth, height, width]`.
    pub fn forward_finest(&self, x: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        let (x0, x1, _, d2) = self.features(x, mode);
        let d1 = self.up_to_1(x1, d2, mode);
        self.up_to_0(x0, d1, mode)
    }

    /// The two fine encoder maps and the two decoded coarse maps (level 3, level 2).
    #[allow(clippy::type_complexity)] // four feature maps of one pass
    fn features(
        &self,
        x: Tensor<B, 5>,
        mode: Mode,
    ) -> (Tensor<B, 5>, Tensor<B, 5>, Tensor<B, 5>, Tensor<B, 5>) {
        let embedding = &self.embedding;
        let x0 = embedding.conv0.forward(embedding.proj.forward(x), mode);
        let x1 = embedding
            .conv1
            .forward(embedding.down1.forward(x0.clone(), mode), mode);
        let x2 = embedding.down2.forward(x1.clone(), mode);

        let pyramid = &self.pyramid;
        let x2 = pyramid.convtrans_e2.forward(x2, mode);
        let x3 = pyramid
            .convtrans_e3
            .forward(pyramid.down3.forward(x2.clone(), mode), mode);
        let x4 = pyramid
            .convtrans_e4
            .forward(pyramid.down4.forward(x3.clone(), mode), mode);
        let d3 = pyramid
            .convtrans_d3
            .forward(pyramid.up4.forward(x3, x4, mode), mode);
        let d2 = pyramid
            .convtrans_d2
            .forward(pyramid.up3.forward(x2, d3.clone(), mode), mode);
        (x0, x1, d3, d2)
    }

    fn up_to_1(&self, x1: Tensor<B, 5>, d2: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        self.head
            .conv1
            .forward(self.head.up2.forward(x1, d2, mode), mode)
    }

    fn up_to_0(&self, x0: Tensor<B, 5>, d1: Tensor<B, 5>, mode: Mode) -> Tensor<B, 5> {
        let d0 = self
            .head
            .conv0
            .forward(self.head.up1.forward(x0, d1, mode), mode);
        self.head.out_conv0.forward(d0, mode)
    }
}
