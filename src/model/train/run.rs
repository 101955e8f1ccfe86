//! The training run.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, Optimizer};

use super::batch;
use super::checkpoint::{self, Checkpoint};
use super::data::{CaseNote, TrainCase, load};
use super::gradients;
use super::kept::{Best, Kept};
use super::optimiser::{AdamOf, Schedule, adam};
use super::passes::Passes;
use super::request::{CheckpointPlan, EndedEarly, TrainEvent, TrainReport, TrainRequest};
use super::samples::{Patch, Sampler};
use super::store::StoredCase;
use super::validate::dice_on;
use crate::imaging::metrics;
use crate::model::background::{Background, BackgroundStats};
use crate::model::engine::{Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::infer::ready;
use crate::model::kernels::{Kernels, pages::KeepPages};
use crate::model::loss::deep_supervised;
use crate::model::manifest::{Manifest, write_model};
use crate::model::pct_net::{DropoutStream, Mode, PctNet};
use crate::model::precision::{Precision, PrecisionChoice};
use crate::model::weights::{LoadReport, State, export, fit_inputs, import, is_head};
use crate::rng::Rng;
use good::Good;
use recent::Recent;

/// Steps between two states that a run can be put back to.
const GOOD_EVERY: usize = 100;
/// Steps without finite numbers, one after the other, that end a run.
const MOST_FAILURES: usize = 3;

/// Trains and writes a model directory.
///
/// # Errors
/// No case that can be used, numbers that stay infinite, a device that is not there. Nothing is written then.
pub fn train(
    request: &TrainRequest,
    on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
) -> Result<TrainReport, ModelError> {
    let model = &request.model;
    model.network.validate()?;
    model.network.check_patch(model.patch)?;
    let init = match &request.init {
        None => None,
        Some(dir) => {
            let manifest = Manifest::read(dir)?;
            let mut state = manifest.read_weights(dir)?;
            let mut inputs = manifest.network.in_chns;
            if manifest.labels != model.labels {
                // Even where their number is the same, the old outputs and clicks mean other structures.
                state.retain(|name, _| !is_head(name));
                inputs = 1;
            }
            fit_inputs(&mut state, inputs, model.network.in_chns);
            Some((state, manifest))
        }
    };
    let engine = Engine::open(request.options.device)?;
    let _pages = KeepPages::new();
    engine.guarded(|| {
        on_engine!(engine, |B, device| Trainer::<B>::new(
            request, init, engine, device
        )?
        .run(on))
    })
}

struct Trainer<'a, B: Kernels> {
    request: &'a TrainRequest,
    net: PctNet<Autodiff<B>>,
    optimiser: AdamOf<B>,
    passes: Passes,
    /// Running average of the weights, if one is kept.
    average: Option<PctNet<B>>,
    kept: Kept,
    /// The newest state known to give finite numbers.
    good: Option<Good>,
    init: Option<LoadReport>,
    parent_sha256: Option<String>,
    engine: Engine,
    device: B::Device,
    notes: Vec<CaseNote>,
    /// When the run was saved last, and how long that took.
    saved_last: Option<(Instant, Duration)>,
}

/// What came of one step's patches.
enum Outcome {
    Gradients(f32, GradientsParams),
    /// Something was not finite, and on which cases.
    Failed(String),
    /// The GPU failed, and the last good state is back.
    Device(String),
}

impl<'a, B: Kernels> Trainer<'a, B> {
    fn new(
        request: &'a TrainRequest,
        init: Option<(State, Manifest)>,
        engine: Engine,
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
        let average = request.options.ema.map(|_| net.valid());
        let passes = Passes::plan(
            engine,
            request.options.precision,
            &net,
            config,
            request.model.patch,
            request.options.batch,
            &device,
        )?;
        Ok(Self {
            request,
            net,
            passes,
            optimiser: adam(request.options.weight_decay).init(),
            average,
            kept: Kept::default(),
            good: None,
            init: report,
            parent_sha256,
            engine,
            device,
            notes: Vec::new(),
            saved_last: None,
        })
    }

    fn mode(&self) -> u8 {
        self.request.model.network.resolution_mode
    }

    fn run(
        mut self,
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<TrainReport, ModelError> {
        let options = &self.request.options;
        let (mut recent, mut made) = (Recent::new(options.steps / 10 + 1), 0);
        if let Some(saved) = self.saved()? {
            made = saved.step;
            self.put_back(&saved.tensors)?;
            let average;
            (self.kept, average) = Kept::from_checkpoint(&saved)?;
            self.put_average_back(average.as_ref());
            drop(saved);
        }
        let store = self.request.prepare(&mut self.notes, on)?;
        let validation = self.checked_validation(on)?;
        let mut ended = None;
        if made > 0 && on(TrainEvent::Resumed(made)).is_break() {
            ended = Some(EndedEarly::Stopped);
        }
        let first = (made * options.batch) as u64;
        let mut pipeline = self
            .request
            .pipeline(store, first, B::patch_maker().is_some());
        let (started, before) = (Instant::now(), made);
        for step in before..options.steps {
            if ended.is_some() {
                break;
            }
            let patches = match self.draw(&mut pipeline, on)? {
                ControlFlow::Continue(patches) => patches,
                ControlFlow::Break(()) => {
                    ended = Some(EndedEarly::Stopped);
                    break;
                }
            };
            let mut candidate =
                (step % GOOD_EVERY == 0 || self.good.is_none()).then(|| self.state(step));
            if self.good.is_none() {
                self.good = candidate.take();
            }
            let cases = pipeline.work().store.cases();
            let outcome = self
                .passes
                .watched(|| self.step(step, patches, cases))
                .or_else(|reason| self.shrink(reason))?;
            let proven = matches!(outcome, Outcome::Gradients(..));
            if let Some(candidate) = candidate.filter(|_| proven) {
                self.good = Some(candidate);
            }
            made = step + 1;
            let (loss, grads) = match outcome {
                Outcome::Gradients(loss, grads) => (loss, grads),
                Outcome::Device(reason) => {
                    let flow = on(TrainEvent::RolledBack {
                        step: made,
                        back_to: self.good.as_ref().map_or(0, |good| good.step),
                        reason: &reason,
                        rate_scale: self.kept.rate_scale,
                    });
                    if flow.is_break() {
                        ended = Some(EndedEarly::Stopped);
                    }
                    continue;
                }
                Outcome::Failed(reason) => {
                    if self.fail(made, &reason, on)?.is_break() {
                        ended = Some(EndedEarly::Stopped);
                    }
                    continue;
                }
            };
            self.kept.failures = 0;
            let rate = self.rate(step);
            self.net = self.optimiser.step(rate, self.net, grads);
            if let Some(decay) = options.ema {
                let average = self.average.take();
                self.average =
                    average.map(|average| gradients::follow(average, &self.net, decay, step));
            }
            recent.add(loss);
            let elapsed_s = started.elapsed().as_secs_f64();
            let flow = on(TrainEvent::Step {
                step: made,
                steps: options.steps,
                loss,
                learning_rate: rate,
                rate_hz: (made - before) as f64 / elapsed_s,
                waiting: pipeline.stats().waited_s / elapsed_s,
            });
            if flow.is_break() {
                ended = Some(EndedEarly::Stopped);
            }
            let due = options.validate_every > 0 && made % options.validate_every == 0;
            if ended.is_none() && due && made < options.steps {
                ended = self.validate(made, &validation, on)?;
            }
            if ended.is_none() {
                self.save(made)?;
            }
        }
        let keep = |plan: &CheckpointPlan| plan.keep;
        let keep = self.request.checkpoint.as_ref().is_some_and(keep);
        if keep && ended == Some(EndedEarly::Stopped) {
            // The validation that is due at this step was not made, and would be missing in the saved run.
            let validated = options.validate_every == 0 || made % options.validate_every != 0;
            if made > before && validated {
                self.save_now(made)?;
            }
            return Err(ModelError::Stopped);
        }
        let stats = pipeline.stats();
        let waiting = stats.waited_s / started.elapsed().as_secs_f64();
        drop(pipeline);
        if let Some(flow) = self.leave_spoiled(made, on)? {
            ended = ended.or(flow.is_break().then_some(EndedEarly::Stopped));
        }
        if ended.is_none() {
            ended = self
                .validate(made, &validation, on)?
                .filter(|why| *why == EndedEarly::Stopped);
        }
        if keep && ended == Some(EndedEarly::Stopped) {
            return Err(ModelError::Stopped);
        }
        self.finish(made, recent.mean(), ended, stats, waiting)
    }

    /// The learning rate of a step.
    fn rate(&self, step: usize) -> f64 {
        let options = &self.request.options;
        let rise = ((step + 1) as f64 / options.warmup.max(1) as f64).min(1.0);
        let rate = Schedule::Polynomial.rate(options.learning_rate, step, options.steps);
        rate * rise * self.kept.rate_scale
    }

    fn draw(
        &self,
        pipeline: &mut Background<Sampler>,
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Vec<Patch>>, ModelError> {
        let mut patches = Vec::with_capacity(self.request.options.batch);
        while patches.len() < self.request.options.batch {
            match pipeline.next(&mut || on(TrainEvent::Between))? {
                ControlFlow::Continue(patch) => patches.push(patch),
                ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
            }
        }
        Ok(ControlFlow::Continue(patches))
    }

    /// Loss and gradients of one step, clipped, without those of a frozen encoder.
    fn step(&self, step: usize, patches: Vec<Patch>, cases: &[StoredCase]) -> Outcome {
        let options = &self.request.options;
        let size = self.request.model.patch;
        let named = batch::names(&patches, cases);
        let mut inputs = batch::inputs::<B>(patches, size, &self.device);
        let clicks = self.clicks(step, &inputs, cases);
        for (input, clicks) in inputs.iter_mut().zip(&clicks) {
            input.voxels = self.with_clicks(input, cases, clicks);
        }
        let dropout = DropoutStream::new(Rng::new(options.seed).named("dropout").at(step as u64));
        let (value, grads) = self.passes.gradients(&self.net, &inputs, |part| {
            let (input, target) = batch::together(part, size, &self.device);
            let mode = Mode::Train(&dropout);
            deep_supervised(&self.passes.forward(&self.net, input, mode), &target)
        });
        let Some(mut grads) = grads else {
            return Outcome::Failed(format!("the loss is {value} {named}"));
        };
        if step < options.freeze_encoder {
            gradients::freeze_encoder(&self.net, &mut grads, self.mode());
        }
        let norm = gradients::norm(&self.net, &grads);
        if !norm.is_finite() {
            return Outcome::Failed(format!("the gradient's norm is {norm} {named}"));
        }
        if options.clip_norm > 0.0 && f64::from(norm) > options.clip_norm {
            let factor = (options.clip_norm / f64::from(norm)) as f32;
            gradients::scale(&self.net, &mut grads, factor);
        }
        Outcome::Gradients(value, grads)
    }

    /// After a failure of the GPU: fewer patches at once, and a state that did not fail.
    fn shrink(&mut self, reason: String) -> Result<Outcome, ModelError> {
        self.passes.shrink(&reason)?;
        B::memory_cleanup(&self.device);
        if let Some(good) = self.good.take() {
            self.put_back(&good.tensors)?;
            self.put_average_back(good.average.as_ref());
            self.good = Some(good);
        }
        Ok(Outcome::Device(reason))
    }

    /// Puts the last good state back after a step that gave no finite numbers.
    fn fail(
        &mut self,
        step: usize,
        reason: &str,
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ModelError> {
        self.kept.failures += 1;
        if self.kept.failures == MOST_FAILURES {
            return Err(ModelError::Diverged {
                step,
                reason: format!("{reason}, {MOST_FAILURES} times in a row"),
            });
        }
        self.kept.rate_scale *= 0.5;
        let mut back_to = step - 1;
        if let Some(good) = self.good.take() {
            self.put_back(&good.tensors)?;
            self.put_average_back(good.average.as_ref());
            back_to = good.step;
            self.good = Some(good);
        }
        Ok(on(TrainEvent::RolledBack {
            step,
            back_to,
            reason,
            rate_scale: self.kept.rate_scale,
        }))
    }

    /// What defines the run, as text.
    fn identity(&self) -> Result<String, ModelError> {
        let request = self.request;
        let names = |cases: &[TrainCase]| cases.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        let mut identity = serde_json::json!({
            "options": request.options,
            "model": request.model,
            "parent_sha256": self.parent_sha256,
            "cases": names(&request.cases),
            "validation": names(&request.validation),
        });
        if let Some(precision) = self.passes.identity() {
            identity["precision"] = serde_json::json!(precision);
        }
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
    fn save(&mut self, step: usize) -> Result<(), ModelError> {
        let Some(plan) = &self.request.checkpoint else {
            return Ok(());
        };
        if plan.every == 0 || !step.is_multiple_of(plan.every) {
            return Ok(());
        }
        let costly = |share: f64| {
            let last = self.saved_last.as_ref();
            last.is_some_and(|(at, took)| *took > at.elapsed().mul_f64(share))
        };
        if plan.share.is_some_and(costly) {
            return Ok(());
        }
        self.save_now(step)
    }

    fn save_now(&mut self, step: usize) -> Result<(), ModelError> {
        let Some(plan) = &self.request.checkpoint else {
            return Ok(());
        };
        let started = Instant::now();
        let mut checkpoint = Checkpoint {
            step,
            run: self.identity()?,
            notes: String::new(),
            tensors: checkpoint::take(&self.net, &self.optimiser, self.mode()),
        };
        self.kept.put_into(self.average_state(), &mut checkpoint)?;
        if let Some(folder) = plan.path.parent() {
            std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
        }
        checkpoint.save(&plan.path)?;
        self.saved_last = Some((Instant::now(), started.elapsed()));
        Ok(())
    }

    /// The validation cases that can be used; the others are named.
    fn checked_validation(
        &mut self,
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<Vec<TrainCase>, ModelError> {
        let classes = self.request.model.network.class_num;
        let mut usable = Vec::new();
        for case in &self.request.validation {
            let note = match load(case, classes) {
                Ok((_, note)) => {
                    usable.push(case.clone());
                    note
                }
                Err(note) => Some(note),
            };
            if let Some(note) = note {
                if on(TrainEvent::Case(&note)).is_break() {
                    return Err(ModelError::Stopped);
                }
                self.notes.push(note);
            }
        }
        Ok(usable)
    }

    /// Dice on the validation cases; remembers the weights when they are the best so far. Says whether to end.
    fn validate(
        &mut self,
        step: usize,
        cases: &[TrainCase],
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<Option<EndedEarly>, ModelError> {
        if cases.is_empty() {
            return Ok(None);
        }
        let model = &self.request.model;
        let net = ready(
            self.engine,
            self.current(),
            &model.network,
            model.patch,
            PrecisionChoice::Fixed(Precision::F32),
            self.device.clone(),
        )?;
        let mirror = model
            .labels
            .mirrored()
            .filter(|_| self.request.options.flips);
        let between = &mut || on(TrainEvent::Between);
        let dice = match dice_on(&net, model, mirror.as_deref(), cases, between)? {
            ControlFlow::Break(()) => return Ok(Some(EndedEarly::Stopped)),
            ControlFlow::Continue(dice) => dice,
        };
        let mean = metrics::mean(dice.iter().copied()).unwrap_or(0.0);
        let best = self.kept.best.as_ref().is_none_or(|best| mean > best.mean);
        let flow = on(TrainEvent::Validated {
            step,
            dice: &dice,
            mean,
            best,
        });
        self.kept.worse += 1;
        if best {
            self.kept.worse = 0;
            self.kept.best = Some(self.snapshot(step, dice, mean));
        }
        let patience = self.request.options.patience;
        Ok(if flow.is_break() {
            Some(EndedEarly::Stopped)
        } else {
            (patience > 0 && self.kept.worse >= patience).then_some(EndedEarly::Patience)
        })
    }

    /// The weights that are validated and kept.
    fn current(&self) -> PctNet<B> {
        self.average.clone().unwrap_or_else(|| self.net.valid())
    }

    fn snapshot(&self, step: usize, dice: Vec<Option<f64>>, mean: f64) -> Best {
        Best {
            state: export(&self.current(), self.mode()),
            dice,
            mean,
            step,
        }
    }

    fn finish(
        mut self,
        steps: usize,
        loss: f32,
        ended_early: Option<EndedEarly>,
        stats: BackgroundStats,
        waiting: f64,
    ) -> Result<TrainReport, ModelError> {
        let best = self
            .kept
            .best
            .take()
            .unwrap_or_else(|| self.snapshot(steps, Vec::new(), 0.0));
        let mut model = self.request.model.clone();
        let mean_dice = (!best.dice.is_empty()).then_some(best.mean);
        model.trained = model.trained || best.step > 0;
        model.lineage.parent_sha256 = self.parent_sha256;
        model.lineage.seed = Some(self.request.options.seed);
        model.lineage.steps = Some(best.step);
        model.lineage.validation_dice = mean_dice;
        let manifest = write_model(&self.request.out, &model, &best.state)?;
        if let Some(plan) = &self.request.checkpoint
            && !plan.keep
            && plan.path.exists()
        {
            std::fs::remove_file(&plan.path).map_err(ModelError::io(&plan.path))?;
        }
        Ok(TrainReport {
            manifest,
            init: self.init,
            steps,
            loss,
            dice: best.dice,
            mean_dice,
            ended_early,
            notes: self.notes,
            samples_per_s: stats.made as f64 / stats.busy_s.max(1e-9),
            waiting,
        })
    }
}

mod good;
mod input;
mod recent;
#[cfg(test)]
mod tests;
