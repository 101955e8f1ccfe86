//! Weights: the published names, safetensors files, PyTorch checkpoints.

mod checkpoint;
mod file;
mod state;

pub use checkpoint::read_checkpoint;
pub use file::{parse, serialise, sha256_hex};
pub(crate) use state::to_f32;
pub use state::{HostTensor, LoadReport, Reshaped, State, export, import};
