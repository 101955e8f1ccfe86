//! Architecture of one PCT-Net.

use serde::{Deserialize, Serialize};

/// Architecture of a PCT-Net, with the key names of the MIS-FM publication's configuration.
///
/// All triples are `[depth, height, width]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PctNetConfig {
    /// Patch that the network was built for. It decides the effective attention windows (and so the shape of the
    /// relative-position tables); other patches are accepted afterwards.
    pub input_size: [usize; 3],
    /// 0, 1 or 2: how strongly the slices are further apart than the pixels. Depth is divided by 4, 2 or 1 before
    /// attention; height and width always by 4.
    pub resolution_mode: u8,
    /// Channels of the five resolution levels.
    pub feature_chns: [usize; 5],
    /// Attention heads of the three coarse levels.
    pub num_heads: [usize; 3],
    /// Attention window side of the three coarse levels, in voxels of that level.
    pub window_sizes: [usize; 3],
    /// Transformer blocks in each attention stage of the three coarse levels.
    pub depths: [usize; 3],
    /// Classes, background included.
    pub class_num: usize,
    /// Input channels (1 for CT).
    pub in_chns: usize,
    /// Dropout of the five levels.
    pub dropout: [f64; 5],
    /// Probability that a residual branch is dropped in training.
    #[serde(default = "default_drop_path")]
    pub drop_path: f64,
}

fn default_drop_path() -> f64 {
    0.2
}

/// A configuration that no network can be built from.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `resolution_mode` is not 0, 1 or 2.
    #[error("resolution_mode is {0}; it must be 0, 1 or 2")]
    Mode(u8),
    /// A size, count or width is zero or out of range.
    #[error("{name} holds {value}; it must be between {low} and {high}")]
    Range {
        /// The key.
        name: &'static str,
        /// What it holds.
        value: usize,
        /// Smallest allowed value.
        low: usize,
        /// Largest allowed value.
        high: usize,
    },
    /// The heads do not divide the channels.
    #[error("{heads} attention heads do not divide the {channels} channels of level {level}")]
    Heads {
        /// Resolution level, 2 to 4.
        level: usize,
        /// Its heads.
        heads: usize,
        /// Its channels.
        channels: usize,
    },
    /// A patch side does not divide by the total stride.
    #[error(
        "patch {patch:?} [depth, height, width] does not divide by the network's stride {stride:?}"
    )]
    Patch {
        /// The patch asked for.
        patch: [usize; 3],
        /// What each side must divide by.
        stride: [usize; 3],
    },
    /// A probability is not in 0..1.
    #[error("{name} is {value}; it must be at least 0 and below 1")]
    Probability {
        /// The key.
        name: &'static str,
        /// What it holds.
        value: f64,
    },
}

/// Upper bound of a channel count, far above any published PCT-Net; it keeps a hostile file from allocating the machine.
const MAX_CHANNELS: usize = 4096;

impl PctNetConfig {
    /// The published full size: 24 to 512 channels, 44 M active parameters.
    pub fn pct_net(class_num: usize, input_size: [usize; 3], resolution_mode: u8) -> Self {
        Self::sized(
            [24, 48, 128, 256, 512],
            class_num,
            input_size,
            resolution_mode,
        )
    }

    /// Patch that `pct_net_s` learns on when it starts from scratch, `[depth, height, width]` in voxels. Small on
    /// purpose: in a small patch the structure it is centred on fills a share that the loss notices, and a CPU makes many
    /// steps. With 32 x 64 x 64 the same time on a CPU leaves half of the structures unlearned.
    pub const SMALL_PATCH: [usize; 3] = [16, 32, 32];

    /// The published small size: 12 to 192 channels, for sites without a GPU and for the demo. Nothing is dropped out: at
    /// this size, and with the few steps that a CPU has time for, learning too little is the risk.
    pub fn pct_net_s(class_num: usize, input_size: [usize; 3], resolution_mode: u8) -> Self {
        Self {
            dropout: [0.0; 5],
            drop_path: 0.0,
            ..Self::sized(
                [12, 24, 48, 96, 192],
                class_num,
                input_size,
                resolution_mode,
            )
        }
    }

    fn sized(
        feature_chns: [usize; 5],
        class_num: usize,
        input_size: [usize; 3],
        resolution_mode: u8,
    ) -> Self {
        Self {
            input_size,
            resolution_mode,
            feature_chns,
            num_heads: [4, 8, 16],
            window_sizes: [6, 6, 6],
            depths: [2, 2, 2],
            class_num,
            in_chns: 1,
            dropout: [0.0, 0.0, 0.2, 0.2, 0.2],
            drop_path: default_drop_path(),
        }
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.resolution_mode > 2 {
            return Err(ConfigError::Mode(self.resolution_mode));
        }
        let range = |name, value, low, high| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::Range {
                    name,
                    value,
                    low,
                    high,
                })
            }
        };
        for channels in self.feature_chns {
            range("feature_chns", channels, 1, MAX_CHANNELS)?;
        }
        for side in self.input_size {
            range("input_size", side, 1, 4096)?;
        }
        for side in self.window_sizes {
            range("window_sizes", side, 2, 16)?;
        }
        for depth in self.depths {
            range("depths", depth, 1, 64)?;
        }
        range("class_num", self.class_num, 2, 1024)?;
        range("in_chns", self.in_chns, 1, 64)?;
        for (i, heads) in self.num_heads.into_iter().enumerate() {
            range("num_heads", heads, 1, 256)?;
            let channels = self.feature_chns[i + 2];
            if !channels.is_multiple_of(heads) {
                return Err(ConfigError::Heads {
                    level: i + 2,
                    heads,
                    channels,
                });
            }
        }
        for value in self.dropout.into_iter().chain([self.drop_path]) {
            if !(0.0..1.0).contains(&value) {
                return Err(ConfigError::Probability {
                    name: "dropout or drop_path",
                    value,
                });
            }
        }
        self.check_patch(self.input_size)
    }

    /// What each side of a patch must divide by.
    pub fn stride(&self) -> [usize; 3] {
        self.embedding_scale().map(|scale| scale * 4)
    }

    /// Whether the network accepts patches of this size.
    pub fn check_patch(&self, patch: [usize; 3]) -> Result<(), ConfigError> {
        let stride = self.stride();
        let fits = patch
            .iter()
            .zip(stride)
            .all(|(&side, s)| side > 0 && side.is_multiple_of(s));
        if fits {
            Ok(())
        } else {
            Err(ConfigError::Patch { patch, stride })
        }
    }

    /// Input voxels per voxel of the first attention level.
    pub(crate) fn embedding_scale(&self) -> [usize; 3] {
        match self.resolution_mode {
            0 => [4, 4, 4],
            1 => [2, 4, 4],
            _ => [1, 4, 4],
        }
    }

    /// Whether the two finest levels use in-plane kernels and pools only, finest first.
    pub(crate) fn in_plane(&self) -> [bool; 2] {
        match self.resolution_mode {
            0 => [false, false],
            1 => [true, false],
            _ => [true, true],
        }
    }

    /// Attention window side of the three coarse levels for `input_size`: a level whose smallest side is not larger
    /// than the window has one window of that side.
    pub(crate) fn effective_windows(&self) -> [usize; 3] {
        let scale = self.embedding_scale();
        [0, 1, 2].map(|level| {
            let smallest = (0..3)
                .map(|axis| (self.input_size[axis] / scale[axis]) >> level)
                .min()
                .unwrap_or(1);
            self.window_sizes[level].min(smallest)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_are_valid() {
        for mode in 0..3 {
            PctNetConfig::pct_net(8, [64, 128, 128], mode)
                .validate()
                .unwrap();
            PctNetConfig::pct_net_s(2, [32, 64, 64], mode)
                .validate()
                .unwrap();
        }
    }

    #[test]
    fn a_patch_must_divide_by_the_stride() {
        let config = PctNetConfig::pct_net(8, [64, 128, 128], 1);
        assert_eq!(config.stride(), [8, 16, 16]);
        assert!(config.check_patch([8, 16, 48]).is_ok());
        assert!(config.check_patch([8, 24, 16]).is_err());
        assert!(config.check_patch([0, 16, 16]).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        let good = PctNetConfig::pct_net(8, [64, 128, 128], 1);
        let bad = [
            PctNetConfig {
                resolution_mode: 3,
                ..good.clone()
            },
            PctNetConfig {
                feature_chns: [0, 48, 128, 256, 512],
                ..good.clone()
            },
            PctNetConfig {
                num_heads: [3, 8, 16],
                ..good.clone()
            },
            PctNetConfig {
                class_num: 1,
                ..good.clone()
            },
            PctNetConfig {
                dropout: [0.0, 0.0, 1.0, 0.0, 0.0],
                ..good.clone()
            },
            PctNetConfig {
                input_size: [60, 128, 128],
                ..good
            },
        ];
        for config in bad {
            assert!(config.validate().is_err(), "{config:?}");
        }
    }

    #[test]
    fn small_levels_shrink_their_window() {
        let config = PctNetConfig::pct_net(5, [32, 64, 64], 1);
        assert_eq!(config.effective_windows(), [6, 6, 4]);
    }
}
