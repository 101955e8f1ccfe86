//! A trained network over a whole scan.
//!
//! scan -> LPS order -> model spacing -> HU window -> overlapping patches -> blended logits -> labels on the exact grid
//! of the scan. The result depends on where voxels are in the patient, not on how the file orders them.
//!
//! On the CPU the patches go through a plan one after the other and are blended by the host (`sliding`, `blend`); on a GPU
//! the whole scan lies on the device and only the labels come back (`on_device`). Windows, weights and air are the same.
//! A scan that a person clicks on stays open: only windows that see a new click are asked again.

mod band;
mod blend;
mod explore;
mod mirrored;
mod network;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod on_device;
mod open;
mod passes;
mod prepared;
mod segment;
mod sliding;
mod windows;

pub use explore::{Explored, Explorer, ProbabilitySlice};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(super) use network::gpu_precision;
pub(super) use network::{Network, cpu_precision, ready};
pub use open::OpenScan;
pub use passes::Passes;
pub(super) use prepared::prepare;
pub(super) use segment::segment;
pub use segment::{Segmentation, Segmenter};
