//! `/info/`: what this server can do, in the shape and key order that MONAI Label's clients read.
//!
//! Traps that the shape avoids: Slicer crashes on an empty list in a `config`, casts by the JSON type
//! of a default, and takes the k-th label name for voxel value k; OHIF takes the index. So lists are
//! never empty, and indices are 1..N in order.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::{interaction, scoring, train};
use crate::project::{Counts, Job, JobKind, JobState};
use crate::rounds::registry::{ModelVersion, VersionState};
use crate::rounds::strategy;

/// Models, trainers, strategies and progress.
#[utoipa::path(get, path = "/info/", tag = "App",
    responses((status = 200, description = "keys name, description, version, labels, models, trainers, strategies, scoring, train_stats, datastore")))]
pub async fn info(State(app): State<App>) -> Result<Response, ApiError> {
    let answer = async {
        let whole = serde_json::to_vec(&everything(&app).await?);
        whole
            .map(Bytes::from)
            .map_err(|error| ApiError::internal(&error))
    };
    let answer = app.info.get(answer).await?;
    Ok(([(CONTENT_TYPE, "application/json")], answer).into_response())
}

async fn everything(app: &App) -> Result<Value, ApiError> {
    let mut models = Map::new();
    let mut trainers = Map::new();
    let mut stats = Map::new();
    let versions = app.registry.models().await?;
    for version in versions.iter().filter(|version| version.live) {
        let name = &version.name;
        let others = versions.iter().filter(|other| other.name == *name);
        match model_entries(app, version, others) {
            Ok(entries) => models.extend(entries),
            // Of a damaged store the rest is shown.
            Err(_) if app.project.read_only().is_some() => continue,
            Err(error) => return Err(error),
        }
        if app.offers.train {
            trainers.insert(name.clone(), trainer_entry(app));
            stats.insert(name.clone(), train_stats(app, name).await?);
        }
    }
    // Last, because Slicer takes the first model that has the first label for its proposals.
    let labels = indexed(app.project.schema().names());
    models.extend(
        interaction::scribbles_entries(&labels).map(|(name, entry)| (name.to_owned(), entry)),
    );
    let nothing = || json!({});
    let strategies = strategy::ALL.iter().map(|s| (s.name, s.description));
    let strategies = app.offers.strategies.then(|| described(strategies));
    let strategies = strategies.unwrap_or_else(nothing);
    let scoring = app.offers.scoring.then(|| described(scoring::METHODS));
    let scoring = scoring.unwrap_or_else(nothing);
    Ok(json!({
        "name": format!("Fewlabel ({})", env!("CARGO_PKG_VERSION")),
        "description": description(app.project.read_only()),
        "version": env!("CARGO_PKG_VERSION"),
        "labels": app.project.schema().names(),
        "models": models,
        "trainers": trainers,
        "strategies": strategies,
        "scoring": scoring,
        "train_stats": stats,
        "datastore": counts(&app.project.counts().await?),
    }))
}

fn description(read_only: Option<&str>) -> String {
    match read_only {
        None => env!("CARGO_PKG_DESCRIPTION").to_owned(),
        Some(reason) => format!("READ ONLY: {reason}"),
    }
}

/// The answer of a server that can read nothing.
pub fn nothing(reason: &str) -> Value {
    json!({
        "name": format!("Fewlabel ({})", env!("CARGO_PKG_VERSION")),
        "description": description(Some(reason)),
        "version": env!("CARGO_PKG_VERSION"),
        "labels": [], "models": {}, "trainers": {}, "strategies": {}, "scoring": {}, "train_stats": {},
        "datastore": counts(&Counts::default()),
    })
}

fn described(entries: impl IntoIterator<Item = (&'static str, &'static str)>) -> Value {
    let entry = |(name, description): (&str, &str)| {
        (name.to_owned(), json!({ "description": description }))
    };
    Value::Object(entries.into_iter().map(entry).collect())
}

/// The counts of `/info/` and `/datastore/`.
pub fn counts(counts: &Counts) -> Value {
    let tags: Map<String, Value> = counts
        .label_tags
        .iter()
        .map(|(tag, count)| (tag.clone(), (*count).into()))
        .collect();
    json!({ "total": counts.total, "completed": counts.completed, "label_tags": tags })
}

/// Label names with their values, 1..N in order.
fn indexed(names: &[String]) -> Value {
    let indexed = names.iter().zip(1u16..);
    let labels: Map<String, Value> = indexed
        .map(|(name, value)| (name.clone(), value.into()))
        .collect();
    labels.into()
}

/// Versions that a combo box offers.
const MOST_VERSIONS: usize = 20;

/// What a client may send as `version`: the live one first, which stays the live one when another is published, then the
/// others, newest first.
fn offered<'a>(
    live: &ModelVersion,
    versions: impl DoubleEndedIterator<Item = &'a ModelVersion>,
) -> Vec<String> {
    let others = versions.rev().filter(|version| !version.live);
    let others = others.map(|version| match version.state {
        VersionState::Published => version.version.to_string(),
        state => format!("{} ({})", version.version, state.as_str()),
    });
    std::iter::once(format!("live ({})", live.version))
        .chain(others.take(MOST_VERSIONS - 1))
        .collect()
}

/// The version that a client chose; none for the live one, and for what cannot be understood.
pub fn version_of(chosen: &Value) -> Option<i64> {
    match chosen {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.split([' ', '(']).next()?.parse().ok(),
        // OHIF sends a list that was not touched as it is: the first is the live one.
        _ => None,
    }
}

/// A model, and the same model for clicks where it takes them.
fn model_entries<'a>(
    app: &App,
    version: &ModelVersion,
    versions: impl DoubleEndedIterator<Item = &'a ModelVersion>,
) -> Result<Vec<(String, Value)>, ApiError> {
    let manifest = version.manifest()?;
    let state = if manifest.trained {
        format!("version {}", version.version)
    } else {
        "not trained yet: its proposals mean nothing until it was trained on some labels".to_owned()
    };
    let labels = indexed(manifest.labels.names());
    let config = json!({
        "device": app.devices(), "largest_cc": false, "version": offered(version, versions),
    });
    let mut entries = vec![(
        version.name.clone(),
        json!({
            "type": "segmentation",
            "labels": labels,
            "dimension": 3,
            "description": format!("PCT-Net for CT, {state}"),
            "config": config,
        }),
    )];
    if manifest.clicks.is_some() {
        entries.extend(interaction::click_entries(version, &labels, &config));
    }
    Ok(entries)
}

fn trainer_entry(app: &App) -> Value {
    json!({
        "description": "Fine-tunes PCT-Net on the submitted labels; a new version goes live only when it is not worse",
        "config": train::config(app.devices()),
    })
}

/// Progress of the last training when it was of this model, else an empty object.
pub async fn train_stats(app: &App, model: &str) -> Result<Value, ApiError> {
    let last = app.project.jobs().last(JobKind::Train).await?;
    let of_this = last.filter(|job| job.payload["model"] == model);
    Ok(of_this.map_or_else(
        || json!({}),
        |job| stats(&job, app.project.clock().now_ms()),
    ))
}

/// Progress of training as Slicer reads it.
///
/// The worker writes `epoch`, `total_epochs`, `best_metric`, and objects `train` and `eval` into the
/// progress of the job. What it has not written yet gets a value that Slicer can calculate with:
/// it divides by `total_epochs` and multiplies `best_metric`.
fn stats(job: &Job, now_ms: i64) -> Value {
    let number = |key: &str, default: Value| match &job.progress[key] {
        value @ Value::Number(_) => value.clone(),
        _ => default,
    };
    let planned = job.payload["max_epochs"].as_i64().unwrap_or(1).max(1);
    let mut stats = json!({
        "start_ts": job.start_ts / 1000,
        "epoch": number("epoch", 0.into()),
        "total_epochs": number("total_epochs", planned.into()),
        "best_metric": number("best_metric", 0.0.into()),
    });
    for part in ["train", "eval"] {
        if job.progress[part].is_object() {
            stats[part] = job.progress[part].clone();
        }
    }
    // More than Slicer knows: an epoch of a large project takes long.
    for key in ["stage", "step", "steps", "eta_s"] {
        if !job.progress[key].is_null() {
            stats[key] = job.progress[key].clone();
        }
    }
    let duration_s = (job.end_ts.unwrap_or(now_ms) - job.start_ts).max(0) / 1000;
    let time = format!(
        "{}:{:02}:{:02}",
        duration_s / 3600,
        duration_s / 60 % 60,
        duration_s % 60
    );
    // Slicer takes the presence of `total_time` for "finished".
    let finished = !matches!(job.state, JobState::Submitted | JobState::Running);
    stats[if finished {
        "total_time"
    } else {
        "current_time"
    }] = time.into();
    stats
}
