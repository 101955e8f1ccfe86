//! The command: what is asked for, and what is said about it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::{output, phantoms};
use crate::cli::dataset::Dataset;
use crate::cli::progress::Progress;
use crate::cli::{Usage, gpu, report};
use crate::model::{DeviceChoice, Manifest, ModelError, Passes, PctNetConfig, create_untrained};
use crate::rounds::simulate::{self, Event, Settings, Study, Summary};
use crate::rounds::strategy;

/// The strategy that every other one is to be compared with.
const BASELINE: &str = "foreground_random";

/// Arguments of `fewlabel simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Folder with dataset.json, imagesTr and labelsTr (Medical Segmentation Decathlon), or a MONAI Label studies folder
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Strategies, separated by commas, as /info/ of a server names them; foreground_random is added, as the baseline
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "A,B",
        default_value = "entropy,clasp,foreground_random,random"
    )]
    strategies: Vec<String>,
    /// Seeds; each has its own initial cases
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N,N",
        default_value = "1,2,3"
    )]
    seeds: Vec<u64>,
    /// Rounds after the initial one
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Cases that a strategy chooses for each round
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    query: usize,
    /// Folder for the results; the same command goes on where it was interrupted
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Cases to begin with [default: that of --query]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    initial: Option<usize>,
    /// Cases to test on, never chosen from [default: a quarter of the cases]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    test: Option<usize>,
    /// Optimiser steps of each training
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Patches per step [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: Option<u16>,
    /// Model that every round starts from [default: pct-net-s with random weights]
    #[arg(long, value_name = "MODEL_DIR")]
    init: Option<PathBuf>,
    /// Channels of the five levels of the network with random weights; a narrow one simulates faster, and its Dice are lower
    /// [default: those of pct-net-s]
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "A,B,C,D,E",
        conflicts_with = "init"
    )]
    channels: Vec<usize>,
    /// How often a model is asked about a patch: auto, single, flips (with left and right exchanged) or dropout:N
    #[arg(long, default_value = "auto")]
    passes: Passes,
    /// Leave out the model of all cases, which foreground efficiency is measured against
    #[arg(long)]
    no_full: bool,
    /// Make N synthetic cases in --data first, unless it is there
    #[arg(long, value_name = "N")]
    phantoms: Option<usize>,
    /// Print the summary as one JSON document on standard output
    #[arg(long)]
    json: bool,
    /// Where to compute: auto, cpu, cuda, cuda:N, vulkan or vulkan:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| "expected a whole number from 1".to_owned())
}

/// Simulates; Ctrl-C ends it, and the same command goes on.
///
/// # Errors
/// Unknown strategies, too few cases, a folder with the results of another simulation.
pub fn run(args: SimulateArgs) -> anyhow::Result<()> {
    let strategies = args.strategies()?;
    gpu::announce(args.device)?;
    if let Some(count) = args.phantoms
        && !args.data.join("dataset.json").exists()
    {
        phantoms::make(&args.data, count)?;
    }
    let dataset = Dataset::open(&args.data)?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let parent = args.parent(&dataset)?;
    let manifest = Manifest::read(&parent)?;
    if manifest.labels != dataset.labels {
        eprintln!(
            "{} segments other structures: its heads start afresh in every training",
            parent.display()
        );
    }
    let settings = Settings {
        strategies,
        seeds: args.seeds.clone(),
        rounds: args.rounds,
        query: args.query,
        initial: args.initial.unwrap_or(args.query),
        test: args.test.unwrap_or((dataset.cases.len() / 4).max(1)),
        steps: args.steps,
        batch: args.batch,
        passes: args.passes,
        full: !args.no_full,
        parent_sha256: manifest.weights_sha256,
    };
    remember(&args.out, &settings)?;
    let structures = dataset.labels.names().to_vec();
    let study = Study::new(&settings, parent, dataset.labels, dataset.cases)?;
    eprintln!(
        "{} cases to choose from, {} to test on; {} trainings of {} steps",
        study.pool.len(),
        study.test.len(),
        trainings(&settings),
        settings.steps
    );
    let records = match simulated(&args, &settings, &study) {
        Err(error) if matches!(error.downcast_ref(), Some(ModelError::Stopped)) => {
            bail!("stopped; the same command goes on from here")
        }
        records => records?,
    };
    let foreground = study
        .pool
        .iter()
        .map(|(_, case)| case.foreground_voxels())
        .sum();
    let summary = simulate::summarise(&settings.strategies, &settings.seeds, &records, foreground);
    output::write(&args.out, &structures, &settings, &records, &summary)?;
    let page = args.out.join("report.html");
    let png = report::write_simulation(&page, &settings, &structures, &records, &summary)?;
    if args.json {
        println!(
            "{}",
            json!({ "settings": settings, "structures": structures, "summary": summary })
        );
    } else {
        say(&summary);
    }
    eprintln!(
        "{}, {}, rounds.csv and summary.json in {}",
        page.display(),
        png.display(),
        args.out.display()
    );
    Ok(())
}

impl SimulateArgs {
    /// The strategies asked for, each once, and the baseline.
    fn strategies(&self) -> anyhow::Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        for name in self.strategies.iter().map(|name| name.trim()) {
            strategy::find(name).map_err(|error| Usage(error.to_string()))?;
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        if !names.iter().any(|name| name == BASELINE) {
            eprintln!("{BASELINE} is added: it is the baseline that a strategy has to beat");
            names.push(BASELINE.to_owned());
        }
        if self.seeds.is_empty() {
            bail!(Usage("--seeds needs at least one number".to_owned()));
        }
        Ok(names)
    }

    /// The model that every round starts from.
    fn parent(&self, dataset: &Dataset) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.init {
            return Ok(dir.clone());
        }
        let dir = self.out.join("parent");
        if Manifest::read(&dir).is_err() {
            let patch = PctNetConfig::SMALL_PATCH;
            let mut network = PctNetConfig::pct_net_s(dataset.labels.class_count(), patch, 1);
            if !self.channels.is_empty() {
                network.feature_chns = self.channels.as_slice().try_into().map_err(|_| {
                    Usage("--channels needs five numbers such as 12,24,48,96,192".to_owned())
                })?;
            }
            let fits = network.validate();
            fits.map_err(|error| Usage(format!("--channels: {error}")))?;
            create_untrained(&dir, "pct-net-s", &network, &dataset.labels, 1)?;
        }
        Ok(dir)
    }
}

/// Notes the settings in the output folder, or compares with what is noted there.
fn remember(out: &Path, settings: &Settings) -> anyhow::Result<()> {
    let path = out.join("settings.json");
    if path.exists() {
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let before: Settings = serde_json::from_slice(&text)
            .with_context(|| format!("{}: not the settings of a simulation", path.display()))?;
        if before != *settings {
            bail!(Usage(format!(
                "{} holds a simulation with other settings (settings.json); nothing was changed. Name another folder",
                out.display()
            )));
        }
        return Ok(());
    }
    std::fs::write(&path, serde_json::to_vec_pretty(settings)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn trainings(settings: &Settings) -> usize {
    let of_seed = 1 + settings.strategies.len() * settings.rounds + usize::from(settings.full);
    settings.seeds.len() * of_seed
}

fn simulated(
    args: &SimulateArgs,
    settings: &Settings,
    study: &Study,
) -> anyhow::Result<Vec<simulate::RoundRecord>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot listen for Ctrl-C")?;
    let total = trainings(settings);
    let (mut progress, mut done, mut what) = (Progress::new("simulate", total), 0, String::new());
    let records = simulate::run(settings, study, &args.out, args.device, &mut |event| {
        match event {
            Event::Round {
                strategy,
                seed,
                round,
            } => what = format!("{strategy}, seed {seed}, round {round}"),
            Event::Scored(n, of) => {
                progress.set(done, total, &format!("{what}: scored {n} of {of}"))
            }
            Event::Step(n, of) => progress.set(done, total, &format!("{what}: step {n} of {of}")),
            Event::Between => {}
            Event::Done(record) => {
                done += 1;
                let dice = record.mean_dice;
                progress.set(done, total, &format!("{what}: Dice {dice:.4}"));
            }
        }
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    Ok(records)
}

fn say(summary: &Summary) {
    for strategy in &summary.strategies {
        println!(
            "{}: area under the curve {}, last round {}",
            strategy.strategy,
            report::with_interval(&strategy.aubc),
            report::with_interval(&strategy.last)
        );
    }
    if let Some(full) = &summary.full {
        println!("all cases of the pool: {}", report::with_interval(full));
    }
}
