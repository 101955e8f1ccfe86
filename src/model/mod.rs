//! The network: PCT-Net, its weights, inference, pretraining and training. The only module that names burn.

mod background;
pub mod bench;
mod clicks;
pub mod convert;
mod engine;
mod error;
mod infer;
#[doc(hidden)] // public for tests/bench/kernels.rs alone
pub mod kernels;
mod loss;
mod manifest;
#[cfg(test)]
mod parity;
#[cfg(all(test, any(feature = "cuda", feature = "vulkan")))]
mod parity_gpu;
pub mod pct_net;
mod plan;
mod precision;
pub mod pretrain;
mod schema;
mod train;
pub mod volume_fusion;
pub mod weights;

pub use clicks::{Click, ClickGuidance};
pub use convert::create_untrained;
pub use engine::cache::keep_kernels_in;
pub use engine::{DeviceChoice, DeviceInfo, check_device, probe_device};
pub use error::ModelError;
pub use infer::{Explored, Explorer, OpenScan, Passes, ProbabilitySlice, Segmentation, Segmenter};
pub use manifest::{
    ClassFrequency, DataSummary, Lineage, Manifest, ModelDescription, Preprocessing, write_model,
};
pub use pct_net::PctNetConfig;
pub use plan::{Given, Spacing, Survey};
pub use precision::{Precision, PrecisionChoice};
pub use schema::{LabelSchema, MAX_LABELS, ONE_SIDED, SchemaError};
pub use train::{
    Augment, CaseNote, CheckpointPlan, EndedEarly, Schedule, TrainCase, TrainEvent, TrainOptions,
    TrainReport, TrainRequest, measure_loading, train,
};
