//! A trained network over a whole scan.
//!
//! scan -> LPS order -> model spacing -> HU window -> overlapping patches -> blended logits -> labels on the exact grid
//! of the scan. The result depends on where voxels are in the patient, not on how the file orders them.

mod band;
mod blend;
mod explore;
mod mirrored;
mod passes;
mod segment;
mod windows;

pub use explore::{Explored, Explorer, ProbabilitySlice};
pub(super) use mirrored::Mirrored;
pub use passes::Passes;
pub(super) use segment::{Forward, cpu_precision, prepare, ready, segment};
pub use segment::{Segmentation, Segmenter};
