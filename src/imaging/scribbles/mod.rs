//! Strokes painted over a scan decide what is around them.
//!
//! The strokes tell how bright the structure and its surroundings are ([`Method`]); a model's probabilities, where there are
//! any, are the odds before the strokes; and of all ways to divide the region the cheapest is taken, in which neighbours of
//! like intensity stay together (`min_cut`): G. Wang and others, Interactive Medical Image Segmentation Using Deep Learning
//! With Image-Specific Fine Tuning, IEEE TMI 37, 2018, equations 5 and 7. Painted voxels are what was painted, always.

mod likelihood;
mod min_cut;
mod refine;

pub use likelihood::Method;
pub use refine::{Mark, Options, Region, ScribblesError, refine};
