//! `/rounds`: what was learned in which round, how it compares, and what was decided about it.
//!
//! | route | what it does | answer |
//! |---|---|---|
//! | `GET /rounds/?limit=50` | rounds, newest first | `{"rounds": [Round], "settings": Settings, "new_labels": 2}` |
//! | `POST /rounds/{model}` | starts one; the body is that of `POST /train/{model}` | `Round`; 429 `task_running` |
//! | `GET /rounds/{number}` | one of them | `Round`; 404 `not_found` |
//! | `DELETE /rounds/{number}` | stops it; a finished round stays as it is | `Round` |
//! | `GET /rounds/settings` | how rounds start and are judged | `Settings` |
//! | `PUT /rounds/settings` | changes the keys that the body has, audited | `Settings`; 422 `refused` |
//!
//! `Round`:
//! ```json
//! {
//!   "round": 3, "job_id": "…", "model": "pct-net-s", "name": "train_01",
//!   "state": "queued | running | published | kept | failed | stopped",
//!   "cause": "request | labels | schedule", "actor": "ann",
//!   "created_ts": 0, "started_ts": 0, "finished_ts": 0,
//!   "reason": "why it was published or kept, failed or stopped; null before that",
//!   "version": 4, "start_version": 1, "live_version": 3, "start": "base | live | random", "seed": 0, "steps": 300,
//!   "training_images": ["case_1"], "validation_images": ["case_7"], "label_sha256": ["…"],
//!   "progress": {"stage": "preparing | training | comparing", "step": 10, "steps": 300, "loss": 0.4,
//!                "rate_hz": 1.2, "eta_s": 240.0},
//!   "comparison": {
//!     "cases": 2, "old_dice": 0.71, "new_dice": 0.74, "difference": 0.03, "epsilon": 0.01, "passed": true,
//!     "structures": [{"name": "mandible", "cases": 2, "old_dice": 0.8, "new_dice": 0.82, "difference": 0.02,
//!                     "epsilon": 0.05, "passed": true}],
//!     "per_case": [{"image": "case_7", "label_sha256": "…", "old_dice": [0.8], "new_dice": [0.82]}],
//!     "left_out": ["case_9"]
//!   }
//! }
//! ```
//! `new_labels` are the images that were labelled, or labelled anew, since the last round began; `after_labels` of them
//! start the next one.
//!
//! Times are seconds since 1970-01-01 UTC. What is not known yet is null; `progress` is null unless it runs,
//! `comparison` when nothing was compared. `old` is the version that was live, `new` the one that the round made, both
//! on the same validation cases; a Dice is null where no case defines it. `left_out` are validation cases that the live
//! version has learned from. The lists of Dice are in the order of `labels` in `/info/`.
//!
//! `Settings`: `{"after_labels": 5 | null, "daily_at": "02:00" | null, "max_epochs": 50, "steps": 300 | null,
//! "warm_start": false, "epsilon": 0.05, "epsilon_mean": 0.01, "epsilon_of": {"lens": 0.1}, "lease_s": 14400,
//! "ahead": 2}`; see [`crate::rounds::settings::Settings`].

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::query::{JsonObject, Query, Segment};
use super::task::{Start, TRAIN};
use super::train;
use crate::project::JobState;
use crate::rounds::round::{self, Judged, Round};
use crate::rounds::schedule;
use crate::rounds::settings::Settings;

/// Rounds that are listed when nothing else is asked for.
const LISTED: i64 = 50;
const MOST_LISTED: i64 = 1000;

/// Rounds, newest first.
#[utoipa::path(get, path = "/rounds/", tag = "Rounds",
    params(("limit" = Option<i64>, Query, description = "so many at most (50)")),
    responses((status = 200, description = "{rounds: [Round], settings, new_labels}")))]
pub async fn list(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let limit = query
        .read(|q| q.integer("limit", LISTED))?
        .clamp(1, MOST_LISTED);
    let rounds = round::list(&app.project, u32::try_from(limit).unwrap_or(u32::MAX)).await?;
    let rounds: Vec<Value> = rounds.iter().map(object).collect();
    let settings = Settings::of(&app.project).await?;
    let new_labels = schedule::new_labels(&app.project).await?;
    Ok(Json(
        json!({"rounds": rounds, "settings": settings, "new_labels": new_labels}),
    ))
}

/// Start a round.
#[utoipa::path(post, path = "/rounds/{id}", tag = "Rounds",
    request_body(content = String, content_type = "application/json", description = "optional object: as of POST /train/{model}"),
    params(("id" = String, Path, description = "a name under models in /info/")),
    responses((status = 200, description = "the round"), (status = 404, description = "unknown model"),
        (status = 429, description = "a round is running")))]
pub async fn start(
    State(app): State<App>,
    Segment(model): Segment,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    app.live_model(&model).await?;
    let params = body.or_empty();
    let payload = train::train_request(&model, params.clone())?;
    let how = Start {
        run_sync: false,
        enqueue: false,
    };
    let job = TRAIN
        .enqueue(&app, &payload, train::echo(&model, params), how)
        .await?;
    Ok(Json(object(&round::of_job(&app.project, job.id).await?)))
}

/// One round, with its progress.
#[utoipa::path(get, path = "/rounds/{id}", tag = "Rounds",
    params(("id" = i64, Path, description = "number of the round: 1, 2, ...")),
    responses((status = 200, description = "the round"), (status = 404, description = "there is no such round")))]
pub async fn get(
    State(app): State<App>,
    Segment(number): Segment,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(object(&find(&app, &number).await?)))
}

/// Stop a round.
#[utoipa::path(delete, path = "/rounds/{id}", tag = "Rounds",
    params(
        ("id" = i64, Path, description = "number of the round: 1, 2, ..."),
        ("client_id" = Option<String>, Query, description = "who")),
    responses((status = 200, description = "the round"), (status = 404, description = "there is no such round")))]
pub async fn stop(
    State(app): State<App>,
    Segment(number): Segment,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let client = query.read(|q| q.text("client_id"))?;
    let round = find(&app, &number).await?;
    if !round.job.state.is_finished() {
        app.project.jobs().cancel(round.job.id).await?;
        let project = app.project.acting_as(client.as_deref().unwrap_or("admin"));
        project.note(
            "stop-training",
            &round.model,
            json!({"round": round.number}),
        )?;
    }
    Ok(Json(object(&round::get(&app.project, round.number).await?)))
}

/// How rounds start and are judged.
#[utoipa::path(get, path = "/rounds/settings", tag = "Rounds",
    responses((status = 200, description = "after_labels, daily_at, max_epochs, steps, warm_start, epsilon, epsilon_mean, epsilon_of, lease_s, ahead")))]
pub async fn settings(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!(Settings::of(&app.project).await?)))
}

/// Change how rounds start and are judged.
#[utoipa::path(put, path = "/rounds/settings", tag = "Rounds",
    request_body(content = String, content_type = "application/json", description = "optional object: the keys to change; client_id says who"),
    responses((status = 200, description = "all settings"), (status = 422, description = "a key or value that cannot be; nothing was changed")))]
pub async fn change_settings(
    State(app): State<App>,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let mut changes = body.or_empty();
    let client = changes.remove("client_id");
    let client = client.as_ref().and_then(Value::as_str).unwrap_or("admin");
    let settings = Settings::change(&app.project.acting_as(client), changes).await?;
    Ok(Json(json!(settings)))
}

async fn find(app: &App, number: &str) -> Result<Round, ApiError> {
    let number = number.parse().map_err(|_| {
        ApiError::not_found("not_found", "rounds are numbered: 1, 2, ...; see /rounds/")
    })?;
    Ok(round::get(&app.project, number).await?)
}

/// A round as clients see it.
fn object(round: &Round) -> Value {
    let seconds = |ms: Option<i64>| ms.map(|ms| ms.div_euclid(1000));
    let mut object = json!({
        "round": round.number,
        "job_id": round.job.id.to_string(),
        "model": round.model,
        "name": round.job.payload["name"],
        "state": round.state.as_str(),
        "cause": round.cause,
        "actor": round.actor,
        "created_ts": seconds(Some(round.created_ms)),
        "started_ts": seconds(round.started_ms),
        "finished_ts": seconds(round.finished_ms),
        "reason": round.reason,
        "version": round.version,
        "seed": round.job.payload["seed"],
        "progress": progress(round),
    });
    let plan = round.plan.as_ref();
    let names = |cases: Option<Vec<String>>| cases.map_or(Value::Null, |names| json!(names));
    object["start_version"] = json!(plan.map(|plan| plan.start_version));
    object["start"] = json!(plan.map(|plan| plan.start.as_str()));
    object["steps"] = json!(plan.map(|plan| plan.options.steps));
    object["training_images"] =
        names(plan.map(|plan| plan.cases.iter().map(|case| case.name.clone()).collect()));
    object["validation_images"] = names(plan.map(|plan| {
        plan.validation
            .iter()
            .map(|case| case.name.clone())
            .collect()
    }));
    object["label_sha256"] = names(plan.map(|plan| plan.label_sha256.clone()));
    let judged = round.judged.as_ref();
    object["live_version"] = json!(judged.map(|judged| judged.live_version));
    object["comparison"] = json!(judged.and_then(|Judged { comparison, .. }| comparison.as_ref()));
    object
}

/// What the worker says about a round that runs.
fn progress(round: &Round) -> Value {
    if round.job.state != JobState::Running || !round.job.progress.is_object() {
        return Value::Null;
    }
    let keys = ["stage", "step", "steps", "loss", "rate_hz", "eta_s"];
    let said = |key: &str| (key.to_owned(), round.job.progress[key].clone());
    Value::Object(keys.map(said).into_iter().collect::<Map<_, _>>())
}
