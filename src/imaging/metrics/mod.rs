//! Agreement of label maps on one grid: overlap, surfaces and volumes of a structure.
//!
//! A structure that is in neither map, or in one of them alone, has no surface distance; what each
//! measure is then is said at [`Agreement`], and nothing is silently 0 or 1.

mod agreement;
mod overlap;
mod surface;

pub use agreement::{Agreement, Presence, agreement};
pub use overlap::{dice, dice_per_class, mean};
