//! `/train`: fine-tuning of a model on the accepted labels.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::query::{JsonObject, Query, Segment, lenient_flag, typed};
use super::task::{Start, TRAIN};
use crate::project::Tag;
use crate::project::requests::TrainRequest;

/// Status of training.
#[utoipa::path(get, path = "/train/", tag = "Train",
    params(
        ("all" = Option<bool>, Query, description = "every task instead of the last one"),
        ("check_if_running" = Option<bool>, Query, description = "the running task, or 404")),
    responses((status = 200, description = "a task, or a list of tasks"), (status = 404, description = "there is none")))]
pub async fn status(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    TRAIN.status(&app, query).await
}

/// Train one model.
#[utoipa::path(post, path = "/train/{model}", tag = "Train",
    request_body(content = String, content_type = "application/json", description = "optional object: name, max_epochs, steps, val_split, pretrained, warm_start, seed, learning_rate, batch, early_stop_patience"),
    params(
        ("model" = String, Path, description = "name of the trainer in /info/"),
        ("run_sync" = Option<bool>, Query, description = "answer when training is done"),
        ("enqueue" = Option<bool>, Query, description = "wait behind a running task")),
    responses((status = 200, description = "the task"), (status = 404, description = "unknown model"),
        (status = 429, description = "training is running")))]
pub async fn start(
    State(app): State<App>,
    Segment(model): Segment,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let how = query.read(|q| Start {
        run_sync: q.flag("run_sync", false),
        enqueue: q.flag("enqueue", false),
    })?;
    App::require(app.offers.train, "training")?;
    app.live_model(&model).await?;
    let params = body.or_empty();
    let payload = train_request(&model, params.clone())?;
    TRAIN.start(&app, &payload, echo(&model, params), how).await
}

/// Train every model.
#[utoipa::path(post, path = "/train/", tag = "Train",
    request_body(content = String, content_type = "application/json", description = "optional object: for each model its parameters"),
    params(("run_sync" = Option<bool>, Query, description = "answer when training is done")),
    responses((status = 200, description = "for each model its task")))]
#[deprecated]
pub async fn start_all(
    State(app): State<App>,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let run_sync = query.read(|q| q.flag("run_sync", false))?;
    App::require(app.offers.train, "training")?;
    let how = Start {
        run_sync,
        enqueue: true,
    };
    let params = body.or_empty();
    let mut answer = Map::new();
    for model in app.model_names().await? {
        let own = params
            .get(&model)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        let payload = train_request(&model, own.clone())?;
        let Json(result) = TRAIN.start(&app, &payload, echo(&model, own), how).await?;
        answer.insert(model, json!({ "result": result, "detail": null }));
    }
    Ok(Json(answer.into()))
}

/// Stop training.
#[utoipa::path(delete, path = "/train/", tag = "Train",
    responses((status = 200, description = "the stopped task, or null")))]
pub async fn stop(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let Json(stopped) = TRAIN.stop(&app).await?;
    if !stopped.is_null() {
        let model = stopped["request"]["model"].as_str().unwrap_or_default();
        let project = app.project.acting_as("admin");
        project.note("stop-training", model, json!({}))?;
    }
    Ok(Json(stopped))
}

/// The keys of the body that training acts on, with the defaults that `/info/` tells.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Params {
    name: String,
    max_epochs: u32,
    steps: Option<u32>,
    val_split: f64,
    #[serde(deserialize_with = "lenient_flag")]
    pretrained: bool,
    warm_start: Option<bool>,
    seed: u64,
    learning_rate: Option<f64>,
    batch: Option<u16>,
    early_stop_patience: i64,
}

impl Default for Params {
    fn default() -> Self {
        let of = TrainRequest::of("");
        Self {
            name: of.name,
            max_epochs: of.max_epochs,
            steps: of.steps,
            val_split: of.val_split,
            pretrained: of.pretrained,
            warm_start: of.warm_start,
            seed: of.seed,
            learning_rate: of.learning_rate,
            batch: of.batch,
            early_stop_patience: of.early_stop_patience,
        }
    }
}

/// The trainer's part of `/info/`; the values are the defaults, and their JSON types tell Slicer how
/// to read what a user types.
pub fn config(devices: &[String]) -> Value {
    let default = Params::default();
    json!({
        "name": default.name,
        "pretrained": default.pretrained,
        "device": devices,
        "max_epochs": default.max_epochs,
        "early_stop_patience": default.early_stop_patience,
        "val_split": default.val_split,
    })
}

/// What a client asks for, checked.
///
/// # Errors
/// 400 for values that cannot be.
pub fn train_request(model: &str, params: Map<String, Value>) -> Result<TrainRequest, ApiError> {
    let params: Params = typed(params)?;
    if params.max_epochs == 0 || params.steps == Some(0) {
        return Err(ApiError::bad_request(
            "bad_params",
            "max_epochs and steps have to be 1 or more",
        ));
    }
    if params.batch == Some(0)
        || params
            .learning_rate
            .is_some_and(|rate| !(rate > 0.0 && rate <= 1.0))
    {
        return Err(ApiError::bad_request(
            "bad_params",
            "batch has to be 1 or more, and learning_rate above 0 and at most 1",
        ));
    }
    if !(0.0..1.0).contains(&params.val_split) {
        return Err(ApiError::bad_request(
            "bad_params",
            "val_split has to be from 0 to below 1",
        ));
    }
    Ok(TrainRequest {
        model: model.to_owned(),
        name: Tag::parse(&params.name)?.to_string(),
        max_epochs: params.max_epochs,
        steps: params.steps,
        val_split: params.val_split,
        pretrained: params.pretrained,
        warm_start: params.warm_start,
        seed: params.seed,
        learning_rate: params.learning_rate,
        batch: params.batch,
        early_stop_patience: params.early_stop_patience,
    })
}

/// The request as the task shows it: what the client sent, and the model it is for.
pub fn echo(model: &str, params: Map<String, Value>) -> Map<String, Value> {
    let mut request = Map::from_iter([("model".to_owned(), model.into())]);
    request.extend(params.into_iter().filter(|(key, _)| key != "model"));
    request
}
