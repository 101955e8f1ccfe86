//! Fine-tuning PCT-Net on labelled cases.
//!
//! Half Dice, half cross entropy with deep supervision (`model/loss`), Adam, polynomial decay. The best weights on the
//! validation cases are kept.
//!
//! | file | what it is about |
//! |---|---|
//! | `data` | a labelled case as it comes from the disk, and what may be wrong with it |
//! | `store` | cases on the model's grid, on disk while training runs; where patches are centred |
//! | `samples`, `augment` | a patch, and what is done to it, in one interpolation |
//! | `passes` | how patches go through the network: precision, how many at once |
//! | `clicks` | where a person would click, for a model that learns to take clicks |
//! | `gradients` | clipping, the frozen encoder, the running average of the weights |
//! | `run`, `validate` | the steps, the validations, the way back from numbers that are not finite |
//! | `checkpoint`, `kept` | a run between two steps |
//! | `request` | what is asked for, and what is said |
//!
//! Everything random is a pure function of (seed, step) or (seed, number of the patch): two runs with the same cases give the
//! same weights on one CPU. Patches are made by threads of their own ([`super::background`]); memory follows patch and batch.

mod augment;
mod batch;
pub(super) mod checkpoint;
mod clicks;
mod data;
mod gradients;
mod kept;
mod optimiser;
mod passes;
mod request;
mod run;
mod samples;
mod store;
mod validate;

pub use augment::Augment;
pub(super) use data::load;
pub use data::{CaseNote, TrainCase};
pub use optimiser::Schedule;
pub(super) use optimiser::{AdamOf, adam};
pub(super) use passes::{Passes, scalar};
pub use request::{
    CheckpointPlan, EndedEarly, TrainEvent, TrainOptions, TrainReport, TrainRequest,
    measure_loading,
};
pub use run::train;
