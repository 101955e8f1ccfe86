//! What a model says of images that nobody labelled yet: how sure it is and where not, how much of which structure it sees,
//! and what the image looks like to it.
//!
//! | file | what it is about |
//! |---|---|
//! | `scores` | what is kept of an image |
//! | `measure` | from class probabilities, slice by slice, to scores |
//! | `top` | the mean of the largest values of a stream |
//! | `places` | the slices and the box to look at |
//! | `kept` | scores in the store, and which images have none |
//!
//! The formulas of single voxels are with the strategies that go by them ([`super::strategy`]).

mod kept;
mod measure;
mod places;
mod scores;
mod top;

pub use kept::{How, Kept, keep, kept, model_members, pending};
pub use measure::{TOP_SHARE, measure};
pub use scores::{ClassScores, ImageScores, Place, Region, Uncertainty};
