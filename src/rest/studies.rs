//! What MONAI Label has no routes for: looking through the studies folder now, and labels whose image
//! was changed.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::datastore::tag_or_final;
use super::query::Query;
use super::{App, error::ApiError};
use crate::project::ImageId;

/// Look through the studies folder now.
#[utoipa::path(post, path = "/datastore/rescan", tag = "Datastore",
    responses((status = 200, description = "added, changed and vanished images, files that were skipped with the reason, and unsettled ones that are still being written")))]
pub async fn rescan(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let found = app.project.rescan().await?;
    let skipped: Vec<Value> = found
        .skipped
        .iter()
        .map(|(file, reason)| json!({ "file": file, "reason": reason }))
        .collect();
    Ok(Json(json!({
        "added": found.added, "changed": found.changed, "vanished": found.vanished,
        "skipped": skipped, "unsettled": found.unsettled,
    })))
}

/// Say that a label also fits its image as it was changed.
#[utoipa::path(put, path = "/datastore/label/confirm", tag = "Datastore",
    params(
        ("image" = String, Query, description = "image id"),
        ("tag" = Option<String>, Query, description = "final when absent"),
        ("client_id" = Option<String>, Query, description = "who says so, for the audit log")),
    responses((status = 200, description = "null"), (status = 404, description = "no such label"),
        (status = 422, description = "the image has another grid now")))]
pub async fn confirm(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let (image, tag, client) =
        query.read(|q| (q.required("image"), q.text("tag"), q.text("client_id")))?;
    let (image, tag) = (ImageId::parse(&image)?, tag_or_final(tag.as_deref())?);
    let client = client.as_deref().unwrap_or("admin");
    app.project.confirm_label(&image, &tag, client).await?;
    Ok(Json(Value::Null))
}
