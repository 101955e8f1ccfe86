//! `/datastore/label/revisions`, `compare` and `current`: what a label was before. MONAI Label has
//! nothing like it; its clients never ask.

use axum::Json;
use axum::extract::State;
use axum::http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::datastore::tag_or_final;
use super::query::Query;
use super::{App, error::ApiError};
use crate::project::{ImageId, LabelRow, ProjectError};

/// Every revision of a label, oldest first.
#[utoipa::path(get, path = "/datastore/label/revisions", tag = "Datastore",
    params(
        ("image" = String, Query, description = "image id"),
        ("tag" = Option<String>, Query, description = "final when absent")),
    responses((status = 200, description = "image, tag, current (null when deleted) and revisions with author, origin, provenance and hashes"),
        (status = 404, description = "there never was such a label")))]
pub async fn list(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let (image, tag) = query.read(|q| (q.required("image"), q.text("tag")))?;
    let (image, tag) = (ImageId::parse(&image)?, tag_or_final(tag.as_deref())?);
    let history = app.project.history(&image, &tag).await?;
    if history.is_empty() {
        return Err(ApiError::not_found(
            "no_label",
            "there never was a label of this image and tag",
        ));
    }
    let current = app.project.label(&image, &tag).await?;
    let current = current.map(|label| label.revision);
    let revisions: Vec<Value> = history.iter().map(entry).collect();
    Ok(Json(
        json!({ "image": image, "tag": tag, "current": current, "revisions": revisions }),
    ))
}

/// Compare two revisions.
#[utoipa::path(get, path = "/datastore/label/compare", tag = "Datastore",
    params(
        ("image" = String, Query, description = "image id"),
        ("tag" = Option<String>, Query, description = "final when absent"),
        ("a" = i64, Query, description = "a revision"),
        ("b" = i64, Query, description = "another revision")),
    responses((status = 200, description = "voxels_changed, and per class voxels in each and Dice"),
        (status = 404, description = "no such revision")))]
pub async fn compare(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let (image, tag, a, b) = query.read(|q| {
        (
            q.required("image"),
            q.text("tag"),
            q.integer("a", 0),
            q.integer("b", 0),
        )
    })?;
    let (image, tag) = (ImageId::parse(&image)?, tag_or_final(tag.as_deref())?);
    let found = app.project.compare_revisions(&image, &tag, [a, b]).await?;
    Ok(Json(json!({
        "image": image, "tag": tag, "a": a, "b": b,
        "voxels_changed": found.voxels_changed, "classes": found.classes,
    })))
}

/// Make a revision the current one; every revision stays.
#[utoipa::path(put, path = "/datastore/label/current", tag = "Datastore",
    params(
        ("image" = String, Query, description = "image id"),
        ("tag" = Option<String>, Query, description = "final when absent"),
        ("revision" = i64, Query, description = "the revision"),
        ("client_id" = Option<String>, Query, description = "who asks, for the audit log")),
    responses((status = 200, description = "the revision"), (status = 404, description = "no such revision"),
        (status = 412, description = "If-Match names another revision than the current one"),
        (status = 422, description = "the revision is a deletion")))]
pub async fn make_current(
    State(app): State<App>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let (image, tag, revision, client) = query.read(|q| {
        (
            q.required("image"),
            q.text("tag"),
            q.integer("revision", 0),
            q.text("client_id"),
        )
    })?;
    let (image, tag) = (ImageId::parse(&image)?, tag_or_final(tag.as_deref())?);
    let expected = expected_revision(&headers)?;
    let label = app
        .project
        .acting_as(client.as_deref().unwrap_or("admin"))
        .make_current(&image, &tag, revision, expected)
        .await
        .map_err(|error| precondition(expected, error))?;
    Ok(([(ETAG, revision_tag(&label))], Json(entry(&label))).into_response())
}

fn entry(label: &LabelRow) -> Value {
    json!({
        "revision": label.revision,
        "parent": label.parent,
        "deleted": label.deleted,
        "author": label.author,
        "ts": label.ts,
        "origin": label.origin,
        "provenance": label.provenance,
        "annotated": label.annotated,
        "size_bytes": label.size_bytes,
        "sha256": label.sha256,
        "geometry_sha256": label.geometry_sha256,
        "image_sha256": label.image_sha256,
    })
}

/// The revision as entity tag; sent back as `If-Match`, it guards against overwriting another's work.
pub(super) fn revision_tag(label: &LabelRow) -> String {
    format!("\"{}\"", label.revision)
}

/// The revision that the client has seen last: `If-Match: "3"`, or 0 for `If-None-Match: *`.
pub(super) fn expected_revision(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    if text(IF_NONE_MATCH) == Some("*") {
        return Ok(Some(0));
    }
    let Some(sent) = text(IF_MATCH) else {
        return Ok(None);
    };
    sent.trim_matches('"').parse().map(Some).map_err(|_| {
        ApiError::bad_request(
            "bad_if_match",
            "If-Match has to be the ETag that GET /datastore/label sent; nothing was kept",
        )
    })
}

/// 412 when the client named a revision and somebody else was first.
pub(super) fn precondition(expected: Option<i64>, error: ProjectError) -> ApiError {
    match error {
        ProjectError::Conflict(text) if expected.is_some() => {
            ApiError::new(StatusCode::PRECONDITION_FAILED, "other_revision", text)
        }
        error => error.into(),
    }
}
