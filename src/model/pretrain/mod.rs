//! Pretraining PCT-Net on unlabelled scans by Volume Fusion.
//!
//! | file | what it is about |
//! |---|---|
//! | `scans` | which files there are, whose they are, and how one becomes network input |
//! | `body` | the optional crop to the body |
//! | `pipeline` | background threads that turn scans into samples, in bounded memory |
//! | `request` | what is asked for, and what follows from it |
//! | `run` | the run: steps, validation, checkpoints, the model at the end |
//! | `curves` | what the run writes down on the way |
//!
//! Sample number i of a run is a pure function of (files, seed, i): the order of scans, the crops, the blend. A run is
//! therefore described by its step, its weights and the optimiser's moments alone, and can be interrupted anywhere.
//!
//! # Learning rate
//! The publication learns with Adam at 1e-3 from four patches a step. Another number of patches scales the rate in
//! proportion (the linear rule): [`PretrainOptions::linear_rate`]. Patches of one step that are accumulated over several
//! passes count all; each pass normalises its own patches.

mod body;
mod curves;
mod pipeline;
mod request;
mod run;
mod scans;

pub use pipeline::{Layout, PipelineStats, measure_pipeline};
pub use request::{PretrainOptions, PretrainRequest};
pub use run::{PretrainEvent, PretrainReport, pretrain, run_folder};
pub use scans::{ScanFile, ScanNote, find_scans, split_by_patient};
