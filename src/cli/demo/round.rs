//! The round itself: labels in, training, a new version out.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use super::annotator::Annotator;
use super::report::mean_dice;
use super::server::Server;
use super::studies::Study;
use crate::cli::progress::Progress;

/// Optimiser steps of the round: what two CPU cores do in about three minutes.
const STEPS: usize = 120;
/// Patches per step: many small steps learn more than few large ones here.
const BATCH: usize = 1;
/// High for Adam, as the round is short and starts from nothing.
const LEARNING_RATE: f64 = 4e-3;
/// Pause between two looks at the training.
const POLL: Duration = Duration::from_millis(500);

/// Labels studies as long as the server offers one of those to label.
pub fn annotate(clinician: &Annotator, to_label: &[Study]) -> anyhow::Result<()> {
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
        let dice = mean_dice(study, &proposal).unwrap_or(0.0);
        println!(
            "label {n} of {}: {id}, proposal had Dice {dice:.2}, corrected and submitted",
            to_label.len()
        );
    }
    Ok(())
}

/// Starts a round and waits until it is published.
pub fn train(clinician: &Annotator, seed: u64, server: &Server) -> anyhow::Result<()> {
    // Without validation cases: with so few, every label is worth more to learn from.
    clinician.start_training(&json!({
        "steps": STEPS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
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
