//! `/session`: images that are used for a while and not kept.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::ApiError;
use super::form::Form;
use super::query::{Query, Segment};
use super::{App, reply};

/// Upload images for a session.
#[utoipa::path(put, path = "/session/", tag = "Session",
    request_body(content = String, content_type = "multipart/form-data", description = "form: files (one or more)"),
    params(
        ("uncompress" = Option<bool>, Query, description = "the file is a zip file with a DICOM series, which is read in place"),
        ("expiry" = Option<i64>, Query, description = "seconds without use until the session ends; 0 for one hour")),
    responses((status = 200, description = "session_id and session_info"), (status = 422, description = "no file")))]
pub async fn create(
    State(app): State<App>,
    query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let sessions = app.sessions()?;
    let (uncompress, expiry) =
        query.read(|q| (q.flag("uncompress", false), q.integer("expiry", 0)))?;
    let expiry_s = u32::try_from(expiry).ok().filter(|seconds| *seconds > 0);
    let expiry_s = expiry_s.unwrap_or(app.offers.session_expiry_s);
    // Before a byte of the body is read.
    app.project.staging().check_space()?;
    let form = Form::read(request, &app.project.staging(), &["files"]).await?;
    let files = form.require_files("files")?;
    let files = files
        .into_iter()
        .map(|upload| (upload.file_name, upload.staged))
        .collect();
    let session = sessions.create(files, expiry_s, uncompress).await?;
    Ok(Json(
        json!({ "session_id": session.id, "session_info": session.info() }),
    ))
}

/// What is known about a session, or its image.
#[utoipa::path(get, path = "/session/{session_id}", tag = "Session",
    params(
        ("session_id" = String, Path, description = "from the creation of the session"),
        ("update_ts" = Option<bool>, Query, description = "counts as use"),
        ("image" = Option<bool>, Query, description = "the image file instead")),
    responses((status = 200, description = "session_info, or the file"), (status = 404, description = "no such session")))]
pub async fn get(
    State(app): State<App>,
    Segment(id): Segment,
    query: Query,
) -> Result<Response, ApiError> {
    let (touch, image) = query.read(|q| (q.flag("update_ts", false), q.flag("image", false)))?;
    let session =
        app.sessions()?.get(&id, touch).await?.ok_or_else(|| {
            ApiError::not_found("no_session", format!("Session ({id}) Not Found"))
        })?;
    if !image {
        return Ok(Json(session.info()).into_response());
    }
    if session.image.is_dir() {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "many_files",
            "the image of this session is a series of files; it cannot be sent as one",
        ));
    }
    reply::file(&session.image, &session.file_name()).await
}

/// End a session.
#[utoipa::path(delete, path = "/session/{session_id}", tag = "Session",
    params(("session_id" = String, Path, description = "from the creation of the session")),
    responses((status = 200, description = "session_info"), (status = 404, description = "no such session")))]
pub async fn remove(State(app): State<App>, Segment(id): Segment) -> Result<Json<Value>, ApiError> {
    let session = app.sessions()?.remove(&id).await?;
    let session = session.ok_or_else(|| ApiError::not_found("no_session", "Session Not Found"))?;
    Ok(Json(session.info()))
}
