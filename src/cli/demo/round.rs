//! The round itself: studies, server, annotator, training, comparison.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::json;

use super::annotator::Annotator;
use super::report::{self, Scores};
use super::server::{self, Server};
use super::studies::{Studies, Study};
use crate::cli::Usage;
use crate::cli::progress::Progress;

/// Optimiser steps of the round: what two CPU cores do in about two minutes.
const STEPS: usize = 600;
/// Pause between two looks at the training.
const POLL: Duration = Duration::from_millis(500);
/// Folder that is made when none is given.
const DEFAULT_DIR: &str = "fewlabel-demo";

/// Arguments of `fewlabel demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Folder to make; must be empty when it exists [default: fewlabel-demo here, or a new name when that is taken]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Seed of the synthetic studies and of the training
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Makes studies, serves them, annotates, trains and compares.
///
/// # Errors
/// [`Usage`] for a folder that holds something; anything else when a step of the round failed or was interrupted.
pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
    let dir = empty_folder(args.dir)?;

    let studies = Studies::make(&dir, args.seed)?;
    println!(
        "{}: {} synthetic studies, {} to label and {} to judge by",
        dir.display(),
        studies.to_label.len() + studies.held_out.len(),
        studies.to_label.len(),
        studies.held_out.len(),
    );
    let server = Server::start(&studies.folder, &dir.join("server.log"), args.seed)?;
    println!(
        "serving at {}, log in {}",
        server.url,
        dir.join("server.log").display()
    );
    let clinician = Annotator::connect(&server.url, &interrupted)?;

    let before = clinician.propose_all("before", &studies.held_out)?;
    annotate(&clinician, &studies.to_label)?;
    train(&clinician, args.seed, &server)?;
    let after = clinician.propose_all("after", &studies.held_out)?;

    let scores = Scores::new(&studies.held_out, &before, &after);
    println!("\n{scores}");
    let pictures = dir.join("overlays");
    report::draw(&pictures, &studies.held_out, &before, &after)?;
    println!(
        "pictures (before, after, reference): {}",
        pictures.display()
    );
    server.stop()?;
    println!(
        "done in {:.0} s; to keep working on these studies:\n",
        started.elapsed().as_secs_f64()
    );
    println!("    {}", server::command_line(&studies.folder));
    Ok(())
}

/// Labels studies as long as the server offers one of those to label.
fn annotate(clinician: &Annotator, to_label: &[Study]) -> anyhow::Result<()> {
    for n in 1..=to_label.len() {
        let id = clinician.next_case()?;
        let study = to_label
            .iter()
            .find(|study| study.id == id)
            .with_context(|| {
                format!("the server offered {id}, which is not one of the studies to label")
            })?;
        let proposal = clinician.propose(&id)?;
        // The script corrects every proposal to the truth, which it knows.
        clinician.submit(study)?;
        let dice = report::mean_dice(study, &proposal).unwrap_or(0.0);
        println!(
            "label {n} of {}: {id}, proposal had Dice {dice:.2}, corrected and submitted",
            to_label.len()
        );
    }
    Ok(())
}

/// Starts a round and waits until it is published.
fn train(clinician: &Annotator, seed: u64, server: &Server) -> anyhow::Result<()> {
    // Without validation cases: with so few, every label is worth more to learn from.
    clinician.start_training(&json!({
        "steps": STEPS,
        "val_split": 0.0,
        "seed": seed,
    }))?;
    let mut progress = Progress::new("training", STEPS);
    loop {
        std::thread::sleep(POLL);
        let state = clinician.training()?;
        if let Some(step) = state.step {
            progress.set(step, STEPS, &format!("loss {:.3}", state.loss));
        }
        match state.status.as_str() {
            "SUBMITTED" | "RUNNING" => {}
            "DONE" => {
                progress.note(&state.last_line);
                return Ok(());
            }
            other => bail!(
                "training ended as {other}: {}; see {}",
                state.last_line,
                server.log.display()
            ),
        }
    }
}

/// The folder to work in: the given one, else a new one here.
fn empty_folder(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let is_free = |dir: &Path| match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    };
    let dir = match given {
        Some(dir) => {
            let free = is_free(&dir)
                .map_err(|error| Usage(format!("--dir {}: {error}", dir.display())))?;
            let taken = || {
                Usage(format!(
                    "--dir {}: this folder is not empty; give a new or an empty one",
                    dir.display()
                ))
            };
            ensure!(free, taken());
            dir
        }
        None if is_free(Path::new(DEFAULT_DIR)).unwrap_or(false) => DEFAULT_DIR.into(),
        None => tempfile::Builder::new()
            .prefix(&format!("{DEFAULT_DIR}-"))
            .tempdir_in(".")?
            .keep(),
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
