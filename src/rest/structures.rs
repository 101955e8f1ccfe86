//! What clients that draw need of the labels: names, colours and codes of the structures, and any label in their values.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::ETAG;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::datastore::tag_or_final;
use super::query::Query;
use super::revisions::revision_tag;
use super::{App, error::ApiError, reply};
use crate::project::ImageId;

/// The structures of the project.
#[utoipa::path(get, path = "/datastore/schema", tag = "Datastore",
    responses((status = 200, description = "structures: name, value, color_rgb and terminology (SNOMED CT codes of category, type and modifier, or null)")))]
pub async fn schema(State(app): State<App>) -> Json<Value> {
    Json(json!({ "structures": app.project.structures() }))
}

/// A label in the values of the project.
#[utoipa::path(get, path = "/datastore/label/map", tag = "Datastore",
    params(
        ("image" = String, Query, description = "image id"),
        ("tag" = Option<String>, Query, description = "final when absent"),
        ("revision" = Option<i64>, Query, description = "the current one when absent")),
    responses((status = 200, description = "NRRD on the grid of the image, whatever the label was sent as; the ETag names the revision"),
        (status = 404, description = "no such label")))]
pub async fn label_map(
    State(app): State<App>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let (image, tag, revision) =
        query.read(|q| (q.required("image"), q.text("tag"), q.integer("revision", 0)))?;
    let (image, tag) = (ImageId::parse(&image)?, tag_or_final(tag.as_deref())?);
    let label = match revision {
        0 => app.project.label(&image, &tag).await?,
        revision => app.project.revision(&image, &tag, revision).await?,
    };
    let label = label
        .filter(|label| !label.deleted)
        .ok_or_else(|| ApiError::not_found("no_label", "there is no such label"))?;
    let detail = json!({ "tag": tag, "revision": label.revision });
    app.note_read("read-label", image.as_str(), &headers, detail)?;
    let map = app.project.label_map(&label).await?;
    let file = reply::file(&map.path, &format!("{image}.nrrd")).await?;
    // The open file outlives its name: what was made for this answer is gone with it.
    drop(map);
    Ok(([(ETAG, revision_tag(&label))], file).into_response())
}
