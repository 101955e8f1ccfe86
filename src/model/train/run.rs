//! The training run.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::augment;
use super::checkpoint::{self, Checkpoint};
use super::data::{PreparedCase, TrainCase, ValidationCase, load, prepare_all};
use super::optimiser::{AdamOf, Schedule, adam};
use crate::imaging::metrics;
use crate::model::engine::{DeviceChoice, Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::infer::{Forward, NetworkOn, segment};
use crate::model::kernels::{Kernels, pages::KeepPages};
use crate::model::loss::{Target, deep_supervised};
use crate::model::manifest::{Manifest, ModelDescription, write_model};
use crate::model::pct_net::{DropoutStream, Mode, PctNet};
use crate::model::weights::{HostTensor, LoadReport, State, export, import, is_head};
use crate::rng::Rng;

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
    /// Model directory to write; must not exist.
    pub out: PathBuf,
    /// How.
    pub options: TrainOptions,
    /// Where and when to save the run, so that it can go on after a kill.
    pub checkpoint: Option<CheckpointPlan>,
}

/// Saving a run while it goes.
#[derive(Debug, Clone)]
pub struct CheckpointPlan {
    /// The file; removed when the run has ended.
    pub path: PathBuf,
    /// Steps between two savings.
    pub every: usize,
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
    /// L2 penalty, added to the gradient.
    pub weight_decay: f32,
    /// Share of patches centred on an annotated structure.
    pub focus: f64,
    /// Steps between validations; 0 validates at the end only.
    pub validate_every: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Where to compute.
    #[serde(skip)]
    pub device: DeviceChoice,
}

impl TrainOptions {
    /// The published fine-tuning recipe (Adam 1e-3, weight decay 1e-5, batch 2) with a short schedule. Weights that
    /// have not been trained move faster, 4e-3: at 1e-3 the small structures need several times as many steps before
    /// they are found at all.
    pub fn starting_from(trained: bool) -> Self {
        Self {
            steps: 1000,
            batch: 2,
            learning_rate: if trained { 1e-3 } else { 4e-3 },
            weight_decay: 1e-5,
            focus: 0.67,
            validate_every: 0,
            seed: 1,
            device: DeviceChoice::Auto,
        }
    }
}

/// What the caller hears while training runs. Breaking stops after the current step and keeps the best weights so far.
pub enum TrainEvent<'a> {
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
    /// A window of a validation case is done: a good moment for other work.
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
    /// Whether the caller stopped it early.
    pub stopped: bool,
}

/// Trains and writes a model directory.
///
/// # Errors
/// No case, a case that cannot be used, a loss that is not finite, a device that is not there. Nothing is written then.
pub fn train(
    request: &TrainRequest,
    on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
) -> Result<TrainReport, ModelError> {
    if request.cases.is_empty() {
        return Err(ModelError::Data(
            "there is no labelled case to learn from; submit at least one".into(),
        ));
    }
    let model = &request.model;
    model.network.validate()?;
    model.network.check_patch(model.patch)?;
    let classes = model.network.class_num;
    let seed = request.options.seed;
    let cases = prepare_all(&request.cases, classes, &model.preprocessing, seed)?;
    let validation: Vec<ValidationCase> = request
        .validation
        .iter()
        .map(|case| load(case, classes))
        .collect::<Result<_, _>>()?;
    let init = match &request.init {
        None => None,
        Some(dir) => {
            let manifest = Manifest::read(dir)?;
            let mut state = manifest.read_weights(dir)?;
            if manifest.labels != model.labels {
                // Even where their number is the same, the old outputs mean other structures.
                state.retain(|name, _| !is_head(name));
            }
            Some((state, manifest))
        }
    };
    let engine = Engine::open(request.options.device)?;
    let _pages = KeepPages::new();
    on_engine!(engine, |B, device| Trainer::<B>::new(
        request, cases, validation, init, device
    )?
    .run(on))
}

struct Trainer<'a, B: Kernels> {
    request: &'a TrainRequest,
    cases: Vec<PreparedCase>,
    validation: Vec<ValidationCase>,
    mirror: Option<Vec<u8>>,
    net: PctNet<Autodiff<B>>,
    report: Option<LoadReport>,
    parent_sha256: Option<String>,
    device: B::Device,
    best: Option<Best>,
}

/// The best weights so far.
struct Best {
    state: State,
    dice: Vec<Option<f64>>,
    mean: f64,
    step: usize,
}

/// Prefix of the best weights in a checkpoint.
const BEST: &str = "best/";

impl Best {
    fn put_into(&self, checkpoint: &mut Checkpoint) -> Result<(), ModelError> {
        // As bits, because a number that is read from text may differ in its last one.
        let dice: Vec<Option<u64>> = self.dice.iter().map(|d| d.map(f64::to_bits)).collect();
        let notes = (dice, self.mean.to_bits(), self.step);
        checkpoint.notes = serde_json::to_string(&notes)
            .map_err(|e| ModelError::Data(format!("the validation's results: {e}")))?;
        let named =
            |(name, tensor): (&String, &HostTensor)| (format!("{BEST}{name}"), tensor.clone());
        checkpoint.tensors.extend(self.state.iter().map(named));
        Ok(())
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Option<Self>, ModelError> {
        if checkpoint.notes.is_empty() {
            return Ok(None);
        }
        let notes: (Vec<Option<u64>>, u64, usize) = serde_json::from_str(&checkpoint.notes)
            .map_err(|e| ModelError::Data(format!("the checkpoint's notes: {e}")))?;
        let tensors = checkpoint.tensors.iter();
        let state = tensors
            .filter_map(|(name, tensor)| {
                Some((name.strip_prefix(BEST)?.to_owned(), tensor.clone()))
            })
            .collect();
        let (dice, mean, step) = notes;
        Ok(Some(Self {
            state,
            dice: dice.into_iter().map(|d| d.map(f64::from_bits)).collect(),
            mean: f64::from_bits(mean),
            step,
        }))
    }
}

impl<'a, B: Kernels> Trainer<'a, B> {
    fn new(
        request: &'a TrainRequest,
        cases: Vec<PreparedCase>,
        validation: Vec<ValidationCase>,
        init: Option<(State, Manifest)>,
        device: B::Device,
    ) -> Result<Self, ModelError> {
        let config = &request.model.network;
        let mut net = PctNet::<Autodiff<B>>::new(config, request.options.seed, &device)?;
        let (mut report, mut parent_sha256) = (None, None);
        if let Some((state, manifest)) = init {
            let (loaded, load_report) = import(net, &state, config.resolution_mode);
            net = loaded;
            report = Some(load_report);
            parent_sha256 = Some(manifest.weights_sha256);
        }
        let mirror = request.model.labels.mirrored();
        Ok(Self {
            request,
            cases,
            validation,
            mirror,
            net,
            report,
            parent_sha256,
            device,
            best: None,
        })
    }

    fn run(
        mut self,
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<TrainReport, ModelError> {
        let options = &self.request.options;
        let mut optimiser: AdamOf<B> = adam(options.weight_decay).init();
        let (mut recent, mut stopped, mut made) = (Recent::new(options.steps / 10 + 1), false, 0);
        if let Some(saved) = self.saved()? {
            made = saved.step;
            let mode = self.request.model.network.resolution_mode;
            (self.net, optimiser) =
                checkpoint::put_back(&saved.tensors, self.net, optimiser, mode, &self.device)?;
            self.best = Best::from_checkpoint(&saved)?;
            stopped = on(TrainEvent::Resumed(made)).is_break();
        }
        let (started, before) = (Instant::now(), made);
        for step in before..options.steps {
            if stopped {
                break;
            }
            let rate = Schedule::Polynomial.rate(options.learning_rate, step, options.steps);
            let (loss, grads) = self.step(step)?;
            self.net = optimiser.step(rate, self.net, grads);
            made = step + 1;
            recent.add(loss);
            let rate_hz = (made - before) as f64 / started.elapsed().as_secs_f64();
            stopped = on(TrainEvent::Step {
                step: made,
                steps: options.steps,
                loss,
                learning_rate: rate,
                rate_hz,
            })
            .is_break();
            let due = options.validate_every > 0 && made % options.validate_every == 0;
            if !stopped && due && made < options.steps {
                stopped = self.validate(made, on)?.is_break();
            }
            if !stopped {
                self.save(made, &optimiser)?;
            }
        }
        if !stopped {
            stopped = self.validate(made, on)?.is_break();
        }
        let best = self
            .best
            .take()
            .unwrap_or_else(|| self.snapshot(made, Vec::new(), 0.0));
        self.write(best, made, recent.mean(), stopped)
    }

    /// What defines the run, as text.
    fn identity(&self) -> Result<String, ModelError> {
        let request = self.request;
        let names = |cases: &[TrainCase]| cases.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        let identity = serde_json::json!({
            "options": request.options,
            "model": request.model,
            "parent_sha256": self.parent_sha256,
            "cases": names(&request.cases),
            "validation": names(&request.validation),
        });
        serde_json::to_string_pretty(&identity).map_err(|e| ModelError::bad(&request.out, e))
    }

    /// The checkpoint to go on from.
    fn saved(&self) -> Result<Option<Checkpoint>, ModelError> {
        match &self.request.checkpoint {
            Some(plan) if plan.resume && plan.path.exists() => {
                Checkpoint::load(&plan.path, &self.identity()?).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Saves the run when it is time to.
    fn save(&self, step: usize, optimiser: &AdamOf<B>) -> Result<(), ModelError> {
        let due = |plan: &&CheckpointPlan| plan.every > 0 && step.is_multiple_of(plan.every);
        let Some(plan) = self.request.checkpoint.as_ref().filter(due) else {
            return Ok(());
        };
        let mode = self.request.model.network.resolution_mode;
        let mut checkpoint = Checkpoint {
            step,
            run: self.identity()?,
            notes: String::new(),
            tensors: checkpoint::take(&self.net, optimiser, mode),
        };
        if let Some(best) = &self.best {
            best.put_into(&mut checkpoint)?;
        }
        if let Some(folder) = plan.path.parent() {
            std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
        }
        checkpoint.save(&plan.path)
    }

    /// Loss and gradients of one step.
    fn step(&self, step: usize) -> Result<(f32, GradientsParams), ModelError> {
        let options = &self.request.options;
        let model = &self.request.model;
        let size @ [d, h, w] = model.patch;
        let (mut inputs, mut labels, mut annotated) = (Vec::new(), Vec::new(), Vec::new());
        let patches = Rng::new(options.seed).named("patches");
        for item in 0..options.batch {
            let rng = &mut patches.stream((step * options.batch + item) as u64);
            let case = &self.cases[rng.below(self.cases.len())];
            let start = case.draw_start(size, options.focus, rng);
            let (mut input, mut label) = case.cut(start, size, model.preprocessing.hu_window);
            augment::flip_left_right(&mut input, &mut label, size, self.mirror.as_deref(), rng);
            augment::intensity(&mut input, rng);
            inputs.append(&mut input);
            labels.append(&mut label);
            annotated.push(case.annotated.clone());
        }
        let input = Tensor::from_data(
            TensorData::new(inputs, [options.batch, 1, d, h, w]),
            &self.device,
        );
        let target = Target::<Autodiff<B>>::new(&labels, size, &annotated, &self.device);
        let dropout = DropoutStream::new(Rng::new(options.seed).named("dropout").at(step as u64));
        let loss = deep_supervised(&self.net.forward(input, Mode::Train(&dropout)), &target);
        let value = scalar(&loss);
        if !value.is_finite() {
            return Err(ModelError::Diverged { step, loss: value });
        }
        Ok((
            value,
            GradientsParams::from_grads(loss.backward(), &self.net),
        ))
    }

    /// Dice on the validation cases; remembers the weights when they are the best so far.
    fn validate(
        &mut self,
        step: usize,
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ModelError> {
        if self.validation.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let net = NetworkOn {
            net: self.net.valid(),
            device: self.device.clone(),
            patch: self.request.model.patch,
        };
        let description = &self.request.model;
        let between = &mut || on(TrainEvent::Between);
        let dice = match dice_on(&net, description, &self.validation, between)? {
            ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
            ControlFlow::Continue(dice) => dice,
        };
        let mean = metrics::mean(dice.iter().copied()).unwrap_or(0.0);
        let best = self.best.as_ref().is_none_or(|best| mean > best.mean);
        let flow = on(TrainEvent::Validated {
            step,
            dice: &dice,
            mean,
            best,
        });
        if best {
            self.best = Some(self.snapshot(step, dice, mean));
        }
        Ok(flow)
    }

    fn snapshot(&self, step: usize, dice: Vec<Option<f64>>, mean: f64) -> Best {
        let state = export(
            &self.net.valid(),
            self.request.model.network.resolution_mode,
        );
        Best {
            state,
            dice,
            mean,
            step,
        }
    }

    fn write(
        self,
        best: Best,
        steps: usize,
        loss: f32,
        stopped: bool,
    ) -> Result<TrainReport, ModelError> {
        let mut model = self.request.model.clone();
        let mean_dice = (!best.dice.is_empty()).then_some(best.mean);
        model.trained = model.trained || best.step > 0;
        model.lineage.parent_sha256 = self.parent_sha256;
        model.lineage.seed = Some(self.request.options.seed);
        model.lineage.steps = Some(best.step);
        model.lineage.validation_dice = mean_dice;
        let manifest = write_model(&self.request.out, &model, &best.state)?;
        if let Some(plan) = &self.request.checkpoint
            && plan.path.exists()
        {
            std::fs::remove_file(&plan.path).map_err(ModelError::io(&plan.path))?;
        }
        Ok(TrainReport {
            manifest,
            init: self.report,
            steps,
            loss,
            dice: best.dice,
            mean_dice,
            stopped,
        })
    }
}

/// The value of a loss.
pub(in crate::model) fn scalar<B: Backend>(loss: &Tensor<B, 1>) -> f32 {
    crate::model::weights::to_f32(loss.clone().into_data())
        .first()
        .copied()
        .unwrap_or(f32::NAN)
}

/// Mean Dice per structure over cases, only where the structure was annotated.
fn dice_on(
    net: &dyn Forward,
    model: &ModelDescription,
    cases: &[ValidationCase],
    between: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<ControlFlow<(), Vec<Option<f64>>>, ModelError> {
    let classes = model.network.class_num;
    let mut per_case = Vec::with_capacity(cases.len());
    for case in cases {
        let result = match segment(net, model, &case.scan, &mut |_, _| between()) {
            Err(ModelError::Stopped) => return Ok(ControlFlow::Break(())),
            result => result?,
        };
        let dice = metrics::dice_per_class(&result.labels.voxels, &case.labels.voxels, classes);
        let known = dice
            .into_iter()
            .zip(&case.annotated)
            .map(|(dice, &known)| dice.filter(|_| known));
        per_case.push(known.collect::<Vec<_>>());
    }
    let mean = |class: usize| metrics::mean(per_case.iter().map(|dice| dice[class]));
    Ok(ControlFlow::Continue((1..classes).map(mean).collect()))
}

/// Mean of the last few values.
struct Recent {
    values: std::collections::VecDeque<f32>,
    len: usize,
}

impl Recent {
    fn new(len: usize) -> Self {
        Self {
            values: Default::default(),
            len,
        }
    }

    fn add(&mut self, value: f32) {
        if self.values.len() == self.len {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    fn mean(&self) -> f32 {
        self.values.iter().sum::<f32>() / self.values.len().max(1) as f32
    }
}
