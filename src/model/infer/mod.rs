//! A trained network over a whole scan.
//!
//! scan -> LPS order -> model spacing -> HU window -> overlapping patches -> blended logits -> labels on the exact grid
//! of the scan. The result depends on where voxels are in the patient, not on how the file orders them.
//!
//! A scan that a person clicks on stays open: only windows that see a new click are asked again.

mod band;
mod blend;
mod explore;
mod mirrored;
mod open;
mod passes;
mod prepared;
mod segment;
mod windows;

pub use explore::{Explored, Explorer, ProbabilitySlice};
pub(super) use mirrored::Mirrored;
pub use open::OpenScan;
pub use passes::Passes;
pub(super) use prepared::prepare;
pub(super) use segment::{Forward, cpu_precision, ready, segment};
pub use segment::{Segmentation, Segmenter};
