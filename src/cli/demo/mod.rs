//! `fewlabel demo`: one full round on synthetic studies, with a scripted annotator in the clinician's place.
//!
//! Everything goes through the server's HTTP interface, as it does with 3D Slicer: next case, proposal, corrected label,
//! training, and the proposals of the new model on cases that nobody labelled.

mod annotator;
mod report;
mod round;
mod server;
mod studies;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;

use super::Usage;
use annotator::Annotator;
use report::Scores;
use server::Server;
use studies::Studies;

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
    round::annotate(&clinician, &studies.to_label)?;
    round::train(&clinician, args.seed, &server)?;
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
