//! PCT-Net: a pyramid of convolutions and windowed attention for 3D segmentation.
//!
//! Source: Wang et al., "MIS-FM: 3D Medical Image Segmentation using Foundation Models Pretrained on a Large-Scale
//! Unannotated Dataset", arXiv 2306.16925, and its published code. Only the embedding and the head of the configured
//! resolution mode exist here (the published checkpoints hold all three).

mod attention;
mod blocks;
mod config;
mod layers;
mod net;
mod plan;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "cuda-sources"))]
mod ready;
mod record;

pub use config::{ConfigError, PctNetConfig};
pub use layers::{DropoutStream, Mode};
pub use net::PctNet;
pub use plan::{Plan, StepTime, precision as precision_on_cpu};
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "cuda-sources"))]
pub use ready::ReadyNet;
