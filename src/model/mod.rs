//! The network: PCT-Net, its weights, inference and training. The only module that names burn.

mod error;
pub mod kernels;
mod loss;
mod manifest;
#[cfg(test)]
mod parity;
pub mod pct_net;
mod schema;
mod train;
pub mod weights;

pub use error::ModelError;
pub use manifest::{Lineage, Manifest, ModelDescription, Preprocessing, write_model};
pub use schema::{LabelSchema, MAX_LABELS, SchemaError};
