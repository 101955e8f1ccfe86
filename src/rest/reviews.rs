//! `/reviews`: submitted labels with author and time, and what a second reader said about them.
//!
//! | route | what it does | answer |
//! |---|---|---|
//! | `GET /reviews/` | submitted labels, the last submitted first | `{"cases": [Case]}` |
//! | `PUT /reviews/?image=ID` | approves the label, or sends it back | `Case`; 404, 409 `conflict` when it was submitted anew, 422 without a comment |
//!
//! The body of `PUT` is `{"revision": 2, "verdict": "approved" | "sent_back", "comment": "...", "client_id": "..."}`.
//! `Case`: `{"image": "case_1", "revision": 2, "author": "ann", "ts": 0, "annotated": ["liver"], "review": null |
//! {"verdict", "reviewer", "comment", "ts"}}`. A verdict is about one revision.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::query::{JsonObject, Query, typed};
use super::{App, error::ApiError};
use crate::project::{ImageId, LabelRow, Tag, Verdict};

/// Submitted labels and their reviews.
#[utoipa::path(get, path = "/reviews/", tag = "Review",
    responses((status = 200, description = "cases: image, revision, author, ts, annotated and review, the last submitted first")))]
pub async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let mut labels = app.project.accepted_labels().await?;
    labels.sort_by_key(|label| std::cmp::Reverse(label.ts));
    let cases: Vec<Value> = labels.iter().map(case).collect();
    Ok(Json(json!({ "cases": cases })))
}

/// What a reviewer sends.
#[derive(Debug, Deserialize)]
struct Params {
    revision: i64,
    verdict: Verdict,
    #[serde(default)]
    comment: String,
    client_id: Option<String>,
}

/// Approve a label, or send it back to its author.
#[utoipa::path(put, path = "/reviews/", tag = "Review",
    request_body(content = String, content_type = "application/json", description = "object: revision, verdict (approved or sent_back), comment, client_id"),
    params(("image" = String, Query, description = "image id")),
    responses((status = 200, description = "the case"), (status = 404, description = "no submitted label"),
        (status = 409, description = "another revision is the current one"), (status = 422, description = "sent back without a comment")))]
pub async fn judge(
    State(app): State<App>,
    query: Query,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    let image = ImageId::parse(&query.read(|q| q.required("image"))?)?;
    let params: Params = typed(body.or_empty())?;
    let project = app
        .project
        .acting_as(params.client_id.as_deref().unwrap_or("admin"));
    project
        .review_label(&image, params.revision, params.verdict, &params.comment)
        .await?;
    let label = project.label(&image, &Tag::accepted()).await?;
    Ok(Json(label.as_ref().map_or(Value::Null, case)))
}

fn case(label: &LabelRow) -> Value {
    json!({
        "image": label.image, "revision": label.revision, "author": label.author, "ts": label.ts,
        "annotated": label.annotated, "review": label.review(),
    })
}
