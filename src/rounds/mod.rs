//! Rounds of annotation and training: which case is next, and which model version serves.

pub mod fine_tune;
pub mod registry;
pub mod scoring;
pub mod simulate;
pub mod strategy;
