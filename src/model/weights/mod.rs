//! Weights: the published names, safetensors files, PyTorch checkpoints.

mod checkpoint;
mod file;
mod state;

pub use checkpoint::read_checkpoint;
pub(crate) use file::{Notes, parse_notes, serialise_with};
pub use file::{parse, serialise, sha256_hex};
pub use state::{HostTensor, LoadReport, Reshaped, State, export, import};
pub(crate) use state::{fit_inputs, is_encoder, is_head, published_name, to_f32};
