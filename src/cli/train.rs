//! `fewlabel train`: fine-tunes on a folder of labelled scans, without a server.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::Args;

use super::curve::CurveWriter;
use super::dataset::Dataset;
use super::progress::Progress;
use super::{Usage, gpu, parse_spacing, parse_triple, parse_window, report};
use crate::model::pretrain::run_folder;
use crate::model::{
    Augment, CheckpointPlan, ClickGuidance, DeviceChoice, EndedEarly, Given, LabelSchema, Lineage,
    Manifest, ModelDescription, ONE_SIDED, PctNetConfig, PrecisionChoice, Segmenter, Spacing,
    Survey, TrainCase, TrainEvent, TrainOptions, TrainRequest, measure_loading,
};
use crate::rng::Rng;

/// Arguments of `fewlabel train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Folder with dataset.json, imagesTr and labelsTr (Medical Segmentation Decathlon), or a MONAI Label studies folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Model directory to make; must not exist
    #[arg(long, value_name = "MODEL_DIR")]
    out: PathBuf,
    /// Model to start from [default: pct-net-s with random weights]
    #[arg(long, value_name = "MODEL_DIR")]
    init: Option<PathBuf>,
    /// Only take the network and preprocessing of --init, with random weights: the comparison that shows what its
    /// weights are worth
    #[arg(long, requires = "init")]
    from_scratch: bool,
    /// Continue a run that was killed, from its last checkpoint; the other options must be those of that run
    #[arg(long)]
    resume: bool,
    /// Steps between two checkpoints (in MODEL_DIR.run, removed at the end); 0 saves none
    #[arg(long, default_value_t = 200, value_name = "N")]
    checkpoint_every: usize,
    /// Optimiser steps
    #[arg(long, default_value_t = 1000, value_name = "N")]
    steps: usize,
    /// Learning rate at the start [default: 0.001, or 0.004 from weights that have not been trained]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Steps over which the learning rate rises to its start
    #[arg(long, default_value_t = 0, value_name = "N")]
    warmup: usize,
    /// Patches per step
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Voxel spacing: plan (the median of the scans), own (each scan's own), or three lengths in mm [default: plan, or
    /// that of --init]
    #[arg(long, value_name = "plan|own|Z,Y,X", value_parser = parse_spacing)]
    spacing: Option<Spacing>,
    /// HU that become -1 and 1 [default: planned from the labelled voxels, or those of --init]
    #[arg(long, value_name = "LOW,HIGH", value_parser = parse_window, allow_hyphen_values = true)]
    hu_window: Option<[f32; 2]>,
    /// Patch in voxels after resampling [default: 16,32,32, smaller for smaller scans, or that of --init]
    #[arg(long, value_name = "Z,Y,X", value_parser = parse_triple::<usize>)]
    patch: Option<[usize; 3]>,
    /// Share of patches around a structure, each structure equally often; the others lie anywhere
    #[arg(long, value_name = "SHARE")]
    focus: Option<f64>,
    /// Random changes of patches: none, light (mirrored sides where all have a partner, small rotations and scalings,
    /// contrast, brightness, gamma, noise) or full (larger ones, elastic deformation, blur, low resolution)
    /// [default: light]
    #[arg(long)]
    augment: Option<Augment>,
    /// Largest norm of the gradient; longer ones are shortened; 0 allows any [default: 12]
    #[arg(long, value_name = "NORM")]
    clip_norm: Option<f64>,
    /// Leave the encoder's weights as they are for the first N steps (the statistics of its normalisations go on to follow
    /// the data)
    #[arg(long, default_value_t = 0, value_name = "N")]
    freeze_encoder: usize,
    /// Keep a running average of the weights with this decay, such as 0.99; it is what is validated and saved; 0 keeps none
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
    /// End after N validations without a better result; 0 never
    #[arg(long, default_value_t = 0, value_name = "N")]
    patience: usize,
    /// Test-time augmentation of validations: none, or flips (the mean with the mirrored scan; twice the time)
    #[arg(long, default_value = "none", value_parser = ["none", "flips"])]
    tta: String,
    /// Make a model that takes clicks: further input channels show where a person clicked for each structure and for the
    /// background, and clicks are simulated on its mistakes; it goes on to segment without clicks too. A model that takes
    /// clicks already stays one
    #[arg(long)]
    clicks: bool,
    /// Threads that make patches [default: a quarter of the cores]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    loaders: usize,
    /// Only make N patches and print how many a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    measure_loading: Option<u64>,
    /// Share of the cases held out to choose the best weights
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    val_split: f64,
    /// Steps between two validations [default: a fifth of the steps]
    #[arg(long, value_name = "N")]
    validate_every: Option<usize>,
    /// Seed of everything random
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Write a page with the curves of the run, box plots and pictures of the validation cases, and what was left out; the
    /// curves as PNG beside it
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda, cuda:N, vulkan or vulkan:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Numbers of activations: f32, bf16 (on a GPU; weights, statistics and sums stay f32) or auto, which is f32
    #[arg(long, default_value = "auto")]
    precision: PrecisionChoice,
}

/// Trains; Ctrl-C ends it and keeps the best weights so far.
///
/// # Errors
/// Data that cannot be used, an output that exists, a diverging loss. Nothing is written then.
pub fn run(args: TrainArgs) -> anyhow::Result<()> {
    if args.out.exists() {
        bail!(
            "{} is there already; models are never overwritten. Name another directory",
            args.out.display()
        );
    }
    if let Some(path) = &args.report {
        report::check(path)?;
    }
    args.check()?;
    gpu::announce(args.device)?;
    let dataset = Dataset::open(&args.data)?;
    let (cases, validation) = split(dataset.cases, args.seed, args.val_split);
    let model = args.describe(dataset.labels, &cases)?;
    let names = model.labels.names().to_vec();
    say_plan(&model);
    if args.tta == "flips" && model.labels.mirrored().is_none() {
        bail!(Usage(format!("--tta flips: {ONE_SIDED}")));
    }
    let options = args.options(model.trained && !args.from_scratch);
    eprintln!(
        "learning from {} cases, choosing on {}",
        cases.len(),
        validation.len()
    );
    let folder = run_folder(&args.out);
    let checkpoint = CheckpointPlan {
        path: folder.join("checkpoint.safetensors"),
        every: args.checkpoint_every,
        share: None,
        keep: false,
        resume: args.resume,
    };
    if checkpoint.path.exists() && !args.resume {
        bail!(
            "{} holds a run that was killed. Continue it with --resume, or remove the folder, or name another output",
            folder.display()
        );
    }
    let request = TrainRequest {
        cases,
        validation,
        model,
        init: args.init.clone().filter(|_| !args.from_scratch),
        checkpoint: Some(checkpoint),
        out: args.out.clone(),
        options,
    };

    if let Some(count) = args.measure_loading {
        let rate_hz = measure_loading(&request, count, &mut |event| {
            if let TrainEvent::Case(note) = event {
                eprintln!("{note}");
            }
            ControlFlow::Continue(())
        })?;
        println!("{rate_hz:.1} patches/s");
        return Ok(());
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot listen for Ctrl-C")?;
    let mut curve = CurveWriter::new(&args.out, names.clone());
    let mut progress = Progress::new("train", args.steps);
    let report = crate::model::train(&request, &mut |event| {
        match event {
            TrainEvent::Step {
                step,
                steps,
                loss,
                learning_rate,
                rate_hz,
                waiting,
            } => {
                curve.step(step, loss, learning_rate, waiting);
                let waiting = waiting * 100.0;
                let message = format!("loss {loss:.4}, {rate_hz:.2} it/s, waiting {waiting:.1} %");
                progress.set(step, steps, &message);
            }
            TrainEvent::Case(note) => {
                curve.case(note);
                progress.note(&note.to_string());
            }
            TrainEvent::RolledBack {
                step,
                back_to,
                reason,
                rate_scale,
            } => {
                curve.rolled_back(step, back_to, reason, rate_scale);
                progress.note(&format!(
                    "step {step}: {reason}; back to the weights of step {back_to}, with the learning rate times {rate_scale}"
                ));
            }
            TrainEvent::Validated {
                step,
                dice,
                mean,
                best,
            } => {
                curve.validation(step, dice, mean, best);
                progress.note(&format!(
                    "step {step}: validation Dice {mean:.4}{}",
                    if best { ", the best so far" } else { "" }
                ));
            }
            TrainEvent::Resumed(step) => progress.resume(step),
            TrainEvent::Between => {}
        }
        if interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    drop(progress);
    let curve = curve.finish()?;
    if let Some(init) = &report.init {
        eprintln!(
            "{} tensors taken from the model it started from, {} started afresh",
            init.loaded.len(),
            init.missing.len() + init.reshaped.len()
        );
    }
    for (name, dice) in names.iter().zip(&report.dice) {
        println!(
            "{name}: {}",
            dice.map_or_else(
                || "not in the validation cases".to_owned(),
                |dice| format!("Dice {dice:.4}")
            )
        );
    }
    let ended = match report.ended_early {
        None => "trained",
        Some(EndedEarly::Stopped) => "stopped after",
        Some(EndedEarly::Patience) => "no better for as long as asked, ended after",
    };
    let skipped = report.notes.iter().filter(|note| note.skipped).count();
    if skipped > 0 {
        println!("{skipped} cases were skipped; training.jsonl in the model says why");
    }
    println!(
        "{ended} {} steps, loss {:.4}: {}",
        report.steps,
        report.loss,
        args.out.display()
    );
    println!(
        "loading: {:.1} patches/s; the trainer waited {:.1} % of its time",
        report.samples_per_s,
        report.waiting * 100.0
    );
    if let Some(path) = &args.report {
        let skipped = |case: &&TrainCase| {
            let mut notes = report.notes.iter();
            !notes.any(|note| note.skipped && note.case == case.name)
        };
        let usable: Vec<_> = request.validation.iter().filter(skipped).cloned().collect();
        let judged = match args.judge(&usable, &folder.join("validation")) {
            Ok(judged) => judged,
            Err(error) => {
                eprintln!("the report is without the validation cases: {error:#}");
                None
            }
        };
        let name = &report.manifest.name;
        let png = report::write_training(path, name, &names, &curve, judged.as_ref())?;
        eprintln!("report: {} and {}", path.display(), png.display());
    }
    // Nothing but the checkpoint was in it.
    let _ = std::fs::remove_dir(&folder);
    Ok(())
}

impl TrainArgs {
    /// What the model that was made says of the cases; nothing where there are none.
    fn judge(&self, cases: &[TrainCase], folder: &Path) -> anyhow::Result<Option<report::Judged>> {
        if cases.is_empty() {
            return Ok(None);
        }
        let mut model = Segmenter::load(&self.out, self.device, PrecisionChoice::Auto)?;
        if self.tta == "flips" {
            model = model.with_flips()?;
        }
        report::Judged::of_model(&model, cases, folder).map(Some)
    }

    fn check(&self) -> anyhow::Result<()> {
        let share = 0.0..=1.0;
        let wrong = if !(0.0..1.0).contains(&self.val_split) {
            Some(format!(
                "--val-split is {}; it must be at least 0 and below 1",
                self.val_split
            ))
        } else if self.focus.is_some_and(|focus| !share.contains(&focus)) {
            Some("--focus must be from 0 to 1".to_owned())
        } else if self.ema.is_some_and(|decay| !(0.0..1.0).contains(&decay)) {
            Some("--ema must be at least 0 and below 1".to_owned())
        } else if self
            .clip_norm
            .is_some_and(|norm| !(norm.is_finite() && norm >= 0.0))
        {
            Some("--clip-norm must be 0 or a positive number".to_owned())
        } else if self
            .learning_rate
            .is_some_and(|rate| !(rate.is_finite() && rate > 0.0))
        {
            Some("--learning-rate must be a positive number".to_owned())
        } else {
            None
        };
        match wrong {
            Some(reason) => bail!(Usage(reason)),
            None => Ok(()),
        }
    }

    /// What the result will be: the model to start from, or a plan from the data; what is given goes before both.
    fn describe(
        &self,
        labels: LabelSchema,
        cases: &[TrainCase],
    ) -> anyhow::Result<ModelDescription> {
        let survey = Survey::of(cases, &labels);
        let lineage = |data| Lineage {
            data: Some(data),
            ..Lineage::made_by("trained")
        };
        let given = Given {
            spacing: self.spacing.unwrap_or_default(),
            hu_window: self.hu_window,
            patch: self.patch,
        };
        let model = match &self.init {
            Some(dir) => {
                let model = Manifest::read(dir)?.model;
                let given = Given {
                    spacing: self
                        .spacing
                        .unwrap_or(match model.preprocessing.spacing_mm {
                            Some(mm) => Spacing::Millimetres(mm),
                            None => Spacing::Own,
                        }),
                    hu_window: Some(self.hu_window.unwrap_or(model.preprocessing.hu_window)),
                    patch: Some(self.patch.unwrap_or(model.patch)),
                };
                let classes = labels.class_count();
                let network = PctNetConfig {
                    class_num: classes,
                    in_chns: match model.clicks {
                        Some(_) => ClickGuidance::channels(classes),
                        None => model.network.in_chns,
                    },
                    ..model.network
                };
                let (preprocessing, patch, data) = survey.plan(&network, &given);
                ModelDescription {
                    network,
                    labels,
                    preprocessing,
                    patch,
                    lineage: lineage(data),
                    trained: model.trained && !self.from_scratch,
                    ..model
                }
            }
            None => {
                let small = |patch| PctNetConfig::pct_net_s(labels.class_count(), patch, 1);
                let (preprocessing, patch, data) =
                    survey.plan(&small(PctNetConfig::SMALL_PATCH), &given);
                ModelDescription {
                    name: "pct-net-s".to_owned(),
                    // Its attention windows fit the patch that it will see.
                    network: small(patch),
                    labels,
                    preprocessing,
                    patch,
                    clicks: None,
                    trained: false,
                    lineage: lineage(data),
                }
            }
        };
        let model = if self.clicks {
            let spacing_mm = model.preprocessing.spacing_mm.or(survey.spacing_mm());
            with_clicks(model, spacing_mm)
        } else {
            model
        };
        let fits = model.network.check_patch(model.patch);
        fits.map_err(|error| Usage(error.to_string()))?;
        Ok(model)
    }

    fn options(&self, trained: bool) -> TrainOptions {
        let defaults = TrainOptions::starting_from(trained);
        TrainOptions {
            steps: self.steps,
            batch: self.batch as usize,
            learning_rate: self.learning_rate.unwrap_or(defaults.learning_rate),
            warmup: self.warmup,
            clip_norm: self.clip_norm.unwrap_or(defaults.clip_norm),
            freeze_encoder: self.freeze_encoder,
            ema: self
                .ema
                .map_or(defaults.ema, |decay| (decay > 0.0).then_some(decay)),
            focus: self.focus.unwrap_or(defaults.focus),
            augment: self.augment.unwrap_or(defaults.augment),
            validate_every: self.validate_every.unwrap_or(self.steps.div_ceil(5)),
            patience: self.patience,
            flips: self.tta == "flips",
            seed: self.seed,
            loaders: self.loaders,
            device: self.device,
            precision: self.precision,
            weight_decay: defaults.weight_decay,
        }
    }
}

/// A model that takes clicks. It has a name of its own, so that a server shows it beside the one that it came from.
fn with_clicks(model: ModelDescription, spacing_mm: Option<[f64; 3]>) -> ModelDescription {
    if model.clicks.is_some() {
        return model;
    }
    ModelDescription {
        name: format!("{}-clicks", model.name),
        clicks: Some(spacing_mm.map_or_else(ClickGuidance::default, ClickGuidance::at_spacing)),
        network: PctNetConfig {
            in_chns: ClickGuidance::channels(model.network.class_num),
            ..model.network
        },
        ..model
    }
}

/// What is learned, from what, and how it is looked at.
fn say_plan(model: &ModelDescription) {
    let Some(data) = &model.lineage.data else {
        return;
    };
    for reason in &data.reasons {
        eprintln!("{reason}");
    }
    for class in &data.classes {
        eprintln!(
            "{}: in {} of {} cases in which it was annotated, {} voxels",
            class.name, class.cases, class.annotated, class.voxels
        );
    }
}

/// Cases to learn from and cases to choose the best weights on. A case's side depends on its name and the seed alone; at
/// least one case stays for learning.
fn split(cases: Vec<TrainCase>, seed: u64, share: f64) -> (Vec<TrainCase>, Vec<TrainCase>) {
    let split = Rng::new(seed).named("split");
    let (mut held_out, mut learning): (Vec<_>, Vec<_>) = cases
        .into_iter()
        .partition(|case| split.named(&case.name).uniform() < share);
    if learning.is_empty() {
        learning.append(&mut held_out);
    }
    (learning, held_out)
}
