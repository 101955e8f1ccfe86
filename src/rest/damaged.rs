//! The server of a project of which nothing can be read: it says so, and what to do.

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::json;

use super::edge;
use super::error::ApiError;
use super::metrics::{Metrics, of_the_process};

/// Answers every route with the reason.
pub fn router(reason: &str) -> Router {
    let refusal = reason.to_owned();
    let metrics = Metrics::default();
    let counted = metrics.clone();
    let (about, missing) = (refusal.clone(), refusal.clone());
    Router::new()
        .route("/livez", get(async || Json(json!({ "live": true }))))
        .route(
            "/readyz",
            get(move || {
                let body = json!({ "ready": false, "missing": ["store"], "reason": missing });
                std::future::ready((StatusCode::SERVICE_UNAVAILABLE, Json(body)))
            }),
        )
        .route(
            "/info/",
            get(move || std::future::ready(Json(super::info::nothing(&about)))),
        )
        .route(
            "/metrics",
            get(move || std::future::ready(of_the_process(&counted))),
        )
        .fallback(move || {
            std::future::ready(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "damaged",
                refusal.clone(),
            ))
        })
        .layer(axum::middleware::from_fn_with_state(metrics, edge::observe))
}
