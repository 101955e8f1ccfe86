//! How a job ends.

use serde_json::Value;

use crate::imaging::ImagingError;

/// Why a job ended without a result.
pub enum Failure {
    /// It was stopped, or its lease was lost.
    Stopped,
    /// The image cannot be used.
    Image(ImagingError),
    /// What was asked for cannot be done with this image, and why: the client's matter.
    Refused(String),
    /// What to tell the client.
    Error(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.to_string())
    }
}

/// What a job gives.
pub type Outcome = Result<Value, Failure>;
