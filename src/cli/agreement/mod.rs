//! How label maps agree with references, case by case and over cases: what `fewlabel evaluate` prints and reports show.

mod score;
mod summary;

pub use score::{Evaluation, Files, Structures, predicted};
pub use summary::{COMPARED, Measure, PredictionSummary, Spread, StructureSummary, Summary};

/// Surfaces agree up to this distance where nothing else is said.
pub const TOLERANCE_MM: f64 = 2.0;
