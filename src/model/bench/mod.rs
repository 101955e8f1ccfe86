//! How fast a device computes the network, and how far that is from what the device could do at most.

mod layers;
mod machine;
mod measure;

pub use layers::{Layers, measure_layers};
pub use machine::{Machine, measure_machine};
pub use measure::{Bench, Measured, Run, Work, first_inference};
