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
//! `generator` puts them together, on the host or for a device that makes the samples.
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
mod generator;
mod intensity;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use generator::{Fused, Generator, Piece};

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
