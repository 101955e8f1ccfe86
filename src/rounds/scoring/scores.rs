//! What is kept of an image that a model was asked about.

use serde::{Deserialize, Serialize};

use crate::model::Passes;

/// What a model version said of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageScores {
    /// Mean, then standard deviation, of each channel of the network's coarse features.
    pub features: Vec<f32>,
    /// How sure the model is; none of one that has not been trained.
    pub uncertainty: Option<Uncertainty>,
}

/// How sure a model is of an image. Scores of voxels are averaged over the largest ones, see
/// [`TOP_SHARE`](super::TOP_SHARE).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Uncertainty {
    /// How the model was asked.
    pub passes: Passes,
    /// Answers to each window, over all versions that were asked.
    pub answers: usize,
    /// Entropy, nats.
    pub entropy: f64,
    /// Nearness of the two likeliest classes, 0 to 1.
    pub margin: f64,
    /// Disagreement of the answers, nats.
    pub bald: f64,
    /// Per structure, in order.
    pub classes: Vec<ClassScores>,
    /// The slices with the most entropy, the worst first, not next to each other.
    pub slices: Vec<Place>,
    /// The box with the most entropy.
    pub region: Option<Region>,
}

/// How sure a model is of one structure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassScores {
    /// Sum of the structure's probability over the voxels.
    pub volume_ml: f64,
    /// Entropy times the structure's probability, nats.
    pub entropy: f64,
}

/// A slice to look at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Number along the file's axis `axis`, from 0.
    pub index: usize,
    /// The file's axis that runs along the body: 0, 1 or 2 for i, j or k.
    pub axis: usize,
    /// Where in the slice most of its entropy is: x, y, z of the patient.
    pub centre_lps_mm: [f64; 3],
    /// Mean entropy over the voxels of the slice that are not air, nats.
    pub entropy: f64,
}

/// A box to look at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// First voxel i, j, k in the file's order.
    pub first_ijk: [usize; 3],
    /// Last voxel i, j, k, part of the box.
    pub last_ijk: [usize; 3],
    /// Smallest x, y, z of the box in the patient.
    pub low_lps_mm: [f64; 3],
    /// Largest x, y, z.
    pub high_lps_mm: [f64; 3],
    /// Mean entropy of its voxels, nats.
    pub entropy: f64,
}
