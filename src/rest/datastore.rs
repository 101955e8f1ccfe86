//! `/datastore`: images and labels.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{ETAG, USER_AGENT};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::archive::{Entry, Source};
use super::form::{Form, Upload};
use super::query::Query;
use super::revisions::{expected_revision, precondition, revision_tag};
use super::{App, archive, error::ApiError, info, reply};
use crate::project::{ImageId, ImageRow, LabelRow, Origin, Provenance, STALE, SubmitLabel, Tag};

#[derive(Clone, Copy)]
enum Output {
    Stats,
    All,
    Train,
}

/// Counts, the whole list, or pairs for training.
#[utoipa::path(get, path = "/datastore/", tag = "Datastore",
    params(("output" = Option<String>, Query, description = "stats (default), all or train")),
    responses((status = 200, description = "an object, or a list for train"), (status = 422, description = "another output")))]
pub async fn overview(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let choices = [
        ("train", Output::Train),
        ("stats", Output::Stats),
        ("all", Output::All),
    ];
    Ok(Json(match query.read(|q| q.choice("output", &choices, Output::Stats))? {
        Output::Stats => info::counts(&app.project.counts().await?),
        Output::All => everything(&app).await?,
        Output::Train => learned_from(&app)
            .await?
            .into_iter()
            .map(|(image, label)| {
                json!({ "image": image.path, "label": app.project.training_label_path(&label) })
            })
            .collect(),
    }))
}

/// The document that MONAI Label keeps as `datastore_v2.json`, with a mark on labels whose image was
/// changed since.
async fn everything(app: &App) -> Result<Value, ApiError> {
    let mut document = app.project.document().await?;
    for (image, tag) in app.project.stale_labels().await? {
        let labels = &mut document["objects"][image.as_str()]["labels"];
        labels[tag.as_str()]["info"]["stale"] = STALE.into();
    }
    Ok(document)
}

/// Images with an accepted label, each with that label.
async fn pairs(app: &App) -> Result<Vec<(ImageRow, LabelRow)>, ApiError> {
    let accepted = app.project.accepted_labels().await?.into_iter();
    let mut by_image: HashMap<_, _> = accepted.map(|label| (label.image.clone(), label)).collect();
    let images = app.project.images().await?.into_iter();
    Ok(images
        .filter_map(|image| by_image.remove(&image.id).map(|label| (image, label)))
        .collect())
}

/// The pairs that may be learned from: not those of test images, and not what a second reader sent back.
async fn learned_from(app: &App) -> Result<Vec<(ImageRow, LabelRow)>, ApiError> {
    let held_out = app.project.test_images().await?;
    let mut pairs = pairs(app).await?;
    pairs.retain(|(image, label)| !held_out.contains(image.id.as_str()) && !label.sent_back());
    Ok(pairs)
}

/// Upload an image.
#[utoipa::path(put, path = "/datastore/image", tag = "Datastore",
    request_body(content = String, content_type = "multipart/form-data", description = "form: file (the image), params (a JSON object)"),
    params(("image" = Option<String>, Query, description = "id; from the file name when absent")),
    responses((status = 200, description = "its id"), (status = 422, description = "no file, or one that cannot be read")))]
pub async fn put_image(
    State(app): State<App>,
    mut query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let sent_id = query.text("image").filter(|id| !id.is_empty());
    let id = sent_id.as_deref().map(ImageId::parse).transpose()?;
    // Before a byte of the body is read.
    app.project.staging().check_space()?;
    let mut form = Form::read(request, &app.project.staging(), &["file"]).await?;
    let mut about = form.object("params")?;
    let Upload { staged, file_name } = form.require_file("file")?;
    about.entry("user").or_insert_with(|| "admin".into());
    let id = app.project.add_image(id, staged, &file_name, about).await?;
    Ok(Json(json!({ "image": id.to_string() })))
}

/// Upload an image (the route that Slicer and the Python client use).
#[utoipa::path(put, path = "/datastore/", tag = "Datastore",
    request_body(content = String, content_type = "multipart/form-data", description = "form: file (the image), params (a JSON object)"),
    params(("image" = Option<String>, Query, description = "id; from the file name when absent")),
    responses((status = 200, description = "its id")))]
#[deprecated]
pub async fn put_image_old(
    app: State<App>,
    query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    put_image(app, query, request).await
}

/// Remove an image and its labels from the project.
#[utoipa::path(delete, path = "/datastore/image", tag = "Datastore",
    params(("id" = String, Query, description = "image id")),
    responses((status = 200, description = "{}"), (status = 404, description = "unknown image")))]
pub async fn delete_image(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let id = ImageId::parse(&query.read(|q| q.required("id"))?)?;
    app.project.delete_image(&id).await?;
    Ok(Json(json!({})))
}

/// Remove an image (old route).
#[utoipa::path(delete, path = "/datastore/", tag = "Datastore",
    params(("id" = String, Query, description = "image id")),
    responses((status = 200, description = "{}")))]
#[deprecated]
pub async fn delete_image_old(app: State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    delete_image(app, query).await
}

/// The image file.
#[utoipa::path(get, path = "/datastore/image", tag = "Datastore",
    params(("image" = String, Query, description = "image id")),
    responses((status = 200, description = "the file"), (status = 404, description = "unknown image")))]
pub async fn get_image(
    State(app): State<App>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let id = query.read(|q| q.required("image"))?;
    let image = find_image(&app, &id).await?.ok_or_else(image_not_found)?;
    app.note_read("read-image", image.id.as_str(), &headers, json!({}))?;
    let (file, _) = app.project.client_file(&image).await?;
    reply::file(&file, &image.name).await
}

/// Is there such an image, with that checksum?
#[utoipa::path(head, path = "/datastore/image", tag = "Datastore",
    params(
        ("image" = String, Query, description = "image id"),
        ("check_sum" = Option<String>, Query, description = "SHA256:hex")),
    responses((status = 200, description = "yes"), (status = 404, description = "no")))]
pub async fn head_image(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let (id, check_sum) = query.read(|q| (q.required("image"), q.text("check_sum")))?;
    let image = find_image(&app, &id).await?.ok_or_else(image_not_found)?;
    if let Some(wanted) = check_sum.filter(|wanted| !wanted.is_empty()) {
        let wanted = wanted.strip_prefix("SHA256:").unwrap_or(&wanted);
        let (_, have) = app.project.client_file(&image).await?;
        if !have.eq_ignore_ascii_case(wanted) {
            return Err(image_not_found());
        }
    }
    let (file, _) = app.project.client_file(&image).await?;
    reply::file_head(&file, &image.name).await
}

/// What is known about an image.
#[utoipa::path(get, path = "/datastore/image/info", tag = "Datastore",
    params(("image" = String, Query, description = "image id")),
    responses((status = 200, description = "an object, empty for an unknown image")))]
pub async fn image_info(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let id = query.read(|q| q.required("image"))?;
    let about = find_image(&app, &id).await?.map(|image| {
        let mut about = image.info;
        about.insert("path".to_owned(), image.path.to_string_lossy().into());
        about
    });
    Ok(Json(about.unwrap_or_default().into()))
}

/// Add to what is known about an image.
#[utoipa::path(put, path = "/datastore/image/info", tag = "Datastore",
    request_body(content = String, content_type = "multipart/form-data", description = "form: info (a JSON object)"),
    params(("image" = String, Query, description = "image id")),
    responses((status = 200, description = "null"), (status = 404, description = "unknown image")))]
pub async fn put_image_info(
    State(app): State<App>,
    query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let id = ImageId::parse(&query.read(|q| q.required("image"))?)?;
    let form = Form::read(request, &app.project.staging(), &[]).await?;
    let mut about = form.object("info")?;
    about.insert("user".to_owned(), "admin".into());
    app.project.set_image_info(&id, about).await?;
    Ok(Json(Value::Null))
}

/// Submit a label.
#[utoipa::path(put, path = "/datastore/label", tag = "Datastore",
    request_body(content = String, content_type = "multipart/form-data", description = "form: label (the file), params (a JSON object with label_info)"),
    params(
        ("image" = String, Query, description = "image id"),
        ("tag" = Option<String>, Query, description = "final when absent")),
    responses((status = 200, description = "ids of image and label; the ETag names the revision, for If-Match"), (status = 404, description = "unknown image"),
        (status = 412, description = "If-Match names another revision than the current one"),
        (status = 422, description = "no file, or a label that does not fit the image")))]
pub async fn put_label(
    State(app): State<App>,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let (image, tag) = query.read(|q| (q.required("image"), q.text("tag")))?;
    let image = ImageId::parse(&image)?;
    let expected_revision = expected_revision(request.headers())?;
    let key = request.headers().get("idempotency-key");
    let idempotency_key = key.and_then(|key| key.to_str().ok()).map(str::to_owned);
    let tag = tag_or_final(tag.as_deref())?;
    let agent = request.headers().get(USER_AGENT);
    let agent = agent
        .and_then(|agent| agent.to_str().ok())
        .map(str::to_owned);
    // Before a byte of the body is read.
    app.project.staging().check_space()?;
    let mut form = Form::read(request, &app.project.staging(), &["label"]).await?;
    let params = form.object("params")?;
    let Upload { staged, file_name } = form.require_file("label")?;
    if let Some(announced) = params.get("label_sha256").and_then(Value::as_str)
        && !announced.eq_ignore_ascii_case(&staged.sha256)
    {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "other_bytes",
            "the label's bytes are not those that label_sha256 announces: it was damaged on the way; nothing was kept, send it again",
        ));
    }
    let origin = match params.get("origin").and_then(Value::as_str) {
        Some("interactive") => Origin::Interactive,
        _ => Origin::Manual,
    };
    let author = params
        .get("client_id")
        .and_then(Value::as_str)
        .unwrap_or("admin")
        .to_owned();
    let submit = SubmitLabel {
        provenance: Provenance::of_client(agent.as_deref().unwrap_or_default(), &params),
        origin,
        params,
        expected_revision,
        idempotency_key,
        ..SubmitLabel::new(image, tag, staged, &file_name, &author)
    };
    let label = app
        .project
        .submit_label(submit)
        .await
        .map_err(|error| precondition(expected_revision, error))?;
    app.metrics.submit();
    let id = label.image.to_string();
    Ok((
        [(ETAG, revision_tag(&label))],
        Json(json!({ "image": id, "label": id })),
    )
        .into_response())
}

/// Remove a label; its history is kept.
#[utoipa::path(delete, path = "/datastore/label", tag = "Datastore",
    params(("id" = String, Query, description = "image id"), ("tag" = String, Query, description = "tag")),
    responses((status = 200, description = "{}, also when there was none"),
        (status = 412, description = "If-Match names another revision than the current one")))]
pub async fn delete_label(
    State(app): State<App>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let (id, tag) = query.read(|q| (q.required("id"), q.required("tag")))?;
    let expected = expected_revision(&headers)?;
    if let (Ok(image), Ok(tag)) = (ImageId::parse(&id), Tag::parse(&tag)) {
        app.project
            .delete_label(&image, &tag, expected)
            .await
            .map_err(|error| precondition(expected, error))?;
    }
    Ok(Json(json!({})))
}

/// The label file.
#[utoipa::path(get, path = "/datastore/label", tag = "Datastore",
    params(
        ("label" = String, Query, description = "image id"),
        ("tag" = String, Query, description = "tag"),
        ("revision" = Option<i64>, Query, description = "the current one when absent")),
    responses((status = 200, description = "the file; the ETag names the revision"), (status = 404, description = "no such label")))]
pub async fn get_label(
    State(app): State<App>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let (id, tag, revision) = query.read(|q| {
        (
            q.required("label"),
            q.required("tag"),
            q.integer("revision", 0),
        )
    })?;
    let tag = tag_or_final(Some(&tag))?;
    let label = match (ImageId::parse(&id), revision) {
        (Ok(image), revision) if revision != 0 => app
            .project
            .revision(&image, &tag, revision)
            .await?
            .filter(|label| !label.deleted),
        _ => find_label(&app, &id, tag.as_str()).await?,
    }
    .ok_or_else(label_not_found)?;
    let detail = json!({ "tag": tag, "revision": label.revision });
    app.note_read("read-label", label.image.as_str(), &headers, detail)?;
    let file = reply::file(&app.project.label_path(&label), &label.file_name()).await?;
    Ok(([(ETAG, revision_tag(&label))], file).into_response())
}

/// Is there such a label?
#[utoipa::path(head, path = "/datastore/label", tag = "Datastore",
    params(("image" = String, Query, description = "image id"), ("tag" = Option<String>, Query, description = "final when absent")),
    responses((status = 200, description = "yes"), (status = 404, description = "no")))]
pub async fn head_label(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let (id, tag) = query.read(|q| (q.required("image"), q.text("tag")))?;
    let tag = tag_or_final(tag.as_deref())?;
    let label = find_label(&app, &id, tag.as_str())
        .await?
        .ok_or_else(label_not_found)?;
    let head = reply::file_head(&app.project.label_path(&label), &label.file_name()).await?;
    Ok(([(ETAG, revision_tag(&label))], head).into_response())
}

/// What is known about a label.
#[utoipa::path(get, path = "/datastore/label/info", tag = "Datastore",
    params(("label" = String, Query, description = "image id"), ("tag" = String, Query, description = "tag")),
    responses((status = 200, description = "an object, empty for an unknown label")))]
pub async fn label_info(State(app): State<App>, query: Query) -> Result<Json<Value>, ApiError> {
    let (id, tag) = query.read(|q| (q.required("label"), q.required("tag")))?;
    let Some(label) = find_label(&app, &id, &tag).await? else {
        return Ok(Json(json!({})));
    };
    let mut about = label.info;
    let stale = app.project.stale_labels().await?;
    if stale.contains(&(label.image, label.tag)) {
        about.insert("stale".to_owned(), STALE.into());
    }
    Ok(Json(about.into()))
}

/// Add to what is known about a label.
#[utoipa::path(put, path = "/datastore/label/info", tag = "Datastore",
    request_body(content = String, content_type = "multipart/form-data", description = "form: info (a JSON object)"),
    params(("label" = String, Query, description = "image id"), ("tag" = String, Query, description = "tag")),
    responses((status = 200, description = "null"), (status = 404, description = "no such label")))]
pub async fn put_label_info(
    State(app): State<App>,
    query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    merge_label_info(&app, query, request, "info").await
}

/// Add to what is known about a label (the route that the Reviewer uses).
#[utoipa::path(put, path = "/datastore/updatelabelinfo", tag = "Datastore",
    request_body(content = String, content_type = "multipart/form-data", description = "form: params (a JSON object)"),
    params(("label" = String, Query, description = "image id"), ("tag" = String, Query, description = "tag")),
    responses((status = 200, description = "null"), (status = 404, description = "no such label")))]
#[deprecated]
pub async fn put_label_info_old(
    State(app): State<App>,
    query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    merge_label_info(&app, query, request, "params").await
}

async fn merge_label_info(
    app: &App,
    query: Query,
    request: Request,
    field: &'static str,
) -> Result<Json<Value>, ApiError> {
    let (id, tag) = query.read(|q| (q.required("label"), q.required("tag")))?;
    let form = Form::read(request, &app.project.staging(), &[]).await?;
    let mut about = form.object(field)?;
    about.insert("user".to_owned(), "admin".into());
    let label = find_label(app, &id, &tag)
        .await?
        .ok_or_else(label_not_found)?;
    app.project
        .merge_label_info(&label.image, &label.tag, about)
        .await?;
    Ok(Json(Value::Null))
}

/// Images and accepted labels as one zip file.
#[utoipa::path(get, path = "/datastore/dataset", tag = "Datastore",
    params(("limit_cases" = Option<i64>, Query, description = "at most so many cases; all without it")),
    responses((status = 200, description = "dataset.zip"), (status = 404, description = "no accepted labels")))]
pub async fn dataset(
    State(app): State<App>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let limit = query.read(|q| q.integer("limit_cases", 0))?;
    let mut pairs = pairs(&app).await?;
    if let Some(limit) = usize::try_from(limit).ok().filter(|limit| *limit > 0) {
        pairs.truncate(limit);
    }
    if pairs.is_empty() {
        return Err(ApiError::not_found(
            "no_labels",
            "there is no accepted label yet, so there is no dataset",
        ));
    }
    app.note_read(
        "read-dataset",
        "",
        &headers,
        json!({ "cases": pairs.len() }),
    )?;
    let mut entries = Vec::new();
    for (image, label) in pairs {
        let file = |folder: &str, name: &str, path| Entry {
            name: format!("{folder}/{name}"),
            source: Source::File(path),
        };
        let label_name = format!("{}.nii.gz", label.image);
        entries.push(file(
            "label",
            &label_name,
            app.project.training_label_path(&label),
        ));
        let (path, _) = app.project.client_file(&image).await?;
        entries.push(file("image", &image.name, path));
    }
    let metadata = everything(&app).await?.to_string().into_bytes();
    entries.push(Entry {
        name: "metadata.json".to_owned(),
        source: Source::Bytes(metadata),
    });
    let download = archive::download("dataset.zip", entries).await;
    download.map_err(|error| ApiError::internal(&error))
}

/// The tag of accepted labels when none is named.
pub(super) fn tag_or_final(tag: Option<&str>) -> Result<Tag, ApiError> {
    match tag {
        None | Some("") => Ok(Tag::accepted()),
        Some(tag) => Ok(Tag::parse(tag)?),
    }
}

/// The image of that id; an id that cannot be one is just not found.
async fn find_image(app: &App, id: &str) -> Result<Option<ImageRow>, ApiError> {
    match ImageId::parse(id) {
        Ok(id) => Ok(app.project.image(&id).await?),
        Err(_) => Ok(None),
    }
}

async fn find_label(app: &App, id: &str, tag: &str) -> Result<Option<LabelRow>, ApiError> {
    match (ImageId::parse(id), Tag::parse(tag)) {
        (Ok(id), Ok(tag)) => Ok(app.project.label(&id, &tag).await?),
        _ => Ok(None),
    }
}

fn image_not_found() -> ApiError {
    ApiError::not_found("no_image", "Image NOT Found or is a directory")
}

fn label_not_found() -> ApiError {
    ApiError::not_found("no_label", "Label NOT Found or is a directory")
}
