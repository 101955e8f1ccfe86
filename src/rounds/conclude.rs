//! The end of a round: on which cases old and new are compared, and how the decision is kept.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::fine_tune::{Frozen, Plan, Start, names};
use super::gate::Verdict;
use super::registry::{Addition, ModelVersion, Registry};
use super::round::Judged;
use crate::model::TrainReport;
use crate::project::{Claimed, Project, ProjectError};
use crate::store::rows::RoundEnd;

/// The validation cases on which a new version is compared with the live one, as positions in `frozen.validation`, and the
/// names of those that the live version has learned from.
pub fn comparable(frozen: &Frozen, live: &ModelVersion) -> (Vec<usize>, Vec<String>) {
    let learned: HashSet<&str> = live
        .lineage
        .get("training_images")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let (mut compared, mut left_out) = (Vec::new(), Vec::new());
    for (index, case) in frozen.validation.iter().enumerate() {
        if learned.contains(case.name.as_str()) {
            left_out.push(case.name.clone());
        } else {
            compared.push(index);
        }
    }
    (compared, left_out)
}

/// Why a round could not be concluded; the old version stays live.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The job was stopped or given to another worker.
    #[error("the round was stopped, or is another worker's by now")]
    Lost,
    /// The project failed; the round is not over.
    #[error(transparent)]
    Project(#[from] ProjectError),
}

/// Puts a trained model into the registry, live or as a candidate, and ends its round with it, in one transaction.
///
/// # Errors
/// [`Refused::Lost`] when the job is not this worker's any more.
pub async fn conclude(
    project: &Project,
    claimed: &Claimed,
    plan: &Plan,
    report: &TrainReport,
    judged: &Judged,
    verdict: &Verdict,
) -> Result<ModelVersion, Refused> {
    let named = |dice: &[Option<f64>]| -> serde_json::Map<String, Value> {
        let names = project.schema().names().iter().cloned();
        names.zip(dice.iter().map(|dice| json!(dice))).collect()
    };
    let metrics = json!({
        "mean_dice": report.mean_dice,
        "dice": named(&report.dice),
        "loss": report.loss,
        "validation_cases": plan.frozen.validation.len(),
    });
    let lineage = json!({
        "parent_version": plan.parent.version,
        "parent_sha256": plan.parent.weights_sha256,
        "round": plan.round,
        "start": plan.frozen.start,
        "warm_start": plan.frozen.start == Start::Live,
        "steps": report.steps,
        "stopped_early": report.ended_early.is_some(),
        "cases_noted": report.notes,
        "seed": plan.frozen.options.seed,
        "options": plan.frozen.options,
        "training_images": names(&plan.frozen.cases),
        "validation_images": names(&plan.frozen.validation),
        "label_sha256": plan.frozen.label_sha256,
        "validation_label_sha256": plan.frozen.validation_sha256,
        "code_version": env!("CARGO_PKG_VERSION"),
    });
    let end = RoundEnd {
        number: plan.round,
        decision: if verdict.publish { "published" } else { "kept" },
        reason: verdict.reason.clone(),
        comparison: Some(json!(judged).to_string()),
    };
    let addition = Addition {
        parent: Some(plan.parent.version),
        metrics,
        lineage,
        live: verdict.publish,
        reason: verdict.reason.clone(),
        round: Some((end, claimed.clone())),
    };
    let added = Registry::new(project)
        .add(&plan.parent.name, &plan.request.out, addition)
        .await;
    match added {
        // What the transaction refuses when the fence of the job is another one.
        Err(ProjectError::Conflict(_)) => Err(Refused::Lost),
        added => Ok(added?),
    }
}

/// Removes what a round left on the way, whatever became of it.
pub fn tidy(project: &Project, job: &str) {
    let scratch = project.scratch_dir();
    for name in [format!("train-{job}"), format!(".train-{job}.cases")] {
        remove(std::fs::remove_dir_all(scratch.join(name)));
    }
    remove(std::fs::remove_file(
        scratch.join(format!("train-{job}.checkpoint")),
    ));
}

/// What is there already gone is no matter, and what cannot be removed goes with the next sweep.
fn remove(outcome: std::io::Result<()>) {
    if let Err(error) = outcome
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("files of a round are removed later: {error}");
    }
}
