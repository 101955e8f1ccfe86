//! Volume Fusion: samples for pretraining without labels.
//!
//! Two patches are cut from unlabelled scans, each resized, flipped and changed in contrast on its own. They are blended
//! voxel by voxel, `X = a * P1 + (1 - a) * P2` with `a` in `{0, 1/K, ..., 1}`, and the network learns to name `a * K` of
//! every voxel: class 0 is pure `P2`, class K pure `P1`. Encoder and decoder both learn (MIS-FM, arXiv 2306.16925; Wang
//! and others, IEEE TIP 34, 2025).
//!
//! | file | what it draws |
//! |---|---|
//! | `crop` | where a patch is cut, how it is resized and flipped |
//! | `intensity` | percentile contrast and gamma of a patch, inversion of the pair |
//! | `fuse` | the map of classes, and the blend |
//!
//! A sample is a pure function of the scans, the seed and its index, so samples may be made in any order, on any number
//! of threads, and again after an interruption.
//!
//! # Intensity
//! The publication pretrains on [0, 1] and fine-tunes on [-1, 1]. Here both lie in [-1, 1]: a scan's HU window is mapped
//! to [-1, 1] as for inference, the patch is stretched to [0, 1] as published, and the network is given `2 x - 1`.
//! Inversion is then a change of sign. The HU window and spacing of pretraining stand in the model's manifest, and
//! training that starts from the model takes them from there.

mod crop;
mod fuse;
mod intensity;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::imaging::Volume;
use crate::model::kernels::{Cut, FusionJob};
use crate::rng::Rng;

/// Which voxels of a sample are blended with which weight, and from how many scans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// A regular grid of blocks over two patches of one scan; seven blocks in ten are blended (IEEE TIP 2025).
    Blocks,
    /// Ten to forty boxes that overlap, over patches of two scans (arXiv 2306.16925).
    Boxes,
}

impl std::str::FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "blocks" => Ok(Self::Blocks),
            "boxes" => Ok(Self::Boxes),
            _ => Err(format!("{text:?} is not a scheme; use blocks or boxes")),
        }
    }
}

/// What a sample looks like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FusionOptions {
    /// How patches are blended.
    pub scheme: Scheme,
    /// K + 1, from 2 to 256; the publication has 5.
    pub classes: usize,
    /// Sides `[z, y, x]` of a sample in voxels.
    pub patch: [usize; 3],
}

/// One sample, voxels `[z, y, x]` of the patch.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Network input in [-1, 1].
    pub input: Vec<f32>,
    /// Class of each voxel, 0 to K.
    pub label: Vec<u8>,
}

/// One of the two patches of a sample.
#[derive(Debug)]
pub enum Piece {
    /// In [0, 1].
    Made(Vec<f32>),
    /// Left to the device.
    Cut(Cut),
}

/// A sample as it leaves the host.
#[derive(Debug)]
pub enum Fused {
    /// Complete.
    Made(Sample),
    /// The device makes its input.
    Drawn(Box<FusionJob>),
}

impl Fused {
    /// Class of each voxel, 0 to K.
    pub fn label(&self) -> &[u8] {
        match self {
            Self::Made(sample) => &sample.label,
            Self::Drawn(job) => &job.classes,
        }
    }
}

/// Makes samples.
#[derive(Debug, Clone)]
pub struct Generator {
    options: FusionOptions,
    rng: Rng,
}

impl Generator {
    /// A generator whose samples depend on `seed` and their index alone.
    pub fn new(options: FusionOptions, seed: u64) -> Self {
        Self {
            options,
            rng: Rng::new(seed).named("volume fusion"),
        }
    }

    /// Patch `P1` of sample `index`, in [0, 1]. `scan` is in [-1, 1]; what is not a number counts as -1.
    pub fn foreground(&self, scan: &Volume<f32>, index: u64) -> Vec<f32> {
        self.cut(scan, self.rng.stream(index).named("foreground"))
    }

    /// Patch `P2` of sample `index`, in [0, 1].
    pub fn background(&self, scan: &Volume<f32>, index: u64) -> Vec<f32> {
        self.cut(scan, self.rng.stream(index).named("background"))
    }

    fn cut(&self, scan: &Volume<f32>, mut rng: Rng) -> Vec<f32> {
        let place = crop::draw(scan.geometry.shape(), self.options.patch, &mut rng);
        let mut patch = crop::cut(scan, &place);
        intensity::contrast(&mut patch, &mut rng);
        intensity::gamma(&mut patch, &mut rng);
        patch
    }

    /// One of the patches of sample `index`; with `on_device` it is only drawn.
    pub fn piece(
        &self,
        scan: &Volume<f32>,
        index: u64,
        foreground: bool,
        on_device: bool,
    ) -> Piece {
        match (foreground, on_device) {
            (true, false) => return Piece::Made(self.foreground(scan, index)),
            (false, false) => return Piece::Made(self.background(scan, index)),
            _ => {}
        }
        let name = if foreground {
            "foreground"
        } else {
            "background"
        };
        let rng = &mut self.rng.stream(index).named(name);
        let place = crop::draw(scan.geometry.shape(), self.options.patch, rng);
        let (shape, values, taps) = crop::take(scan, place);
        Piece::Cut(Cut {
            shape,
            values,
            taps,
            percents: intensity::draw_percents(rng),
            gamma: intensity::draw_gamma(rng),
        })
    }

    /// Sample `index` from its two pieces, both of which were made or both of which were cut.
    pub fn join(&self, index: u64, foreground: Piece, background: Piece) -> Option<Fused> {
        match (foreground, background) {
            (Piece::Made(p1), Piece::Made(p2)) => Some(Fused::Made(self.fuse(index, p1, p2))),
            (Piece::Cut(p1), Piece::Cut(p2)) => {
                let stream = self.rng.stream(index);
                Some(Fused::Drawn(Box::new(FusionJob {
                    size: self.options.patch,
                    cuts: [p1, p2],
                    inverted: intensity::draw_inversion(&mut stream.named("inversion")),
                    classes: fuse::classes(&self.options, &mut stream.named("fusion")),
                    highest: self.options.classes - 1,
                })))
            }
            _ => None,
        }
    }

    /// Sample `index` from its two patches.
    pub fn fuse(&self, index: u64, mut foreground: Vec<f32>, mut background: Vec<f32>) -> Sample {
        let stream = self.rng.stream(index);
        let inverted = intensity::draw_inversion(&mut stream.named("inversion"));
        for patch in [&mut foreground, &mut background] {
            intensity::to_network_range(patch, inverted);
        }
        let label = fuse::classes(&self.options, &mut stream.named("fusion"));
        let input = fuse::blend(&foreground, &background, &label, self.options.classes - 1);
        Sample { input, label }
    }
}
