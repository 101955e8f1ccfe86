//! `GET /statistics/`: how far the project is, by part, annotator and structure.
//!
//! ```json
//! {
//!   "images": {"total": 40, "labelled": 12, "leased": 2,
//!              "parts": {"train": {"total": 28, "labelled": 9}, "validation": {"total": 6, "labelled": 3},
//!                        "test": {"total": 6, "labelled": 0}}},
//!   "annotators": [{"author": "ann", "images": 7, "revisions": 9, "seconds_median": 840.0, "last_ts": 0}],
//!   "structures": [{"name": "liver", "images": 12}]
//! }
//! ```
//! `labelled` counts images with a current accepted label; `images` of an annotator those whose current accepted label is
//! theirs, `revisions` everything accepted they ever submitted; `seconds_median` is the time from getting the image to
//! the submit, null where no client said it; `images` of a structure are those in which it was annotated.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use crate::rounds::leases;

/// How far the project is.
#[utoipa::path(get, path = "/statistics/", tag = "Rounds",
    responses((status = 200, description = "{images, annotators, structures}")))]
pub async fn statistics(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let found = app.project.statistics().await?;
    let leased = leases::list(&app.project).await?.len();
    let parts: serde_json::Map<String, Value> = found
        .parts
        .iter()
        .map(|part| {
            let counts = json!({"total": part.total, "labelled": part.labelled});
            (part.part.as_str().to_owned(), counts)
        })
        .collect();
    let annotators: Vec<Value> = found
        .annotators
        .iter()
        .map(|annotator| {
            json!({
                "author": annotator.author,
                "images": annotator.images,
                "revisions": annotator.revisions,
                "seconds_median": annotator.seconds_median,
                "last_ts": annotator.last_ts,
            })
        })
        .collect();
    let structures: Vec<Value> = found
        .structures
        .iter()
        .map(|(name, images)| json!({"name": name, "images": images}))
        .collect();
    Ok(Json(json!({
        "images": {
            "total": found.total, "labelled": found.labelled, "leased": leased, "parts": parts,
        },
        "annotators": annotators,
        "structures": structures,
    })))
}
