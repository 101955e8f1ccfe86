//! One fine-tuning round: which labels, from which weights, and what becomes of the result.
//!
//! Every round starts from the same version, the one that the first round started from, unless it is asked to continue the
//! live one (warm start): so that what a round shows is what its labels are worth. What it learns from is fixed in the
//! store when a worker begins, and a second worker continues the same. The live version serves until the gate
//! ([`super::gate`]) has let the new one through and it has answered a warm-up.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::registry::{ModelVersion, Registry};
use super::settings::Settings;
use crate::model::{
    CheckpointPlan, Given, Lineage, Manifest, ModelDescription, Survey, TrainCase, TrainOptions,
};
use crate::project::requests::TrainRequest;
use crate::project::{Claimed, ImageId, Part, Project, ProjectError, STALE, StoreError, Tag};
use crate::store::rows;

/// Patches drawn per case in what clients call an epoch.
const PATCHES_PER_CASE: usize = 8;
/// Fewer labelled cases than this all go into training.
const MIN_CASES_TO_VALIDATE: usize = 4;
/// A run is saved after every so many steps, as long as that takes no larger share of the time.
const SAVE_STEPS: usize = 5;
const SAVE_SHARE: f64 = 0.05;

/// Which weights a round starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Those of the version that the first round started from.
    Base,
    /// Those of the live version.
    Live,
    /// Random ones.
    Random,
}

impl Start {
    /// `base`, `live` or `random`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Live => "live",
            Self::Random => "random",
        }
    }
}

/// What a round learns from and how, fixed when it begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Frozen {
    /// Name of the run.
    pub name: String,
    /// The version to start from.
    pub start_version: i64,
    /// Which one that is.
    pub start: Start,
    /// Cases to learn from.
    pub cases: Vec<TrainCase>,
    /// Hashes of their labels.
    pub label_sha256: Vec<String>,
    /// Cases to choose the best weights on, and to compare with the live version.
    pub validation: Vec<TrainCase>,
    /// Hashes of their labels.
    pub validation_sha256: Vec<String>,
    /// What the result is.
    pub model: ModelDescription,
    /// How it is trained.
    pub options: TrainOptions,
    /// Optimiser steps in what clients call an epoch.
    pub steps_per_epoch: usize,
}

/// Everything that training needs to know.
#[derive(Debug)]
pub struct Plan {
    /// Number of the round.
    pub round: i64,
    /// The version to start from.
    pub parent: ModelVersion,
    /// What it learns from.
    pub frozen: Frozen,
    /// The request for the model layer; its output directory is in the project's data folder.
    pub request: crate::model::TrainRequest,
}

/// What is to be done for a job.
#[derive(Debug)]
pub enum Begun {
    /// Train.
    Train(Box<Plan>),
    /// A worker that died had made this version already; its result stands.
    Over(i64),
}

/// Begins with a round, or continues it: what it learns from is that of the first time.
///
/// # Errors
/// [`ProjectError::NotFound`] when the model has no live version, [`ProjectError::Invalid`] when nothing is labelled.
pub async fn begin(
    project: &Project,
    claimed: &Claimed,
    request: &TrainRequest,
) -> Result<Begun, ProjectError> {
    let job = claimed.job.id.to_string();
    let database = &project.store().database;
    let (number, plan) = match database.round_of_job(&job).await? {
        Some(record) => {
            if let Some(version) = record.version {
                return Ok(Begun::Over(version));
            }
            (record.number, record.plan)
        }
        // It was queued by a release that had no table of rounds.
        None => {
            let mut tx = database.begin().await?;
            let now_ms = project.clock().now_ms();
            let number =
                rows::add_round(&mut tx, &job, &request.model, "request", "admin", now_ms).await?;
            tx.commit().await.map_err(StoreError::from)?;
            (number, None)
        }
    };
    let text = match plan {
        Some(text) => text,
        None => freeze(project, number, request).await?,
    };
    // Also the first time as it is read back: a number that is written and read may differ in its last bit, and a run goes
    // on from a checkpoint of the very same only.
    let frozen: Frozen = serde_json::from_str(&text).map_err(StoreError::from)?;
    let parent = Registry::new(project)
        .version(&request.model, frozen.start_version)
        .await?
        .ok_or_else(|| {
            ProjectError::NotFound(format!("version {} is gone", frozen.start_version))
        })?;
    let request = crate::model::TrainRequest {
        cases: frozen.cases.clone(),
        validation: frozen.validation.clone(),
        model: frozen.model.clone(),
        init: (frozen.start != Start::Random).then(|| parent.dir.clone()),
        out: project.scratch_dir().join(format!("train-{job}")),
        options: frozen.options.clone(),
        checkpoint: Some(CheckpointPlan {
            path: project
                .scratch_dir()
                .join(format!("train-{job}.checkpoint")),
            every: SAVE_STEPS,
            share: Some(SAVE_SHARE),
            resume: true,
            keep: true,
        }),
    };
    Ok(Begun::Train(Box::new(Plan {
        round: number,
        parent,
        frozen,
        request,
    })))
}

/// Collects the accepted labels by the parts of their images, decides the schedule, and keeps both in the table of
/// rounds. Test images are left out; validation images are learned from when `val_split` is 0, or when there are too few
/// labels to spare any.
async fn freeze(
    project: &Project,
    number: i64,
    request: &TrainRequest,
) -> Result<String, ProjectError> {
    let registry = Registry::new(project);
    let live = registry.live(&request.model).await?.ok_or_else(|| {
        ProjectError::NotFound(format!(
            "there is no model {:?} in this project",
            request.model
        ))
    })?;
    let warm = match request.warm_start {
        Some(warm) => warm,
        None => Settings::of(project).await?.warm_start,
    };
    let (start, parent) = if !request.pretrained {
        (Start::Random, base_of(&registry, live).await?)
    } else if warm {
        (Start::Live, live)
    } else {
        (Start::Base, base_of(&registry, live).await?)
    };
    let manifest = parent.manifest()?;
    let chosen = choose_cases(project, request.val_split).await?;
    let (asked, parent_dir) = (request.clone(), parent.dir.clone());
    let scheduled = {
        let Chosen {
            cases,
            label_sha256,
            validation,
            ..
        } = chosen.clone();
        move || {
            let out = PathBuf::new(); // decided by the job
            schedule(
                &asked,
                &parent_dir,
                &manifest,
                cases,
                validation,
                label_sha256,
                out,
            )
        }
    };
    let (scheduled, steps_per_epoch) = tokio::task::spawn_blocking(scheduled)
        .await
        .map_err(|error| ProjectError::Internal(error.to_string()))?;
    let frozen = Frozen {
        name: request.name.clone(),
        start_version: parent.version,
        start,
        cases: chosen.cases,
        label_sha256: chosen.label_sha256,
        validation: chosen.validation,
        validation_sha256: chosen.validation_sha256,
        model: scheduled.model,
        options: scheduled.options,
        steps_per_epoch,
    };
    keep(project, number, request, &frozen).await
}

/// The version that the first of the rounds behind `version` started from.
async fn base_of(registry: &Registry, version: ModelVersion) -> Result<ModelVersion, ProjectError> {
    let mut at = version;
    // Versions that other weights were uploaded for have a parent, but no round made them.
    while at.lineage.get("training_images").is_some()
        && let Some(parent) = at.parent.filter(|parent| *parent < at.version)
        && let Some(earlier) = registry.version(&at.name, parent).await?
    {
        at = earlier;
    }
    Ok(at)
}

/// Accepted labels that can be learned from.
#[derive(Debug, Clone)]
struct Chosen {
    cases: Vec<TrainCase>,
    label_sha256: Vec<String>,
    validation: Vec<TrainCase>,
    validation_sha256: Vec<String>,
}

async fn choose_cases(project: &Project, val_split: f64) -> Result<Chosen, ProjectError> {
    let (mut cases, mut label_sha256) = (Vec::new(), Vec::new());
    let (mut validation, mut validation_sha256) = (Vec::new(), Vec::new());
    let parts: HashMap<ImageId, Part> = project
        .split()
        .await?
        .into_iter()
        .map(|row| (row.image, row.part))
        .collect();
    let (stale, mut refused) = (project.stale_labels().await?, 0);
    for image in project.images().await? {
        let part = match parts.get(&image.id) {
            // An image that came this moment has its part in the next round.
            None | Some(Part::Test) => continue,
            Some(part) => *part,
        };
        let label = project.label(&image.id, &Tag::accepted()).await?;
        // What a second reader sent back is learned from when it is submitted again.
        let Some(label) = label.filter(|label| !label.sent_back()) else {
            continue;
        };
        if stale.contains(&(image.id.clone(), Tag::accepted())) {
            refused += 1;
            continue;
        }
        let annotated = label
            .annotated
            .iter()
            .filter_map(|name| project.schema().value_of(name))
            .collect();
        let case = TrainCase {
            name: image.id.to_string(),
            image: image.path,
            label: project.training_label_path(&label),
            annotated,
        };
        if part == Part::Validation && val_split > 0.0 {
            validation.push(case);
            validation_sha256.push(label.sha256);
        } else {
            cases.push(case);
            label_sha256.push(label.sha256);
        }
    }
    if refused > 0 {
        tracing::warn!("{refused} labels are not learned from: {STALE}");
    }
    if cases.len() + validation.len() < MIN_CASES_TO_VALIDATE || cases.is_empty() {
        cases.append(&mut validation);
        label_sha256.append(&mut validation_sha256);
    }
    if cases.is_empty() {
        return Err(ProjectError::Invalid(if refused > 0 {
            format!("no label can be learned from; of {refused} labels {STALE}")
        } else {
            "no image has a submitted label yet; submit at least one, then train".to_owned()
        }));
    }
    Ok(Chosen {
        cases,
        label_sha256,
        validation,
        validation_sha256,
    })
}

/// Spacing, window, steps and rates of a round on cases that were chosen, from the model in `parent_dir`; with it the steps
/// in what clients call an epoch. Reads every case once. A round of the server and one of a simulation are the same from
/// here on.
pub fn schedule(
    asked: &TrainRequest,
    parent_dir: &Path,
    manifest: &Manifest,
    cases: Vec<TrainCase>,
    validation: Vec<TrainCase>,
    label_sha256: Vec<String>,
    out: PathBuf,
) -> (crate::model::TrainRequest, usize) {
    let defaults = TrainOptions::starting_from(manifest.trained && asked.pretrained);
    let batch = asked.batch.map_or(defaults.batch, usize::from).max(1);
    let steps_per_epoch = (cases.len() * PATCHES_PER_CASE).div_ceil(batch).max(1);
    let steps = match asked.steps {
        Some(steps) => steps as usize,
        None => asked.max_epochs as usize * steps_per_epoch,
    };
    let survey = Survey::of(&cases, &manifest.labels);
    let (preprocessing, data) = if manifest.trained {
        let kept = "spacing, window and patch: those of the version it starts from".to_owned();
        (manifest.preprocessing.clone(), survey.summary(vec![kept]))
    } else {
        let given = Given {
            patch: Some(manifest.patch),
            ..Given::default()
        };
        let (preprocessing, _, data) = survey.plan(&manifest.network, &given);
        (preprocessing, data)
    };
    let model = ModelDescription {
        preprocessing,
        lineage: Lineage {
            label_sha256,
            data: Some(data),
            ..Lineage::made_by("trained")
        },
        ..manifest.model.clone()
    };
    let options = TrainOptions {
        steps: steps.max(1),
        // Four looks on the way and one at the end: enough to keep the best, cheap enough for a CPU.
        validate_every: steps.div_ceil(5).max(1),
        batch,
        learning_rate: asked.learning_rate.unwrap_or(defaults.learning_rate),
        seed: asked.seed,
        // Clients say "never" with a negative number.
        patience: usize::try_from(asked.early_stop_patience).unwrap_or(0),
        ..defaults
    };
    let request = crate::model::TrainRequest {
        cases,
        validation,
        model,
        init: asked.pretrained.then(|| parent_dir.to_owned()),
        out,
        options,
        checkpoint: None,
    };
    (request, steps_per_epoch)
}

/// Fixes what a round learns from and the part of its images, and says so in the audit log; gives the text that is kept.
async fn keep(
    project: &Project,
    number: i64,
    request: &TrainRequest,
    frozen: &Frozen,
) -> Result<String, ProjectError> {
    let detail = json!({
        "round": number,
        "name": request.name,
        "start_version": frozen.start_version,
        "start": frozen.start,
        "training_images": names(&frozen.cases),
        "validation_images": names(&frozen.validation),
        "label_sha256": frozen.label_sha256,
        "validation_label_sha256": frozen.validation_sha256,
    });
    let text = serde_json::to_string(frozen).map_err(StoreError::from)?;
    let mut tx = project.store().database.begin().await?;
    let used = frozen
        .cases
        .iter()
        .chain(&frozen.validation)
        .map(|case| case.name.as_str());
    project
        .mark_used(&mut tx, used, "a round of training")
        .await?;
    rows::start_round(&mut tx, number, &text, project.clock().now_ms()).await?;
    rows::append_audit(
        &mut tx,
        project.audit_entry("train", &request.model, detail),
    )
    .await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(text)
}

/// The names of cases.
pub(super) fn names(cases: &[TrainCase]) -> Vec<&str> {
    cases.iter().map(|case| case.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PctNetConfig, create_untrained};
    use crate::project::JobKind;
    use crate::project::tests::{Bench, schema};
    use crate::rounds::round::{self, Cause};

    fn request(val_split: f64) -> TrainRequest {
        TrainRequest {
            steps: Some(1),
            val_split,
            ..TrainRequest::of("tiny")
        }
    }

    /// A round that a worker begins with.
    async fn plan(project: &Project, request: &TrainRequest) -> Result<Plan, ProjectError> {
        round::ask_for(project, request, Cause::Request, "ann").await?;
        let claimed = project
            .jobs()
            .claim("w", &[JobKind::Train], 60)
            .await?
            .unwrap();
        let begun = begin(project, &claimed, request).await;
        project.jobs().cancel(claimed.job.id).await?;
        match begun? {
            Begun::Train(plan) => Ok(*plan),
            Begun::Over(version) => panic!("version {version} is there"),
        }
    }

    #[tokio::test]
    async fn a_round_learns_from_the_parts_of_the_table() {
        let images: Vec<String> = (0..20).map(|n| format!("c{n:02}.nii.gz")).collect();
        let bench = Bench::with(&images.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let project = &bench.project;
        let small = PctNetConfig::pct_net_s(schema().class_count(), [16, 32, 32], 1);
        let network = PctNetConfig {
            feature_chns: [4, 8, 16, 16, 16],
            num_heads: [2, 2, 2],
            ..small
        };
        let dir = bench.dir.path().join("model");
        create_untrained(&dir, "tiny", &network, &schema(), 1).unwrap();
        Registry::new(project).import_initial(&dir).await.unwrap();
        let labelled = async |n: usize| {
            bench
                .submit(&format!("c{n:02}"), "final", &[1])
                .await
                .unwrap();
        };
        let parts = project.split().await.unwrap();
        let of = |part| parts.iter().filter(move |row| row.part == part);

        for row in of(Part::Test) {
            bench
                .submit(row.image.as_str(), "final", &[1])
                .await
                .unwrap();
        }
        assert!(
            plan(project, &request(0.2)).await.is_err(),
            "labels on test images are not learned from"
        );
        let first = of(Part::Validation).next().unwrap();
        bench
            .submit(first.image.as_str(), "final", &[1])
            .await
            .unwrap();
        let few = plan(project, &request(0.2)).await.unwrap().request;
        assert_eq!((few.cases.len(), few.validation.len()), (1, 0));
        for n in 0..20 {
            labelled(n).await;
        }
        let plan_all = plan(project, &request(0.2)).await.unwrap();
        let all = plan_all.request;
        assert_eq!((all.cases.len(), all.validation.len()), (14, 3));
        for case in &all.validation {
            assert!(of(Part::Validation).any(|row| row.image.as_str() == case.name));
        }
        assert_eq!(
            (
                plan_all.frozen.label_sha256.len(),
                plan_all.frozen.validation_sha256.len()
            ),
            (14, 3)
        );
        let none = plan(project, &request(0.0)).await.unwrap().request;
        assert_eq!((none.cases.len(), none.validation.len()), (17, 0));
        let refused = project
            .set_part(&first.image, Part::Train)
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("a round of training"),
            "{refused}"
        );
    }
}
