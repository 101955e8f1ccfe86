//! `/batch/infer`: proposals for many images, stored as labels.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::App;
use super::error::ApiError;
use super::query::{JsonObject, Query, Segment, lenient_flag, typed};
use super::task::{BATCH_INFER, Start};
use crate::project::Tag;
use crate::project::requests::{BatchImages, BatchInferRequest};

/// The keys of the body that this server acts on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Params {
    label_tag: Option<String>,
    /// At most so many images; 0 for all.
    max_batch_size: Option<u32>,
    #[serde(deserialize_with = "lenient_flag")]
    largest_cc: bool,
}

/// Status of batch inference.
#[utoipa::path(get, path = "/batch/infer", tag = "Infer",
    params(
        ("all" = Option<bool>, Query, description = "every task instead of the last one"),
        ("check_if_running" = Option<bool>, Query, description = "the running task, or 404")),
    responses((status = 200, description = "a task, or a list of tasks"), (status = 404, description = "there is none")))]
pub async fn status(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    BATCH_INFER.status(&app, query).await
}

/// Segment many images.
#[utoipa::path(post, path = "/batch/infer/{model}", tag = "Infer",
    request_body(content = String, content_type = "application/json", description = "optional object: label_tag, max_batch_size, largest_cc"),
    params(
        ("model" = String, Path, description = "a name under models in /info/"),
        ("images" = Option<String>, Query, description = "all (default), labeled or unlabeled"),
        ("run_sync" = Option<bool>, Query, description = "answer when it is done")),
    responses((status = 200, description = "the task"), (status = 404, description = "unknown model"),
        (status = 429, description = "batch inference is running")))]
pub async fn start(
    State(app): State<App>,
    Segment(model): Segment,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let choices = [
        ("all", BatchImages::All),
        ("labeled", BatchImages::Labeled),
        ("unlabeled", BatchImages::Unlabeled),
    ];
    let (images, run_sync) = query.read(|q| {
        (
            q.choice("images", &choices, BatchImages::All),
            q.flag("run_sync", false),
        )
    })?;
    App::require(app.offers.batch_infer, "batch inference")?;
    app.live_model(&model).await?;
    let params = body.or_empty();
    let own: Params = typed(params.clone())?;
    let client = params.get("client_id").and_then(Value::as_str);
    app.project.acting_as(client.unwrap_or("admin")).note(
        "batch-infer",
        &model,
        Value::Object(params.clone()),
    )?;
    let tag = own.label_tag.as_deref().unwrap_or("original");
    let payload = BatchInferRequest {
        model: model.clone(),
        version: None,
        images,
        label_tag: Tag::parse(tag)?.to_string(),
        max_batch_size: own.max_batch_size.filter(|size| *size > 0),
        largest_cc: own.largest_cc,
    };
    let mut request = Map::from_iter([("model".to_owned(), model.into())]);
    request.extend(params.into_iter().filter(|(key, _)| key != "model"));
    BATCH_INFER
        .start(
            &app,
            &payload,
            request,
            Start {
                run_sync,
                enqueue: false,
            },
        )
        .await
}

/// Stop batch inference.
#[utoipa::path(delete, path = "/batch/infer", tag = "Infer",
    responses((status = 200, description = "the stopped task, or null")))]
pub async fn stop(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    BATCH_INFER.stop(&app).await
}
