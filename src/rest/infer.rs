//! `/infer`: one proposal for one image.
//!
//! The request becomes a job, the handler waits for it and sends what it made. Whoever leaves before
//! the end takes the job along: it is cancelled when this handler is dropped. At most
//! `ServeConfig::infer_slots` requests wait here; the next one is told to come back (429).

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempPath;

use super::App;
use super::error::ApiError;
use super::form::Form;
use super::interaction::Target;
use super::query::{Query, Segment, lenient_flag, typed};
use super::{info, reply, task};

use crate::project::requests::{
    ImageSource, InferRequest, InferResult, Interaction, NO_FILE, ResultType,
};
use crate::project::{ImageId, JobId, JobKind, JobState, Jobs, Tag};

/// Suffix of a DICOM Segmentation object.
const DICOM: &str = ".dcm";
/// When a client that was refused should come back.
const RETRY_AFTER_S: u32 = 5;

#[derive(Clone, Copy)]
enum Output {
    All,
    Json,
    Image,
    DicomSeg,
}

/// The keys of `params` that this server acts on; others are ignored, and none can name a file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Params {
    result_extension: Option<String>,
    result_dtype: Option<String>,
    #[serde(default = "yes", deserialize_with = "lenient_flag")]
    result_write_to_file: bool,
    #[serde(deserialize_with = "lenient_flag")]
    result_compress: bool,
    #[serde(deserialize_with = "lenient_flag")]
    largest_cc: bool,
    #[serde(deserialize_with = "lenient_flag")]
    save_label: bool,
    label_tag: Option<String>,
    #[serde(deserialize_with = "lenient_flag")]
    restore_label_idx: bool,
    /// A number, or one of the texts that `/info/` offers.
    version: Option<Value>,
    /// Who asks.
    client_id: Option<String>,
}

/// Segment an image.
#[utoipa::path(post, path = "/infer/{model}", tag = "Infer",
    request_body(content = String, content_type = "multipart/form-data", description = "optional form: params (a JSON object), file (an image instead of an id), label (strokes, for a model of type scribbles)"),
    params(
        ("model" = String, Path, description = "a name under models in /info/"),
        ("image" = Option<String>, Query, description = "image id"),
        ("session_id" = Option<String>, Query, description = "use the image of this session instead"),
        ("output" = Option<String>, Query, description = "all (default), json, image, or dicom_seg for a DICOM series")),
    responses((status = 200, description = "multipart with params and image; or one of them by output"),
        (status = 404, description = "unknown model or image"), (status = 429, description = "too many requests wait")))]
pub async fn infer(
    State(app): State<App>,
    Segment(model): Segment,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let choices = [
        ("image", Output::Image),
        ("json", Output::Json),
        ("all", Output::All),
        ("dicom_seg", Output::DicomSeg),
    ];
    let (image, session, output) = query.read(|q| {
        (
            q.text("image"),
            q.text("session_id"),
            q.choice("output", &choices, Output::All),
        )
    })?;
    let target = Target::of(&app, &model).await?;
    let Ok(_slot) = app.infer_slots.try_acquire() else {
        return Err(ApiError::busy(
            "infer_queue_full",
            "too many inference requests wait on this server; nothing was queued, try again soon",
            RETRY_AFTER_S,
        ));
    };
    let mut form = Form::read(request, &app.project.staging(), target.files()).await?;
    let params = form.object("params")?;
    let strokes = form.take_file("label");
    let interaction = target.interaction(&app, &params, strokes.as_ref()).await?;
    let single = interaction.as_ref().is_some_and(Interaction::is_single);
    let drawn = interaction.is_some();
    let params: Params = typed(params)?;
    let upload = form.take_file("file");
    let session = match session.filter(|id| !id.is_empty()) {
        Some(id) if app.offers.sessions => app.sessions.get(&id, true).await?,
        _ => None,
    };
    // Held until the worker has read it; a series of a DICOMweb server is fetched here, beside the worker.
    let mut file = None;
    let (source, name) = match (&session, &upload, image.filter(|id| !id.is_empty())) {
        (Some(session), _, _) => (
            ImageSource::File {
                path: session.image.clone(),
            },
            session.file_name(),
        ),
        (None, Some(upload), _) => (
            ImageSource::File {
                path: upload.staged.path.clone(),
            },
            upload.file_name.clone(),
        ),
        (None, None, Some(id)) => {
            let id = ImageId::parse(&id)?;
            let image = app.project.image(&id).await?.ok_or_else(|| {
                ApiError::not_found(
                    "no_image",
                    "there is no image of this id; see /datastore/?output=all",
                )
            })?;
            if matches!(output, Output::DicomSeg) && !image.is_series {
                return Err(ApiError::bad_request(
                    "no_dicom_seg",
                    "this image is no DICOM series, so there is nothing that a DICOM SEG could refer to; ask for image or all",
                ));
            }
            file = Some(app.project.image_file(&image).await?);
            (ImageSource::Study { id }, image.name)
        }
        (None, None, None) => {
            return Err(ApiError::bad_request(
                "no_input",
                "Neither Image nor File nor Session ID input is provided",
            ));
        }
    };
    // As on the real server, a label is saved only for an image of the datastore; a single structure is not all of it.
    let saves = params.save_label && !single && matches!(source, ImageSource::Study { .. });
    let save_label = saves
        .then(|| {
            params
                .label_tag
                .as_deref()
                .map_or_else(|| Ok(Tag::original()), Tag::parse)
        })
        .transpose()?;
    let result_extension = match output {
        Output::DicomSeg => DICOM.to_owned(),
        _ if params.result_write_to_file => {
            result_extension(params.result_extension.as_deref(), &name)?
        }
        _ => NO_FILE.to_owned(),
    };
    let result_dtype = result_type(params.result_dtype)?;
    let version = match params.version.as_ref().and_then(info::version_of) {
        Some(number) if app.registry.version(&target.model, number).await?.is_none() => {
            return Err(ApiError::not_found(
                "no_version",
                format!("there is no version {number} of this model; see /models/"),
            ));
        }
        version => version,
    };
    let client = params.client_id.as_deref().unwrap_or("admin").to_owned();
    let subject = match &source {
        ImageSource::Study { id } => Some(id.to_string()),
        ImageSource::File { .. } | ImageSource::WarmUp => None,
    };
    let payload = InferRequest {
        model: target.model,
        version,
        image: source,
        result_extension,
        result_dtype,
        result_compress: params.result_compress,
        largest_cc: params.largest_cc,
        save_label: save_label.map(|tag| tag.to_string()),
        restore_label_idx: params.restore_label_idx,
        interaction,
    };
    let payload = serde_json::to_value(payload).map_err(|error| ApiError::internal(&error))?;
    let mut asked = serde_json::json!({ "model": model, "client_id": client });
    if single {
        asked["single"] = true.into();
    }
    let jobs = app.project.jobs();
    let job = jobs.enqueue(JobKind::Infer, payload, asked).await?;
    let mut leaving = CancelOnDrop {
        jobs: jobs.clone(),
        id: Some(job.id),
    };
    let job = jobs.wait(job.id, task::POLL).await?;
    leaving.id = None;
    app.metrics.inference(&job);
    // The worker has read the image and the uploads by now.
    drop((upload, strokes, file));
    if job.state != JobState::Done {
        return Err(task::failed(&job));
    }
    let made = &job.result["params"];
    let detail = serde_json::json!({
        "model": model, "version": made["model_version"], "sha256": made["model_sha256"],
    });
    app.project.acting_as(&client).note(
        "infer",
        subject.as_deref().unwrap_or("(upload)"),
        detail,
    )?;
    if let (Some(_), Some(file), false) = (subject, job.result["file"].as_str(), single) {
        app.project
            .keep_proposal(job.id, std::path::Path::new(file));
    }
    let code = if drawn { "bad_drawing" } else { "bad_image" };
    answer(job.result, output, code).await
}

/// `code` is that of an answer that the worker refused.
async fn answer(result: Value, output: Output, code: &'static str) -> Result<Response, ApiError> {
    let result = InferResult::deserialize(result).map_err(|error| ApiError::internal(&error))?;
    if let Some(reason) = result.refused {
        return Err(ApiError::new(
            axum::http::StatusCode::UNPROCESSABLE_ENTITY,
            code,
            &reason,
        ));
    }
    let file = match result.file {
        Some(path) => {
            Some(TempPath::try_from_path(path).map_err(|error| ApiError::internal(&error))?)
        }
        None => None,
    };
    let Some(file) = file else {
        return Ok(Json(result.params).into_response());
    };
    // Unique, without a folder: clients save it under this name into a folder that all share.
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    match output {
        Output::Json => Ok(Json(result.params).into_response()),
        Output::Image | Output::DicomSeg => reply::passing_file(file, &name).await,
        Output::All => reply::params_and_file(&result.params, file, &name).await,
    }
}

/// The format of the result: what the client asked for, else that of the image.
fn result_extension(asked: Option<&str>, image_name: &str) -> Result<String, ApiError> {
    const KNOWN: [&str; 6] = [".seg.nrrd", ".nrrd", ".nii.gz", ".nii", DICOM, NO_FILE];
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
        let own = KNOWN.iter().find(|suffix| image_name.ends_with(**suffix));
        return Ok((*own.unwrap_or(&".nii.gz")).to_owned());
    };
    let dotted = format!(".{}", asked.trim_start_matches('.')).to_ascii_lowercase();
    if KNOWN.contains(&dotted.as_str()) {
        return Ok(dotted);
    }
    Err(ApiError::bad_request(
        "result_extension",
        format!("result_extension has to be one of {}", KNOWN.join(" ")),
    ))
}

/// The voxel type of the result, by its name in numpy.
fn result_type(asked: Option<String>) -> Result<Option<ResultType>, ApiError> {
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
        return Ok(None);
    };
    ResultType::deserialize(Value::String(asked))
        .map(Some)
        .map_err(|_| {
            ApiError::bad_request(
                "result_dtype",
                "result_dtype has to be one of uint8 uint16 int16 int32 float32",
            )
        })
}

fn yes() -> bool {
    true
}

/// Cancels a job unless `id` was taken out.
struct CancelOnDrop {
    jobs: Jobs,
    id: Option<JobId>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let jobs = self.jobs.clone();
            tokio::spawn(async move {
                if let Err(error) = jobs.cancel(id).await {
                    tracing::warn!("a job whose client has gone could not be cancelled: {error}");
                }
            });
        }
    }
}
