//! Fine-tuning PCT-Net on labelled cases.
//!
//! Half Dice, half cross entropy with deep supervision (`model/loss`), Adam, polynomial decay, patches centred
//! on annotated structures two times in three. Everything random is a pure function of (seed, step): two runs with the same
//! cases give the same weights on one CPU. The best weights on the validation cases are kept.

mod augment;
pub(super) mod checkpoint;
mod data;
mod optimiser;
mod run;

pub use data::TrainCase;
pub use optimiser::Schedule;
pub(super) use optimiser::{AdamOf, adam};
pub(super) use run::scalar;
pub use run::{CheckpointPlan, TrainEvent, TrainOptions, TrainReport, TrainRequest, train};
