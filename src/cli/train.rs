//! `fewlabel train`: fine-tunes on a folder of labelled scans, without a server.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::Args;

use super::curve::CurveWriter;
use super::dataset::Dataset;
use super::progress::Progress;
use super::report;
use crate::imaging::{Budget, read_scan};
use crate::model::pretrain::run_folder;
use crate::model::{
    CheckpointPlan, DeviceChoice, Lineage, Manifest, ModelDescription, PctNetConfig, TrainCase,
    TrainEvent, TrainOptions, TrainRequest, plan_preprocessing,
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
    /// Patches per step
    #[arg(long, default_value_t = 2, value_name = "N")]
    batch: usize,
    /// Share of the cases held out to choose the best weights
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    val_split: f64,
    /// Steps between two validations [default: a fifth of the steps]
    #[arg(long, value_name = "N")]
    validate_every: Option<usize>,
    /// Seed of everything random
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Write a page with the curves of the run, and the figure as PNG beside it
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
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
    let dataset = Dataset::open(&args.data)?;
    let (cases, validation) = split(dataset.cases, args.seed, args.val_split);
    let model = match &args.init {
        Some(dir) => {
            let model = Manifest::read(dir)?.model;
            let network = PctNetConfig {
                class_num: dataset.labels.class_count(),
                ..model.network
            };
            ModelDescription {
                network,
                labels: dataset.labels,
                lineage: Lineage::made_by("trained"),
                trained: model.trained && !args.from_scratch,
                ..model
            }
        }
        None => {
            let mut scans = Vec::new();
            for case in &cases {
                let scan = read_scan(&case.image, &Budget::default());
                scans.push(
                    scan.with_context(|| case.image.display().to_string())?
                        .volume
                        .geometry,
                );
            }
            ModelDescription {
                name: "pct-net-s".to_owned(),
                network: PctNetConfig::pct_net_s(
                    dataset.labels.class_count(),
                    PctNetConfig::SMALL_PATCH,
                    1,
                ),
                labels: dataset.labels,
                preprocessing: plan_preprocessing(&scans),
                patch: PctNetConfig::SMALL_PATCH,
                trained: false,
                lineage: Lineage::made_by("trained"),
            }
        }
    };
    let names = model.labels.names().to_vec();
    let defaults = TrainOptions::starting_from(model.trained && !args.from_scratch);
    let options = TrainOptions {
        steps: args.steps,
        learning_rate: args.learning_rate.unwrap_or(defaults.learning_rate),
        validate_every: args.validate_every.unwrap_or(args.steps.div_ceil(5)),
        seed: args.seed,
        device: args.device,
        batch: args.batch,
        ..defaults
    };
    eprintln!(
        "learning from {} cases, choosing on {}",
        cases.len(),
        validation.len()
    );
    let folder = run_folder(&args.out);
    let checkpoint = CheckpointPlan {
        path: folder.join("checkpoint.safetensors"),
        every: args.checkpoint_every,
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
        init: args.init.filter(|_| !args.from_scratch),
        checkpoint: Some(checkpoint),
        out: args.out.clone(),
        options,
    };

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
            } => {
                curve.step(step, loss, learning_rate);
                progress.set(step, steps, &format!("loss {loss:.4}, {rate_hz:.2} it/s"));
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
    // Nothing but the checkpoint was in it.
    let _ = std::fs::remove_dir(&folder);
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
    let ended = if report.stopped {
        "stopped after"
    } else {
        "trained"
    };
    println!(
        "{ended} {} steps, loss {:.4}: {}",
        report.steps,
        report.loss,
        args.out.display()
    );
    if let Some(path) = &args.report {
        let png = report::write_training(path, &report.manifest.name, &names, &curve)?;
        eprintln!("report: {} and {}", path.display(), png.display());
    }
    Ok(())
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
