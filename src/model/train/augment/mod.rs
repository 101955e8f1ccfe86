//! Random changes of a training patch. A patch's changes are a pure function of its random stream, and each change draws
//! from a stream of its own.

mod intensity;
mod recipe;
mod spatial;

pub use recipe::{Augment, change, exchange};
pub use spatial::Spatial;
