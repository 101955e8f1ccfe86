//! One fine-tuning round: which labels, from which weights, and what is published.
//!
//! The live version serves until the new one is published; nothing is published when training fails or is stopped
//! before its first step.

use serde_json::json;

use super::registry::{ModelVersion, Registry};
use crate::model::{
    Given, Lineage, ModelDescription, Survey, TrainCase, TrainOptions, TrainReport,
};
use crate::project::requests::TrainRequest;
use crate::project::{Project, ProjectError, Tag};
use crate::rng::Rng;

/// Patches drawn per case in what clients call an epoch.
const PATCHES_PER_CASE: usize = 8;
/// Fewer labelled cases than this all go into training.
const MIN_CASES_TO_VALIDATE: usize = 4;

/// Everything that training needs to know.
#[derive(Debug)]
pub struct Plan {
    /// The version to start from.
    pub parent: ModelVersion,
    /// The request for the model layer; its output directory is in the project's data folder.
    pub request: crate::model::TrainRequest,
    /// Optimiser steps in what clients call an epoch.
    pub steps_per_epoch: usize,
    /// Hashes of the labels learned from and validated on.
    pub label_sha256: Vec<String>,
}

/// Collects the accepted labels and decides the split and the schedule.
///
/// # Errors
/// [`ProjectError::NotFound`] when the model has no live version, [`ProjectError::Invalid`] when nothing is labelled.
pub async fn plan(project: &Project, request: &TrainRequest) -> Result<Plan, ProjectError> {
    let registry = Registry::new(project);
    let parent = registry.live(&request.model).await?.ok_or_else(|| {
        ProjectError::NotFound(format!(
            "there is no model {:?} in this project",
            request.model
        ))
    })?;
    let manifest = parent.manifest()?;
    let (mut cases, mut validation, mut label_sha256) = (Vec::new(), Vec::new(), Vec::new());
    for image in project.images().await? {
        let Some(label) = project.label(&image.id, &Tag::accepted()).await? else {
            continue;
        };
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
        label_sha256.push(label.sha256);
        if is_validation(&case.name, project.seed(), request.val_split) {
            validation.push(case);
        } else {
            cases.push(case);
        }
    }
    if cases.len() + validation.len() < MIN_CASES_TO_VALIDATE || cases.is_empty() {
        cases.append(&mut validation);
    }
    if cases.is_empty() {
        return Err(ProjectError::Invalid(
            "no image has a submitted label yet; submit at least one, then train".to_owned(),
        ));
    }
    let defaults = TrainOptions::starting_from(manifest.trained && request.pretrained);
    let batch = request.batch.map_or(defaults.batch, usize::from).max(1);
    let steps_per_epoch = (cases.len() * PATCHES_PER_CASE).div_ceil(batch).max(1);
    let steps = match request.steps {
        Some(steps) => steps as usize,
        None => request.max_epochs as usize * steps_per_epoch,
    };
    let (looked_at, schema) = (cases.clone(), manifest.labels.clone());
    let survey = tokio::task::spawn_blocking(move || Survey::of(&looked_at, &schema))
        .await
        .map_err(|error| ProjectError::Internal(error.to_string()))?;
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
            label_sha256: label_sha256.clone(),
            data: Some(data),
            ..Lineage::made_by("trained")
        },
        ..manifest.model.clone()
    };
    let out = project
        .scratch_dir()
        .join(format!("train-{}", uuid::Uuid::now_v7()));
    let options = TrainOptions {
        steps: steps.max(1),
        // Four looks on the way and one at the end: enough to keep the best, cheap enough for a CPU.
        validate_every: steps.div_ceil(5).max(1),
        batch,
        learning_rate: request.learning_rate.unwrap_or(defaults.learning_rate),
        seed: request.seed,
        // Clients say "never" with a negative number.
        patience: usize::try_from(request.early_stop_patience).unwrap_or(0),
        ..defaults
    };
    let init = request.pretrained.then(|| parent.dir.clone());
    let request = crate::model::TrainRequest {
        cases,
        validation,
        model,
        init,
        out,
        options,
        checkpoint: None,
    };
    Ok(Plan {
        parent,
        request,
        steps_per_epoch,
        label_sha256,
    })
}

/// Puts a trained model into the registry and makes it live.
///
/// # Errors
/// When the store does not answer; the old version stays live.
pub async fn publish(
    project: &Project,
    plan: &Plan,
    report: &TrainReport,
) -> Result<ModelVersion, ProjectError> {
    let names = project.schema().names();
    let dice: serde_json::Map<_, _> = names
        .iter()
        .cloned()
        .zip(report.dice.iter().map(|dice| json!(dice)))
        .collect();
    let metrics = json!({
        "mean_dice": report.mean_dice,
        "dice": dice,
        "loss": report.loss,
        "validation_cases": plan.request.validation.len(),
    });
    let names = |cases: &[TrainCase]| {
        cases
            .iter()
            .map(|case| case.name.clone())
            .collect::<Vec<_>>()
    };
    let lineage = json!({
        "parent_version": plan.parent.version,
        "parent_sha256": plan.parent.weights_sha256,
        "warm_start": plan.request.init.is_some(),
        "steps": report.steps,
        "stopped_early": report.ended_early.is_some(),
        "cases_noted": report.notes,
        "options": plan.request.options,
        "training_images": names(&plan.request.cases),
        "validation_images": names(&plan.request.validation),
        "label_sha256": plan.label_sha256,
        "code_version": env!("CARGO_PKG_VERSION"),
    });
    let parent = Some(plan.parent.version);
    Registry::new(project)
        .publish(
            &plan.parent.name,
            &plan.request.out,
            parent,
            metrics,
            lineage,
        )
        .await
}

/// Whether an image is held out. It depends on the image and the project's seed alone, so that an image never changes
/// sides between rounds.
fn is_validation(image: &str, seed: u64, share: f64) -> bool {
    Rng::new(seed).named("split").named(image).uniform() < share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_keeps_its_side() {
        let held = |seed| {
            (0..1000)
                .filter(|i| is_validation(&format!("case_{i}"), seed, 0.2))
                .collect::<Vec<_>>()
        };
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
        assert!((150..250).contains(&held(1).len()));
        assert!((0..100).all(|i| !is_validation(&format!("{i}"), 1, 0.0)));
    }
}
