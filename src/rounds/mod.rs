//! Rounds of annotation and training: which case is next and who has it, what a round learns from, whether its result
//! replaces the live version, and which version serves.

pub mod ahead;
pub mod conclude;
pub mod fine_tune;
pub mod gate;
pub mod leases;
mod publish;
pub mod registry;
pub mod round;
pub mod schedule;
pub mod scoring;
pub mod settings;
pub mod simulate;
pub mod strategy;
