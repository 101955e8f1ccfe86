//! What a job is asked to do and what it answers: the payloads that server and worker exchange
//! through the job table.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ids::ImageId;
use crate::imaging::scribbles::Options;
pub use crate::imaging::scribbles::{Method, Options as ScribblesOptions};
pub use crate::model::{Click, Passes};

/// Where the worker finds the image of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// An image of the project.
    Study {
        /// Its id.
        id: ImageId,
    },
    /// A staged upload or a file of a session.
    File {
        /// Where it lies on this machine.
        path: PathBuf,
    },
    /// A patch of noise: whether a version answers at all, before it serves.
    WarmUp,
}

/// What a person drew for an inference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interaction {
    /// Points for a model that takes clicks.
    Clicks {
        /// All points so far.
        clicks: Vec<Click>,
        /// The one structure that the result is to show, as value 1; all of them when absent.
        only: Option<String>,
    },
    /// Points inside and outside of a structure that the client does not name; the result shows the one that is nearest to
    /// the first point in what the model says without points, as value 1.
    Unnamed {
        /// Voxels `[z, y, x]` inside of it; not empty.
        foreground: Vec<[usize; 3]>,
        /// Voxels `[z, y, x]` outside of it.
        background: Vec<[usize; 3]>,
    },
    /// Strokes; the result shows one structure, as value 1.
    Scribbles(Scribbles),
}

impl Interaction {
    /// The name of the one structure that the result shows, if it is one and known.
    pub fn only(&self) -> Option<&str> {
        match self {
            Self::Clicks { only, .. } => only.as_deref(),
            Self::Unnamed { .. } => None,
            Self::Scribbles(scribbles) => Some(&scribbles.label),
        }
    }

    /// Whether the result shows one structure.
    pub fn is_single(&self) -> bool {
        self.only().is_some() || matches!(self, Self::Unnamed { .. })
    }
}

/// Strokes to refine a structure with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scribbles {
    /// Label file on the grid of the image that holds the strokes, and the segments there are.
    pub file: PathBuf,
    /// Names and values in that file, as the client says; a file that names its segments itself is believed instead.
    pub segments: Vec<(String, u16)>,
    /// The structure.
    pub label: String,
    /// Box in voxels `[i, i, j, j, k, k]` of the file, both ends in it, in any order; nothing outside of it is changed.
    pub roi: Option<[i64; 6]>,
    /// How strokes become a mask.
    pub options: Options,
    /// Model whose probabilities are refined.
    pub prior: Option<String>,
}

impl Scribbles {
    /// Name of the segment that holds the foreground strokes.
    pub const FOREGROUND: &str = "foreground_scribbles";
    /// Name of the segment that holds the background strokes.
    pub const BACKGROUND: &str = "background_scribbles";
}

/// The `result_extension` of whoever wants the numbers only.
pub const NO_FILE: &str = ".json";

/// Voxel type of a result file, by its name in numpy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResultType {
    /// Unsigned 8 bit.
    Uint8,
    /// Unsigned 16 bit.
    Uint16,
    /// Signed 16 bit.
    Int16,
    /// Signed 32 bit.
    Int32,
    /// IEEE 754 single.
    Float32,
}

/// Segment one image now; a person waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferRequest {
    /// Name of the model.
    pub model: String,
    /// Version of the model; the live one when absent.
    pub version: Option<i64>,
    /// What to segment.
    pub image: ImageSource,
    /// Suffix of the result file with its dot; `.json` for no file.
    pub result_extension: String,
    /// Voxel type the client wishes; the smallest unsigned one when absent.
    pub result_dtype: Option<ResultType>,
    /// Whether the result file is compressed.
    pub result_compress: bool,
    /// Keep only the largest connected component of each class.
    pub largest_cc: bool,
    /// Also keep the result as a label under this tag.
    pub save_label: Option<String>,
    /// Write the model's own label values instead of 1..N.
    pub restore_label_idx: bool,
    /// What a person drew.
    #[serde(default)]
    pub interaction: Option<Interaction>,
}

/// What an [`InferRequest`] gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferResult {
    /// Label file in the scratch directory; absent when the client wants numbers only.
    pub file: Option<PathBuf>,
    /// `label_names`, `latencies`, `centroids`, `model_version` and the like, for the client.
    pub params: Value,
    /// Why the image cannot be used; then there is nothing else.
    #[serde(default)]
    pub refused: Option<String>,
}

/// Which images of the project a batch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchImages {
    /// Every image.
    All,
    /// Images with an accepted label.
    Labeled,
    /// Images without one.
    Unlabeled,
}

/// Segment many images in the background and keep the results as labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchInferRequest {
    /// Name of the model.
    pub model: String,
    /// Version of the model; the live one when absent.
    pub version: Option<i64>,
    /// Which images.
    pub images: BatchImages,
    /// Tag under which the results are kept.
    pub label_tag: String,
    /// At most so many images; all when absent.
    pub max_batch_size: Option<u32>,
    /// Keep only the largest connected component of each class.
    pub largest_cc: bool,
}

/// Fine-tune a model on the accepted labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainRequest {
    /// Name of the model.
    pub model: String,
    /// Name of the run.
    pub name: String,
    /// Passes over the training cases.
    pub max_epochs: u32,
    /// Optimiser steps; derived from `max_epochs` when absent.
    pub steps: Option<u32>,
    /// Share of the cases held out for validation, 0 to 1.
    pub val_split: f64,
    /// Start from trained weights instead of from random ones.
    pub pretrained: bool,
    /// Continue the live version, instead of starting from the version that the first round started from; as the settings
    /// say when absent.
    #[serde(default)]
    pub warm_start: Option<bool>,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Learning rate at the start; the recipe's when absent.
    pub learning_rate: Option<f64>,
    /// Patches per step; the recipe's when absent.
    pub batch: Option<u16>,
    /// Validations without improvement before the run ends; negative means never.
    pub early_stop_patience: i64,
}

impl TrainRequest {
    /// What is done when nothing else is asked for.
    pub fn of(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            name: "train_01".to_owned(),
            max_epochs: 50,
            steps: None,
            val_split: 0.2,
            pretrained: true,
            warm_start: None,
            seed: 0,
            learning_rate: None,
            batch: None,
            early_stop_patience: -1,
        }
    }
}

/// Compute a score for every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreRequest {
    /// Name of the method.
    pub method: String,
    /// The model that is asked, by methods that ask one; the first of the server when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// How each version of the model is asked.
    #[serde(default)]
    pub passes: Passes,
    /// Versions of the model that are asked together, the live one and those before it; 1 when absent.
    #[serde(default)]
    pub versions: Option<usize>,
}
