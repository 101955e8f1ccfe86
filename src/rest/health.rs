//! `/livez` and `/readyz`: for whoever keeps the server running.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;

/// The process answers.
#[utoipa::path(get, path = "/livez", tag = "Others",
    responses((status = 200, description = "always")))]
pub async fn livez() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// The server can do its work; names what is missing.
#[utoipa::path(get, path = "/readyz", tag = "Others",
    responses((status = 200, description = "ready"), (status = 503, description = "what is missing")))]
pub async fn readyz(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let mut missing = Vec::new();
    if app.project.counts().await.is_err() {
        missing.push("store");
    }
    if !matches!(app.live_models().await.as_deref(), Ok([_, ..])) {
        missing.push("model");
    }
    if !app.worker_runs() {
        missing.push("worker");
    }
    let reason = app.project.read_only();
    if reason.is_some() {
        missing.push("writable store");
    }
    let status = if missing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut body = json!({ "ready": missing.is_empty(), "missing": missing });
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    (status, Json(body))
}
