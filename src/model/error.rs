//! What can go wrong with a model.

use std::path::PathBuf;

use super::pct_net::ConfigError;
use crate::imaging::ImagingError;

/// An error of the model layer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Clicks that this model does not take, or outside of the scan.
    #[error("{0}")]
    Clicks(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A model directory's manifest or weights are not usable.
    #[error("model {path}: {reason}")]
    BadModel {
        /// The model directory or a file in it.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// An architecture that cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A label schema that cannot be used.
    #[error(transparent)]
    Schema(#[from] super::schema::SchemaError),
    /// An image or label could not be used.
    #[error(transparent)]
    Imaging(#[from] ImagingError),
    /// The device that was asked for is not there.
    #[error(
        "device {device}: {reason}. Use --device cpu, or --device auto to take the CPU when there is no GPU"
    )]
    Device {
        /// As asked for.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The device failed while it computed.
    #[error(
        "device {device} failed: {reason}. Close other programs that use it, train with a smaller --batch or --patch, or take --device cpu"
    )]
    Compute {
        /// Its name.
        device: String,
        /// What it says.
        reason: String,
    },
    /// The device does not compute in the chosen precision.
    #[error("{0}")]
    Precision(String),
    /// The data cannot be trained on.
    #[error("cannot train: {0}")]
    Data(String),
    /// What was asked for does not fit the model or the data.
    #[error("{0}")]
    Request(String),
    /// Loss or gradients stopped being numbers.
    #[error(
        "training diverged at step {step}: {reason}; nothing was published. Lower the learning rate or check the labels"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// What was not finite, and on what.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Stopped,
}

impl ModelError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn bad(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::BadModel {
            path: path.into(),
            reason: reason.to_string(),
        }
    }
}
