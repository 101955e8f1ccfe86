//! The pretraining run.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams, Optimizer};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use serde_json::{Value, json};

use super::curves::JsonLines;
use super::pipeline::{Layout, Pipeline, PipelineStats};
use super::request::PretrainRequest;
use super::scans::ScanNote;
use crate::imaging::metrics;
use crate::model::engine::{Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::kernels::{Kernels, pages::KeepPages, wrap};
use crate::model::loss::{Target, deep_supervised};
use crate::model::manifest::{Manifest, ModelDescription, write_model};
use crate::model::pct_net::{DropoutStream, Mode, PctNet};
use crate::model::train::checkpoint::{self, Checkpoint};
use crate::model::train::{AdamOf, Passes, adam, scalar};
use crate::model::volume_fusion::{Fused, FusionOptions};
use crate::model::weights::{State, export, to_f32};
use crate::rng::Rng;

/// Points of the loss curve, at most.
const CURVE_POINTS: usize = 1000;
/// Scans that validation samples come from, at most.
const VALIDATION_SCANS: usize = 8;

/// What the caller hears. Breaking saves a checkpoint and ends the run.
pub enum PretrainEvent<'a> {
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
        /// Steps a second, since the start of this process.
        rate_hz: f64,
        /// Share of its time that the trainer waited for samples.
        waiting: f64,
    },
    /// The weights were validated.
    Validated {
        /// Steps made.
        step: usize,
        /// Mean loss.
        loss: f64,
        /// Dice of each fusion class, 0 first.
        dice: &'a [Option<f64>],
    },
    /// Something about a scan.
    Scan(&'a ScanNote),
    /// A good moment for other work.
    Between,
}

/// How the run went.
#[derive(Debug)]
pub struct PretrainReport {
    /// The model written; none when the run was interrupted.
    pub manifest: Option<Manifest>,
    /// Steps made in all.
    pub steps: usize,
    /// Scans that were left out or repaired, as far as this process saw them.
    pub notes: Vec<ScanNote>,
    /// The pipeline of this process.
    pub pipeline: PipelineStats,
    /// Share of its time that the trainer waited for samples, the first ones left out.
    pub waiting: f64,
}

/// The folder beside a model directory with `curves.jsonl`, `scans.jsonl` and, while the run is not finished, the
/// checkpoint.
pub fn run_folder(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".run");
    PathBuf::from(name)
}

/// Pretrains and writes a model directory.
///
/// # Errors
/// No usable scan, an output that exists, a checkpoint of another run, a loss that is not finite, a device that is not
/// there. The last checkpoint stays then.
pub fn pretrain(
    request: &PretrainRequest,
    on: &mut dyn FnMut(PretrainEvent) -> ControlFlow<()>,
) -> Result<PretrainReport, ModelError> {
    request.check()?;
    let folder = run_folder(&request.out);
    let path = folder.join("checkpoint.safetensors");
    let saved = match (path.exists(), request.resume) {
        (true, true) => Some(Checkpoint::load(&path, &request.identity()?)?),
        (true, false) => {
            let reason = "it holds an interrupted run. Continue it with --resume, or remove the folder, or name another output";
            return Err(ModelError::bad(folder, reason));
        }
        (false, _) => None,
    };
    let preprocessing = match &saved {
        Some(saved) => serde_json::from_str(&saved.notes).map_err(|e| ModelError::bad(&path, e))?,
        None => request.plan()?,
    };
    let description = request.describe(preprocessing)?;
    description.check(&request.out)?;
    let engine = Engine::open(request.device)?;
    let _pages = KeepPages::new();
    std::fs::create_dir_all(&folder).map_err(ModelError::io(&folder))?;
    engine.guarded(|| {
        on_engine!(engine, |B, device| Run::<B>::new(
            request,
            description,
            folder,
            saved,
            engine,
            device
        )?
        .go(on))
    })
}

struct Run<'a, B: Kernels> {
    request: &'a PretrainRequest,
    description: ModelDescription,
    folder: PathBuf,
    device: B::Device,
    net: PctNet<Autodiff<B>>,
    optimiser: AdamOf<B>,
    passes: Passes,
    /// On a GPU, the state before the first step, until that is made: memory runs out then, if it does.
    first: Option<State>,
    step: usize,
    pipeline: Pipeline,
    validation: Vec<Fused>,
    curves: JsonLines,
    scans: JsonLines,
    /// Scans that stand in the file already.
    noted: HashSet<String>,
    notes: Vec<ScanNote>,
}

impl<'a, B: Kernels> Run<'a, B> {
    fn new(
        request: &'a PretrainRequest,
        description: ModelDescription,
        folder: PathBuf,
        saved: Option<Checkpoint>,
        engine: Engine,
        device: B::Device,
    ) -> Result<Self, ModelError> {
        let options = &request.options;
        let mut net = PctNet::<Autodiff<B>>::new(&request.network, options.seed, &device)?;
        let mut optimiser: AdamOf<B> = adam(options.weight_decay).init();
        let step = saved.as_ref().map_or(0, |saved| saved.step);
        let (curves, scans) = (folder.join("curves.jsonl"), folder.join("scans.jsonl"));
        let mut noted = HashSet::new();
        let (curves, scans) = match saved {
            None => (JsonLines::create(curves)?, JsonLines::create(scans)?),
            Some(saved) => {
                let mode = request.network.resolution_mode;
                (net, optimiser) =
                    checkpoint::put_back(&saved.tensors, net, optimiser, mode, &device)?;
                if let Ok(text) = std::fs::read_to_string(&scans) {
                    let lines = text
                        .lines()
                        .filter_map(|line| serde_json::from_str(line).ok());
                    noted.extend(
                        lines.filter_map(|line: Value| Some(line["scan"].as_str()?.to_owned())),
                    );
                }
                let made = |line: &Value| line["step"].as_u64().is_some_and(|s| s <= step as u64);
                (
                    JsonLines::resume(curves, made)?,
                    JsonLines::resume(scans, |_| true)?,
                )
            }
        };
        let source = request.source(
            request.scans.clone(),
            description.preprocessing.clone(),
            options.seed,
            B::patch_maker().is_some(),
        );
        let passes = Passes::plan(
            engine,
            request.precision,
            &net,
            &request.network,
            options.fusion.patch,
            options.batch,
            &device,
        )?;
        let mode = request.network.resolution_mode;
        let first = (engine != Engine::Cpu).then(|| checkpoint::take(&net, &optimiser, mode));
        let first_sample = (step * options.batch * options.accumulate) as u64;
        Ok(Self {
            pipeline: Pipeline::start(source, request.loaders, first_sample),
            request,
            description,
            folder,
            device,
            net,
            optimiser,
            passes,
            first,
            step,
            validation: Vec::new(),
            curves,
            scans,
            noted,
            notes: Vec::new(),
        })
    }

    fn go(
        mut self,
        on: &mut dyn FnMut(PretrainEvent) -> ControlFlow<()>,
    ) -> Result<PretrainReport, ModelError> {
        let options = &self.request.options;
        if self.step > 0 && on(PretrainEvent::Resumed(self.step)).is_break() {
            return self.interrupted();
        }
        if self.draw_validation(on)?.is_break() {
            return self.interrupted();
        }
        let (started, before) = (Instant::now(), self.step);
        let point_every = options.steps.div_ceil(CURVE_POINTS);
        let (mut losses, mut counted) = (0.0, 0);
        while self.step < options.steps {
            let made = self.gradients(on);
            self.hear_of_scans(on)?;
            let (loss, grads) = match made? {
                ControlFlow::Continue(made) => made,
                ControlFlow::Break(()) => return self.interrupted(),
            };
            let rate = options
                .schedule
                .rate(options.learning_rate, self.step, options.steps);
            self.net = self.optimiser.step(rate, self.net, grads);
            self.first = None;
            self.step += 1;
            (losses, counted) = (losses + f64::from(loss), counted + 1);
            let rate_hz = (self.step - before) as f64 / started.elapsed().as_secs_f64();
            let waiting = self.waiting(started);
            if self.step.is_multiple_of(point_every) || self.step == options.steps {
                self.curves.add(&json!({
                    "step": self.step, "loss": losses / f64::from(counted), "learning_rate": rate,
                    "steps_per_s": rate_hz, "waiting_share": waiting,
                }))?;
                (losses, counted) = (0.0, 0);
            }
            let mut flow = on(PretrainEvent::Step {
                step: self.step,
                steps: options.steps,
                loss,
                rate_hz,
                waiting,
            });
            let every = |steps: usize| steps > 0 && self.step.is_multiple_of(steps);
            let save = every(self.request.checkpoint_every) && self.step < options.steps;
            if flow.is_continue()
                && (every(self.request.validate_every) || self.step == options.steps)
            {
                flow = self.validate(on)?;
            }
            if flow.is_break() && self.step < options.steps {
                return self.interrupted();
            }
            if save {
                self.save()?;
            }
        }
        let waiting = self.waiting(started);
        self.curves.add(&json!({
            "step": self.step, "pipeline": self.pipeline.stats(), "waiting_share": waiting,
        }))?;
        let state = export(&self.net.valid(), self.request.network.resolution_mode);
        let manifest = write_model(&self.request.out, &self.description, &state)?;
        let checkpoint = self.checkpoint_path();
        if checkpoint.exists() {
            std::fs::remove_file(&checkpoint).map_err(ModelError::io(&checkpoint))?;
        }
        Ok(self.report(Some(manifest), waiting))
    }

    fn interrupted(self) -> Result<PretrainReport, ModelError> {
        self.save()?;
        Ok(self.report(None, 0.0))
    }

    fn report(self, manifest: Option<Manifest>, waiting: f64) -> PretrainReport {
        PretrainReport {
            manifest,
            steps: self.step,
            pipeline: self.pipeline.stats(),
            notes: self.notes,
            waiting,
        }
    }

    fn checkpoint_path(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    fn save(&self) -> Result<(), ModelError> {
        let path = self.checkpoint_path();
        let notes = serde_json::to_string(&self.description.preprocessing)
            .map_err(|e| ModelError::bad(&path, e))?;
        let mode = self.request.network.resolution_mode;
        Checkpoint {
            step: self.step,
            run: self.request.identity()?,
            notes,
            tensors: checkpoint::take(&self.net, &self.optimiser, mode),
        }
        .save(&path)
    }

    /// Share of the time since the first step that went into waiting.
    fn waiting(&self, started: Instant) -> f64 {
        let stats = self.pipeline.stats();
        stats.waited_s / started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Mean loss and gradients of the passes of one step.
    #[allow(clippy::type_complexity)] // the loss and its gradients, unless the caller breaks
    fn gradients(
        &mut self,
        on: &mut dyn FnMut(PretrainEvent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), (f32, GradientsParams)>, ModelError> {
        let options = &self.request.options;
        let (mut sum, mut accumulator) = (0.0, GradientsAccumulator::new());
        for pass in 0..options.accumulate {
            let mut samples = Vec::with_capacity(options.batch);
            while samples.len() < options.batch {
                match self.pipeline.next(&mut || on(PretrainEvent::Between))? {
                    ControlFlow::Continue(sample) => samples.push(sample),
                    ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
                }
            }
            let (value, grads) = match self.passes.watched(|| self.pass(pass, &samples)) {
                Ok(made) => made,
                Err(reason) => {
                    self.shrink(&reason)?;
                    self.pass(pass, &samples)
                }
            };
            let Some(grads) = grads else {
                return Err(ModelError::Diverged {
                    step: self.step,
                    reason: format!("the loss is {value}"),
                });
            };
            sum += value;
            accumulator.accumulate(&self.net, grads);
        }
        Ok(ControlFlow::Continue((sum, accumulator.grads())))
    }

    /// Loss and gradients of a pass, by the number of passes in a step.
    fn pass(&self, pass: usize, samples: &[Fused]) -> (f32, Option<GradientsParams>) {
        let options = &self.request.options;
        let number = (self.step * options.accumulate + pass) as u64;
        let masks = DropoutStream::new(Rng::new(options.seed).named("dropout").at(number));
        self.passes.gradients(&self.net, samples, |part| {
            let (input, target) = self.tensors::<Autodiff<B>>(part);
            let input = Tensor::from_inner(input);
            let outputs = self.passes.forward(&self.net, input, Mode::Train(&masks));
            deep_supervised(&outputs, &target) / options.accumulate as f64
        })
    }

    /// After a failure of the GPU in the first step: fewer patches at once, and the state from before.
    fn shrink(&mut self, reason: &str) -> Result<(), ModelError> {
        let Some(first) = self.first.take() else {
            let going_on = format!("{reason}; --resume goes on from the last checkpoint");
            return self.passes.give_up(&going_on);
        };
        self.passes.shrink(reason)?;
        B::memory_cleanup(&self.device);
        // Running statistics of the pass that failed must not be taken in.
        drop(self.net.valid());
        let (net, optimiser) = (self.net.clone(), self.optimiser.clone());
        let mode = self.request.network.resolution_mode;
        (self.net, self.optimiser) =
            checkpoint::put_back(&first, net, optimiser, mode, &self.device)?;
        Ok(())
    }

    fn tensors<T: Backend<Device = B::Device>>(
        &self,
        samples: &[Fused],
    ) -> (Tensor<B, 5>, Target<T>) {
        let FusionOptions { patch, classes, .. } = self.request.options.fusion;
        let [d, h, w] = patch;
        let inputs = samples.iter().map(|sample| {
            let made = |input: &[f32]| {
                let data = TensorData::new(input.to_vec(), [1, 1, d, h, w]);
                Tensor::<B, 5>::from_data(data, &self.device)
            };
            match (sample, B::patch_maker()) {
                (Fused::Made(sample), _) => made(&sample.input),
                (Fused::Drawn(job), Some(maker)) => {
                    let input = wrap::<B, 3>((maker.fuse)(job, &self.device));
                    input.reshape([1, 1, d, h, w])
                }
                (Fused::Drawn(_), None) => unreachable!("the host makes what no device does"),
            }
        });
        let input = Tensor::cat(inputs.collect(), 0);
        let labels: Vec<u8> = samples.iter().flat_map(|s| s.label()).copied().collect();
        let known = vec![vec![true; classes]; samples.len()];
        (input, Target::new(&labels, patch, &known, &self.device))
    }

    /// Draws the validation samples, the same ones in every run with the same seed and scans.
    fn draw_validation(
        &mut self,
        on: &mut dyn FnMut(PretrainEvent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ModelError> {
        let request = self.request;
        let wanted = request.validation_samples;
        if request.validation.is_empty() || wanted == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let seed = Rng::new(request.options.seed).named("validation").at(0);
        let preprocessing = self.description.preprocessing.clone();
        let on_device = B::patch_maker().is_some();
        let scans = request.validation.clone();
        let mut source = request.source(scans, preprocessing, seed, on_device);
        let visits = source.scans.len().min(VALIDATION_SCANS).min(wanted);
        source.layout = Layout {
            visits,
            samples: wanted.div_ceil(visits),
        };
        let mut pipeline = Pipeline::start(source, request.loaders, 0);
        while self.validation.len() < wanted {
            match pipeline.next(&mut || on(PretrainEvent::Between)) {
                Ok(ControlFlow::Continue(sample)) => self.validation.push(sample),
                Ok(ControlFlow::Break(())) => return Ok(ControlFlow::Break(())),
                // Without a usable scan there is no validation; each scan's reason is noted.
                Err(_) => break,
            }
        }
        for note in pipeline.news() {
            self.hear(note, on)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn hear_of_scans(
        &mut self,
        on: &mut dyn FnMut(PretrainEvent) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        for note in self.pipeline.news() {
            self.hear(note, on)?;
        }
        Ok(())
    }

    fn hear(
        &mut self,
        note: ScanNote,
        on: &mut dyn FnMut(PretrainEvent) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        if self.noted.insert(note.scan.clone()) {
            self.scans.add(&note)?;
        }
        // Breaking is heard at the next step.
        let _ = on(PretrainEvent::Scan(&note));
        self.notes.push(note);
        Ok(())
    }

    /// Loss and Dice of the fusion classes on the validation samples.
    fn validate(
        &mut self,
        on: &mut dyn FnMut(PretrainEvent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ModelError> {
        if self.validation.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let net = self.net.valid();
        let classes = self.request.options.fusion.classes;
        let (mut loss, mut found, mut wanted) = (0.0, Vec::new(), Vec::new());
        for sample in &self.validation {
            let (input, target) = self.tensors::<B>(std::slice::from_ref(sample));
            let outputs = net.forward(input, Mode::Eval);
            loss += f64::from(scalar(&deep_supervised(&outputs, &target)));
            let [finest, ..] = outputs;
            found.extend(most_likely(&to_f32(finest.into_data()), classes));
            wanted.extend(sample.label().iter().map(|class| u16::from(*class)));
            if on(PretrainEvent::Between).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let loss = loss / self.validation.len() as f64;
        let dice = metrics::dice_per_class(&found, &wanted, classes);
        self.curves.add(&json!({
            "step": self.step, "validation_loss": loss, "pseudo_dice": dice,
            "mean_pseudo_dice": metrics::mean(dice.iter().copied()),
        }))?;
        Ok(on(PretrainEvent::Validated {
            step: self.step,
            loss,
            dice: &dice,
        }))
    }
}

/// Class of the largest of logits `[classes, voxels]` for each voxel; of equal ones the first.
fn most_likely(logits: &[f32], classes: usize) -> Vec<u16> {
    let voxels = logits.len() / classes;
    let best = |voxel: usize| {
        (1..classes).fold(0, |best, class| {
            let better = logits[class * voxels + voxel] > logits[best * voxels + voxel];
            if better { class } else { best }
        })
    };
    (0..voxels).map(|voxel| best(voxel) as u16).collect()
}

#[cfg(test)]
mod tests;
