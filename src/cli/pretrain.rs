//! `fewlabel pretrain`: learns from scans without labels.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::Args;

use super::progress::Progress;
use super::{Usage, parse_spacing, parse_triple, parse_window};
use crate::model::pretrain::{
    Layout, PretrainEvent, PretrainOptions, PretrainRequest, ScanNote, find_scans,
    measure_pipeline, pretrain, run_folder, split_by_patient,
};
use crate::model::volume_fusion::{FusionOptions, Scheme};
use crate::model::{DeviceChoice, PctNetConfig, Schedule, Spacing};

/// Voxels of all samples of a scan that was read, about.
const VOXELS_PER_SCAN: usize = 1 << 23;
/// Fewest and most samples of a scan that was read.
const SAMPLES_PER_SCAN: [usize; 2] = [4, 32];

/// Arguments of `fewlabel pretrain`.
#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// Folder with scans (.nii.gz, .nii, .nrrd, DICOM series as folders or .zip), searched with its subfolders; folders of labels are left out
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Model directory to make; must not exist. Curves, the list of skipped scans and the checkpoint lie in MODEL_DIR.run
    #[arg(
        long,
        value_name = "MODEL_DIR",
        required_unless_present = "measure_loading"
    )]
    out: Option<PathBuf>,
    /// Continue an interrupted run; the other options must be those of that run
    #[arg(long)]
    resume: bool,
    /// Optimiser steps
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = at_least_1())]
    steps: u64,
    /// Seed of everything random
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Network: pct-net-s or pct-net
    #[arg(long, default_value = "pct-net-s", value_parser = ["pct-net-s", "pct-net"])]
    network: String,
    /// Patch in voxels; fine-tuning will use it too [default: 16,32,32 for pct-net-s, 64,128,128 for pct-net]
    #[arg(long, value_name = "Z,Y,X", value_parser = parse_triple::<usize>)]
    patch: Option<[usize; 3]>,
    /// How patches are fused: blocks (a grid, one scan) or boxes (overlapping, two scans)
    #[arg(long, default_value = "blocks")]
    scheme: Scheme,
    /// Fusion classes, K + 1
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=256))]
    classes: u16,
    /// Patches of a forward pass
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = at_least_1())]
    batch: u64,
    /// Forward passes of a step
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_1())]
    accumulate: u64,
    /// Learning rate at the start [default: 0.001 * batch * accumulate / 4]
    #[arg(long)]
    learning_rate: Option<f64>,
    /// How the rate falls: polynomial, or step (halved after each fifth of the run)
    #[arg(long, default_value = "polynomial")]
    schedule: Schedule,
    /// Voxel spacing to learn and fine-tune at: plan (from the scans), own (no resampling) or millimetres Z,Y,X
    #[arg(long, default_value = "plan", value_parser = parse_spacing)]
    spacing: Spacing,
    /// HU range that becomes [-1, 1], for fine-tuning too [default: as planned for training]
    #[arg(long, value_name = "LOW,HIGH", value_parser = parse_window, allow_hyphen_values = true)]
    hu_window: Option<[f32; 2]>,
    /// Crop each scan to the body first
    #[arg(long)]
    body_crop: bool,
    /// Share of the patients to validate on
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    val_split: f64,
    /// A patient is what lies below one folder of this depth in the data folder
    #[arg(long, default_value_t = 1, value_name = "N")]
    patient_level: usize,
    /// Steps between two validations [default: a twentieth of the steps]
    #[arg(long, value_name = "N")]
    validate_every: Option<usize>,
    /// Samples to validate on
    #[arg(long, default_value_t = 32, value_name = "N")]
    validation_samples: usize,
    /// Steps between two checkpoints
    #[arg(long, default_value_t = 500, value_name = "N")]
    checkpoint_every: usize,
    /// Scans whose samples are mixed
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = at_least_1())]
    mix_scans: u64,
    /// Samples from a scan each time it is read [default: 4 to 32, fewer for larger patches]
    #[arg(long, value_name = "N", value_parser = at_least_1())]
    samples_per_scan: Option<u64>,
    /// Threads that read scans [default: a quarter of the cores]
    #[arg(long, value_name = "N", value_parser = at_least_1())]
    loaders: Option<u64>,
    /// Only make N samples and print how many a second
    #[arg(long, value_name = "N", value_parser = at_least_1())]
    measure_loading: Option<u64>,
}

fn at_least_1() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=1 << 40)
}

/// Pretrains; Ctrl-C saves a checkpoint and ends the run with exit code 1.
///
/// # Errors
/// No scan that can be read, an output that exists, a diverging loss; the last checkpoint stays.
pub fn run(args: PretrainArgs) -> anyhow::Result<()> {
    if !(0.0..1.0).contains(&args.val_split) {
        bail!(Usage(format!(
            "--val-split is {}; it must be at least 0 and below 1",
            args.val_split
        )));
    }
    let request = request(&args)?;
    if let Some(count) = args.measure_loading {
        let (samples_per_s, notes) = measure_pipeline(&request, count, request.loaders)?;
        notes.iter().for_each(|note| eprintln!("{}", say(note)));
        println!(
            "{samples_per_s:.1} samples/s with {} loader threads",
            request.loaders
        );
        return Ok(());
    }
    eprintln!(
        "learning from {} scans, validating on {}",
        request.scans.len(),
        request.validation.len()
    );
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot listen for Ctrl-C")?;
    let mut progress = Progress::new("pretrain", request.options.steps);
    let report = pretrain(&request, &mut |event| {
        match event {
            PretrainEvent::Resumed(step) => progress.resume(step),
            PretrainEvent::Step {
                step,
                steps,
                loss,
                rate_hz,
                waiting,
            } => {
                let waiting = waiting * 100.0;
                let message = format!("loss {loss:.4}, {rate_hz:.2} it/s, waiting {waiting:.0} %");
                progress.set(step, steps, &message);
            }
            PretrainEvent::Validated { step, loss, dice } => {
                let dice: Vec<String> = dice
                    .iter()
                    .map(|dice| dice.map_or("-".to_owned(), |dice| format!("{dice:.3}")))
                    .collect();
                let dice = dice.join(" ");
                progress.note(&format!(
                    "step {step}: validation loss {loss:.4}, pseudo-Dice {dice}"
                ));
            }
            PretrainEvent::Scan(note) => progress.note(&say(note)),
            PretrainEvent::Between => {}
        }
        if interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    drop(progress);
    let folder = run_folder(&request.out);
    if report.manifest.is_none() {
        bail!(
            "interrupted after {} steps; the state is saved in {}. Repeat the command with --resume to go on",
            report.steps,
            folder.display()
        );
    }
    let skipped = report.notes.iter().filter(|note| note.skipped).count();
    if skipped > 0 {
        eprintln!(
            "{skipped} scans were skipped; {} says why",
            folder.join("scans.jsonl").display()
        );
    }
    let stats = report.pipeline;
    println!(
        "pretrained {} steps: {}\nloading: {:.1} samples/s from {} threads, {} scans read; the trainer waited {:.1} % of its time",
        report.steps,
        request.out.display(),
        stats.samples_per_s,
        request.loaders,
        stats.scans_read,
        report.waiting * 100.0
    );
    Ok(())
}

fn say(note: &ScanNote) -> String {
    let what = if note.skipped { "skipped" } else { "note on" };
    format!("{what} {}: {}", note.scan, note.reason)
}

fn request(args: &PretrainArgs) -> anyhow::Result<PretrainRequest> {
    let scans = find_scans(&args.data, args.patient_level)?;
    if scans.is_empty() {
        bail!(
            "{}: no scan found (looked for .nii.gz, .nii, .nrrd and DICOM series, also in subfolders)",
            args.data.display()
        );
    }
    let (scans, validation) = split_by_patient(scans, args.seed, args.val_split);
    let full = args.network == "pct-net";
    let patch = args.patch.unwrap_or(if full {
        [64, 128, 128]
    } else {
        PctNetConfig::SMALL_PATCH
    });
    let make = if full {
        PctNetConfig::pct_net
    } else {
        PctNetConfig::pct_net_s
    };
    let network = make(usize::from(args.classes), patch, 1);
    network
        .validate()
        .map_err(|error| Usage(error.to_string()))?;
    let (batch, accumulate) = (args.batch as usize, args.accumulate as usize);
    let [fewest, most] = SAMPLES_PER_SCAN;
    let usual = (VOXELS_PER_SCAN / patch.iter().product::<usize>().max(1)).clamp(fewest, most);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let steps = args.steps as usize;
    Ok(PretrainRequest {
        name: args.network.clone(),
        network,
        scans,
        validation,
        out: args.out.clone().unwrap_or_default(),
        options: PretrainOptions {
            steps,
            batch,
            accumulate,
            learning_rate: args
                .learning_rate
                .unwrap_or(PretrainOptions::linear_rate(batch, accumulate)),
            weight_decay: 1e-5,
            schedule: args.schedule,
            seed: args.seed,
            fusion: FusionOptions {
                scheme: args.scheme,
                classes: usize::from(args.classes),
                patch,
            },
            layout: Layout {
                visits: args.mix_scans as usize,
                samples: args
                    .samples_per_scan
                    .map_or(usual, |samples| samples as usize),
            },
            spacing: args.spacing,
            hu_window: args.hu_window,
            body_crop: args.body_crop,
        },
        validate_every: args.validate_every.unwrap_or(steps.div_ceil(20)),
        validation_samples: args.validation_samples,
        checkpoint_every: args.checkpoint_every,
        loaders: args
            .loaders
            .map_or((cores / 4).max(1), |threads| threads as usize),
        resume: args.resume,
        device: args.device,
    })
}
