//! One fine-tuning round: which labels, from which weights, and what is published.
//!
//! The live version serves until the new one is published; nothing is published when training fails or is stopped
//! before its first step.

use std::collections::HashMap;

use serde_json::json;

use super::registry::{ModelVersion, Registry};
use crate::model::{
    Given, Lineage, ModelDescription, Survey, TrainCase, TrainOptions, TrainReport,
};
use crate::project::requests::TrainRequest;
use crate::project::{ImageId, Part, Project, ProjectError, STALE, StoreError, Tag};
use crate::store::rows;

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

/// Collects the accepted labels by the parts of their images and decides the schedule. Test images are left out;
/// validation images are learned from when `val_split` is 0, or when there are too few labels to spare any.
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
        label_sha256.push(label.sha256);
        if part == Part::Validation && request.val_split > 0.0 {
            validation.push(case);
        } else {
            cases.push(case);
        }
    }
    if refused > 0 {
        tracing::warn!("{refused} labels are not learned from: {STALE}");
    }
    if cases.len() + validation.len() < MIN_CASES_TO_VALIDATE || cases.is_empty() {
        cases.append(&mut validation);
    }
    if cases.is_empty() {
        return Err(ProjectError::Invalid(if refused > 0 {
            format!("no label can be learned from; of {refused} labels {STALE}")
        } else {
            "no image has a submitted label yet; submit at least one, then train".to_owned()
        }));
    }
    note_use(project, request, &cases, &validation, &label_sha256).await?;
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
    let dice: serde_json::Map<_, _> = project
        .schema()
        .names()
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

/// Fixes the part of the images of a round, and says in the audit log what it learns from.
async fn note_use(
    project: &Project,
    request: &TrainRequest,
    cases: &[TrainCase],
    validation: &[TrainCase],
    label_sha256: &[String],
) -> Result<(), ProjectError> {
    let detail = json!({
        "round": request.name,
        "training_images": names(cases),
        "validation_images": names(validation),
        "label_sha256": label_sha256,
    });
    let mut tx = project.store().database.begin().await?;
    let used = cases
        .iter()
        .chain(validation)
        .map(|case| case.name.as_str());
    project
        .mark_used(&mut tx, used, "a round of training")
        .await?;
    rows::append_audit(
        &mut tx,
        project.audit_entry("train", &request.model, detail),
    )
    .await?;
    Ok(tx.commit().await.map_err(StoreError::from)?)
}

fn names(cases: &[TrainCase]) -> Vec<&str> {
    cases.iter().map(|case| case.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PctNetConfig, create_untrained};
    use crate::project::tests::{Bench, schema};

    fn request(val_split: f64) -> TrainRequest {
        TrainRequest {
            model: "tiny".to_owned(),
            name: "round".to_owned(),
            max_epochs: 1,
            steps: Some(1),
            val_split,
            pretrained: true,
            seed: 1,
            learning_rate: None,
            batch: None,
            early_stop_patience: -1,
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
        assert_eq!(plan_all.label_sha256.len(), 17);
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
