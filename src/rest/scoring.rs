//! `/scoring`: numbers for every image and label, among them how sure the model is.

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::query::{JsonObject, Query, Segment};
use super::task::{SCORING, Start};
use crate::project::JobKind;
use crate::project::requests::{Passes, ScoreRequest};

/// Names of the methods, with what `/info/` says about them.
pub const METHODS: [(&str, &str); 3] = [
    (
        "dice",
        "Dice per label of the accepted label against the proposal of the model",
    ),
    (
        "sum",
        "Sum of the values of every label, and its slices that are not empty",
    ),
    (
        "epistemic",
        "How sure the model is of every image, for the strategies that go by it",
    ),
];
/// Most versions of a model that are asked together.
const MOST_VERSIONS: u64 = 16;

/// Status of scoring.
#[utoipa::path(get, path = "/scoring/", tag = "Scoring",
    params(
        ("all" = Option<bool>, Query, description = "every task instead of the last one"),
        ("check_if_running" = Option<bool>, Query, description = "the running task, or 404")),
    responses((status = 200, description = "a task, or a list of tasks"), (status = 404, description = "there is none")))]
pub async fn status(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    SCORING.status(&app, query).await
}

/// Score with one method.
#[utoipa::path(post, path = "/scoring/{method}", tag = "Scoring",
    request_body(content = String, content_type = "application/json", description = "optional object; for epistemic: model, passes (auto, single, flips, dropout:N), versions"),
    params(
        ("method" = String, Path, description = "a name under scoring in /info/"),
        ("run_sync" = Option<bool>, Query, description = "answer when it is done")),
    responses((status = 200, description = "the task"), (status = 404, description = "unknown method"),
        (status = 429, description = "scoring is running")))]
pub async fn start(
    State(app): State<App>,
    Segment(method): Segment,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let run_sync = query.read(|q| q.flag("run_sync", false))?;
    App::require(app.offers.scoring, "scoring")?;
    if !METHODS.iter().any(|(name, _)| *name == method) {
        return Err(ApiError::not_found(
            "no_method",
            "there is no scoring method of this name; see scoring in /info/",
        ));
    }
    run(
        &app,
        &method,
        body.or_empty(),
        Start {
            run_sync,
            enqueue: false,
        },
    )
    .await
}

/// Score with every method.
#[utoipa::path(post, path = "/scoring/", tag = "Scoring",
    params(("run_sync" = Option<bool>, Query, description = "answer when it is done")),
    responses((status = 200, description = "for each method its task")))]
#[deprecated]
pub async fn start_all(
    State(app): State<App>,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let run_sync = query.read(|q| q.flag("run_sync", false))?;
    App::require(app.offers.scoring, "scoring")?;
    let params = body.or_empty();
    let mut answer = Map::new();
    for (method, _) in METHODS {
        let own = params
            .get(method)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        let Json(result) = run(
            &app,
            method,
            own,
            Start {
                run_sync,
                enqueue: true,
            },
        )
        .await?;
        answer.insert(
            method.to_owned(),
            json!({ "result": result, "detail": null }),
        );
    }
    Ok(Json(answer.into()))
}

/// Stop scoring.
#[utoipa::path(delete, path = "/scoring/", tag = "Scoring",
    responses((status = 200, description = "the stopped task, or null")))]
pub async fn stop(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    SCORING.stop(&app).await
}

/// What the worker is asked to do.
fn request(method: &str, params: &Map<String, Value>) -> Result<ScoreRequest, ApiError> {
    let text = |key: &str| params.get(key).and_then(Value::as_str);
    let passes = text("passes").unwrap_or("auto").parse::<Passes>();
    let versions = match params.get("versions") {
        None | Some(Value::Null) => Some(1),
        Some(count) => count.as_u64().filter(|n| (1..=MOST_VERSIONS).contains(n)),
    };
    let versions = versions.ok_or_else(|| {
        let detail = format!("versions must be a whole number from 1 to {MOST_VERSIONS}");
        ApiError::bad_request("bad_versions", detail)
    })?;
    Ok(ScoreRequest {
        method: method.to_owned(),
        model: text("model").map(str::to_owned),
        passes: passes.map_err(|reason| ApiError::bad_request("bad_passes", reason))?,
        versions: usize::try_from(versions).ok(),
    })
}

/// Asks the live model about the images that it has not scored yet, unless scoring is under way.
pub async fn ask_for_scores(app: &App) -> Result<(), ApiError> {
    let jobs = app.project.jobs();
    let _turn = app.starting.lock().await;
    if jobs.running(JobKind::Score).await?.is_some() {
        return Ok(());
    }
    let payload = request("epistemic", &Map::new())?;
    let payload = serde_json::to_value(&payload).map_err(|error| ApiError::internal(&error))?;
    jobs.enqueue(JobKind::Score, payload, json!({ "method": "epistemic" }))
        .await?;
    Ok(())
}

async fn run(
    app: &App,
    method: &str,
    params: Map<String, Value>,
    how: Start,
) -> Result<Json<Value>, ApiError> {
    let payload = request(method, &params)?;
    let mut request = Map::from_iter([("method".to_owned(), method.into())]);
    request.extend(params.into_iter().filter(|(key, _)| key != "method"));
    SCORING.start(app, &payload, request, how).await
}
