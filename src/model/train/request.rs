//! What is asked of a training run, and what it says.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use super::augment::Augment;
use super::data::{CaseNote, TrainCase};
use super::samples::Sampler;
use super::store::CaseStore;
use crate::model::background::Background;
use crate::model::engine::DeviceChoice;
use crate::model::error::ModelError;
use crate::model::manifest::{Manifest, ModelDescription};
use crate::model::weights::LoadReport;

/// What to train, on what, and for how long.
#[derive(Debug, Clone)]
pub struct TrainRequest {
    /// Cases to learn from.
    pub cases: Vec<TrainCase>,
    /// Cases to choose the best weights on; may be empty, then the last weights are kept.
    pub validation: Vec<TrainCase>,
    /// What the result is; its network, patch and preprocessing are used as they are.
    pub model: ModelDescription,
    /// Weights to start from; what fits is taken, the rest starts afresh.
    pub init: Option<PathBuf>,
    /// Model directory to write; must not exist. Prepared cases lie in a hidden folder beside it while training runs.
    pub out: PathBuf,
    /// How.
    pub options: TrainOptions,
    /// Where and when to save the run, so that it can go on after a kill.
    pub checkpoint: Option<CheckpointPlan>,
}

/// Saving a run while it goes.
#[derive(Debug, Clone)]
pub struct CheckpointPlan {
    /// The file; removed when the run has ended, unless `keep`.
    pub path: PathBuf,
    /// Steps between two savings.
    pub every: usize,
    /// The share of the time that savings may take; those that would take more are left out. None: any.
    pub share: Option<f64>,
    /// The file stays: the caller removes it. A run that is told to stop is saved then, instead of being finished with the
    /// best weights so far, and ends with [`ModelError::Stopped`].
    pub keep: bool,
    /// Go on from the file, if it is there.
    pub resume: bool,
}

/// How to train.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct TrainOptions {
    /// Optimiser steps.
    pub steps: usize,
    /// Patches per step.
    pub batch: usize,
    /// Learning rate at the start.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises to its start.
    pub warmup: usize,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f32,
    /// Largest Euclidean norm of all gradients together; longer ones are shortened. 0: any.
    pub clip_norm: f64,
    /// Steps at the start in which the encoder's weights stay as they are.
    pub freeze_encoder: usize,
    /// Decay of the moving average of the weights, which is then what is validated and kept; in the first steps it is
    /// smaller, `(1 + step) / (10 + step)`.
    pub ema: Option<f64>,
    /// Share of patches around an annotated structure.
    pub focus: f64,
    /// How patches are changed.
    pub augment: Augment,
    /// Steps between validations; 0 validates at the end only.
    pub validate_every: usize,
    /// Validations without a better result after which the run ends; 0: never.
    pub patience: usize,
    /// Whether validation averages over exchanged sides.
    pub flips: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads that make patches; 0: a quarter of the cores.
    #[serde(skip)]
    pub loaders: usize,
    /// Where to compute.
    #[serde(skip)]
    pub device: DeviceChoice,
}

impl TrainOptions {
    /// The published fine-tuning recipe (Adam 1e-3, weight decay 1e-5, batch 2) with a short schedule. Weights that
    /// have not been trained move faster, 4e-3: at 1e-3 the small structures need several times as many steps before
    /// they are found at all.
    ///
    /// Gradients are clipped at norm 12, which ordinary steps stay below: it is a guard against single bad patches.
    pub fn starting_from(trained: bool) -> Self {
        Self {
            steps: 1000,
            batch: 2,
            learning_rate: if trained { 1e-3 } else { 4e-3 },
            warmup: 0,
            weight_decay: 1e-5,
            clip_norm: 12.0,
            freeze_encoder: 0,
            ema: None,
            focus: 0.67,
            augment: Augment::Light,
            validate_every: 0,
            patience: 0,
            flips: false,
            seed: 1,
            loaders: 0,
            device: DeviceChoice::Auto,
        }
    }

    pub(super) fn loader_threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match self.loaders {
            0 => (cores / 4).max(1),
            given => given,
        }
    }
}

/// What the caller hears while training runs. Breaking stops after the current step and keeps the best weights so far.
pub enum TrainEvent<'a> {
    /// Something is to be said about a case.
    Case(&'a CaseNote),
    /// The run goes on after so many steps of an earlier one.
    Resumed(usize),
    /// A step was made.
    Step {
        /// Steps made.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// Loss of this step.
        loss: f32,
        /// Learning rate of this step.
        learning_rate: f64,
        /// Steps a second, validation included.
        rate_hz: f64,
        /// Share of the time so far that went into waiting for patches.
        waiting: f64,
    },
    /// A step gave no finite numbers: an earlier state was put back, and the learning rate is lower from here on.
    RolledBack {
        /// The step that was left out, counted from 1.
        step: usize,
        /// Steps behind the weights that were put back.
        back_to: usize,
        /// What was not finite, and on which cases.
        reason: &'a str,
        /// The learning rates of the rest of the run are multiplied by this.
        rate_scale: f64,
    },
    /// The weights were validated.
    Validated {
        /// Steps made.
        step: usize,
        /// Dice per structure (label value 1 first), mean over cases; `None` where no case defines it.
        dice: &'a [Option<f64>],
        /// Mean over structures.
        mean: f64,
        /// Whether these are the best weights so far.
        best: bool,
    },
    /// A case is prepared, a window of a validation case is done, or a patch is waited for: a good moment for other work.
    Between,
}

/// How training went.
#[derive(Debug)]
pub struct TrainReport {
    /// The model written.
    pub manifest: Manifest,
    /// What was taken from the weights it started from.
    pub init: Option<LoadReport>,
    /// Steps made.
    pub steps: usize,
    /// Mean loss of the last tenth of the steps.
    pub loss: f32,
    /// Validation Dice per structure of the weights that were kept.
    pub dice: Vec<Option<f64>>,
    /// Mean of `dice`.
    pub mean_dice: Option<f64>,
    /// Why it ended before its last step, if it did.
    pub ended_early: Option<EndedEarly>,
    /// What there was to say about cases.
    pub notes: Vec<CaseNote>,
    /// Patches a second that the loader threads can make.
    pub samples_per_s: f64,
    /// Share of the time of all steps that went into waiting for patches.
    pub waiting: f64,
}

/// Why a run ended before its last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedEarly {
    /// The caller asked.
    Stopped,
    /// The validations did not get better for as long as was waited.
    Patience,
}

impl TrainRequest {
    /// Prepares the cases; `notes` gets what there is to say about them.
    pub(super) fn prepare(
        &self,
        notes: &mut Vec<CaseNote>,
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<CaseStore, ModelError> {
        let mut folder = std::ffi::OsString::from(".");
        folder.push(self.out.file_name().unwrap_or_default());
        folder.push(".cases");
        let model = &self.model;
        CaseStore::prepare(
            &self.out.with_file_name(folder),
            &self.cases,
            model.network.class_num,
            &model.preprocessing,
            self.options.seed,
            &mut |note| {
                let flow = match &note {
                    Some(note) => on(TrainEvent::Case(note)),
                    None => on(TrainEvent::Between),
                };
                notes.extend(note);
                match flow {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(ModelError::Stopped),
                }
            },
        )
    }

    /// Starts the threads that make patches, from patch number `first` on.
    pub(super) fn pipeline(&self, store: CaseStore, first: u64) -> Background<Sampler> {
        let sampler = Sampler {
            store,
            size: self.model.patch,
            hu_window: self.model.preprocessing.hu_window,
            focus: self.options.focus,
            augment: self.options.augment,
            mirror: self.model.labels.mirrored(),
            seed: self.options.seed,
        };
        let threads = self.options.loader_threads();
        let ahead = (2 * self.options.batch).max(threads) as u64;
        Background::start(sampler, threads, ahead, first)
    }
}

/// Makes `count` patches as fast as the loader threads can, without training. Returns patches a second, all of the time but
/// the preparation counted.
///
/// # Errors
/// No case can be used.
pub fn measure_loading(
    request: &TrainRequest,
    count: u64,
    on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
) -> Result<f64, ModelError> {
    let store = request.prepare(&mut Vec::new(), on)?;
    let start = Instant::now();
    let mut pipeline = request.pipeline(store, 0);
    for _ in 0..count {
        if pipeline.next(&mut || on(TrainEvent::Between))?.is_break() {
            return Err(ModelError::Stopped);
        }
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
