//! `/models`: every version of a model, and which of them serves.
//!
//! | route | what it does | answer |
//! |---|---|---|
//! | `GET /models/` | all models with their versions, newest first | `{"models": [Model]}` |
//! | `POST /models/{model}/publish?version=N` | makes a version serve, when it has answered a warm-up | `Model` |
//! | `POST /models/{model}/keep?version=N` | decides that a candidate is not published | `Model` |
//! | `POST /models/{model}/pin?version=N` | makes it serve and holds it: rounds publish nothing | `Model` |
//! | `POST /models/{model}/unpin` | lets rounds publish again | `Model` |
//! | `POST /models/{model}/rollback` | makes the version serve that the live one replaced | `Model` |
//!
//! Without `version`, `pin` takes the live one. The optional JSON body has `client_id` (who, for the audit log) and
//! `force` (publish, pin and roll back without the warm-up, when no worker answers). 404 `not_found`, 409 `conflict`
//! (nothing to roll back to, a live version cannot be kept), 503 `warm_up_failed` (nothing was changed).
//!
//! `Model`:
//! ```json
//! {
//!   "name": "pct-net-s", "live_version": 3, "pinned": false, "rollback_version": 1,
//!   "versions": [{
//!     "version": 4, "state": "candidate | kept | published", "live": false, "reason": "why it is in this state",
//!     "trained": true, "created_ts": 0, "sha256": "…", "weights_sha256": "…", "parent": 1, "round": 3,
//!     "metrics": {"mean_dice": 0.74, "dice": {"mandible": 0.82}}, "lineage": {"label_sha256": ["…"], "seed": 0}
//!   }]
//! }
//! ```

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::query::{JsonObject, Query, Segment, lenient_flag, typed};
use super::{App, task};
use crate::project::requests::{ImageSource, InferRequest};
use crate::project::{JobKind, JobState};
use crate::rounds::registry::ModelVersion;

/// How long a version may take to answer its warm-up. The worker answers between two steps of a training.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the body of a decision may have.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Params {
    client_id: Option<String>,
    #[serde(deserialize_with = "lenient_flag")]
    force: bool,
}

/// All models with their versions.
#[utoipa::path(get, path = "/models/", tag = "Rounds",
    responses((status = 200, description = "{models: [{name, live_version, pinned, rollback_version, versions: [...]}]}")))]
pub async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let mut models = Vec::new();
    for live in app.live_models().await? {
        models.push(model(&app, &live.name).await?);
    }
    Ok(Json(json!({"models": models})))
}

/// Make a version serve.
#[utoipa::path(post, path = "/models/{model}/publish", tag = "Rounds",
    request_body(content = String, content_type = "application/json", description = "optional object: client_id, force"),
    params(
        ("model" = String, Path, description = "a name under models in /info/"),
        ("version" = i64, Query, description = "the version")),
    responses((status = 200, description = "the model"), (status = 404, description = "no such version"),
        (status = 503, description = "it does not answer; nothing was changed")))]
pub async fn publish(
    State(app): State<App>,
    Segment(name): Segment,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let version = required_version(query)?;
    let (app, params) = decided_by(app, body)?;
    answers(&app, &name, version, params.force).await?;
    let pinned = app.live_model(&name).await?;
    let keeps_pin = pinned.pinned && pinned.version == version;
    app.registry.publish(&name, version, keeps_pin).await?;
    Ok(Json(model(&app, &name).await?))
}

/// Decide that a candidate is not published.
#[utoipa::path(post, path = "/models/{model}/keep", tag = "Rounds",
    request_body(content = String, content_type = "application/json", description = "optional object: client_id"),
    params(
        ("model" = String, Path, description = "a name under models in /info/"),
        ("version" = i64, Query, description = "the version")),
    responses((status = 200, description = "the model"), (status = 404, description = "no such version"),
        (status = 409, description = "it is the live one")))]
pub async fn keep(
    State(app): State<App>,
    Segment(name): Segment,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let version = required_version(query)?;
    let (app, _) = decided_by(app, body)?;
    app.registry.keep(&name, version).await?;
    Ok(Json(model(&app, &name).await?))
}

/// Make a version serve and hold it: rounds publish nothing.
#[utoipa::path(post, path = "/models/{model}/pin", tag = "Rounds",
    request_body(content = String, content_type = "application/json", description = "optional object: client_id, force"),
    params(
        ("model" = String, Path, description = "a name under models in /info/"),
        ("version" = Option<i64>, Query, description = "the version; the live one when absent")),
    responses((status = 200, description = "the model"), (status = 404, description = "no such version"),
        (status = 503, description = "it does not answer; nothing was changed")))]
pub async fn pin(
    State(app): State<App>,
    Segment(name): Segment,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let live = app.live_model(&name).await?;
    let version = query.read(|q| q.integer("version", live.version))?;
    let (app, params) = decided_by(app, body)?;
    if version != live.version {
        answers(&app, &name, version, params.force).await?;
    }
    app.registry.publish(&name, version, true).await?;
    Ok(Json(model(&app, &name).await?))
}

/// Let rounds publish again.
#[utoipa::path(post, path = "/models/{model}/unpin", tag = "Rounds",
    request_body(content = String, content_type = "application/json", description = "optional object: client_id"),
    params(("model" = String, Path, description = "a name under models in /info/")),
    responses((status = 200, description = "the model"), (status = 404, description = "unknown model")))]
pub async fn unpin(
    State(app): State<App>,
    Segment(name): Segment,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let (app, _) = decided_by(app, body)?;
    app.live_model(&name).await?;
    app.registry.unpin(&name).await?;
    Ok(Json(model(&app, &name).await?))
}

/// Make the version serve that the live one replaced.
#[utoipa::path(post, path = "/models/{model}/rollback", tag = "Rounds",
    request_body(content = String, content_type = "application/json", description = "optional object: client_id, force"),
    params(("model" = String, Path, description = "a name under models in /info/")),
    responses((status = 200, description = "the model"), (status = 409, description = "there is nothing to go back to"),
        (status = 503, description = "it does not answer; nothing was changed")))]
pub async fn roll_back(
    State(app): State<App>,
    Segment(name): Segment,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let (app, params) = decided_by(app, body)?;
    let live = app.live_model(&name).await?;
    if let Some(version) = app.registry.rollback_version(&live).await? {
        answers(&app, &name, version, params.force).await?;
    }
    app.registry.roll_back(&name).await?;
    Ok(Json(model(&app, &name).await?))
}

/// The server as whoever decides uses it.
fn decided_by(mut app: App, body: JsonObject) -> Result<(App, Params), ApiError> {
    let params: Params = typed(body.or_empty())?;
    app.registry = app
        .registry
        .acting_as(params.client_id.as_deref().unwrap_or("admin"));
    Ok((app, params))
}

fn required_version(query: Query) -> Result<i64, ApiError> {
    // No version has this number, so that a missing one is named by the check before.
    query.read(|q| {
        q.required("version");
        q.integer("version", 0)
    })
}

/// Makes sure that a version answers, before it serves.
///
/// # Errors
/// 404 when there is no such version, 503 when it does not answer.
pub async fn answers(app: &App, name: &str, version: i64, force: bool) -> Result<(), ApiError> {
    if app.registry.version(name, version).await?.is_none() {
        return Err(ApiError::not_found(
            "not_found",
            "there is no such version of this model; see /models/",
        ));
    }
    if force {
        return Ok(());
    }
    let payload = InferRequest {
        model: name.to_owned(),
        version: Some(version),
        image: ImageSource::WarmUp,
        result_extension: ".json".to_owned(),
        result_dtype: None,
        result_compress: false,
        largest_cc: false,
        save_label: None,
        restore_label_idx: false,
        interaction: None,
    };
    let payload = serde_json::to_value(payload).map_err(|error| ApiError::internal(&error))?;
    let jobs = app.project.jobs();
    let request = json!({"model": name, "version": version, "warm_up": true});
    let job = jobs.enqueue(JobKind::Infer, payload, request).await?;
    let failed = |reason: &str| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "warm_up_failed",
            format!(
                "version {version} did not answer a warm-up ({reason}), so the version before serves on; \
                 try again, or send force to publish it without"
            ),
        )
    };
    match tokio::time::timeout(PATIENCE, jobs.wait(job.id, task::POLL)).await {
        Ok(job) => match job? {
            job if job.state == JobState::Done => Ok(()),
            job => Err(failed(job.error.as_deref().unwrap_or("it was stopped"))),
        },
        Err(_) => {
            jobs.cancel(job.id).await?;
            Err(failed("no worker answered in time"))
        }
    }
}

/// A model as clients see it.
async fn model(app: &App, name: &str) -> Result<Value, ApiError> {
    let live = app.live_model(name).await?;
    let mut versions = app.registry.models().await?;
    versions.retain(|version| version.name == name);
    versions.reverse();
    let versions: Vec<Value> = versions.iter().map(object).collect();
    Ok(json!({
        "name": name,
        "live_version": live.version,
        "pinned": live.pinned,
        "rollback_version": app.registry.rollback_version(&live).await?,
        "versions": versions,
    }))
}

fn object(version: &ModelVersion) -> Value {
    // Of a damaged version the rest is shown.
    let trained = version
        .manifest()
        .map(|manifest| manifest.model.trained)
        .ok();
    json!({
        "version": version.version,
        "state": version.state.as_str(),
        "live": version.live,
        "reason": version.reason,
        "trained": trained,
        "created_ts": version.created_ts.div_euclid(1000),
        "sha256": version.sha256,
        "weights_sha256": version.weights_sha256,
        "parent": version.parent,
        "round": version.lineage["round"],
        "metrics": version.metrics,
        "lineage": version.lineage,
    })
}
