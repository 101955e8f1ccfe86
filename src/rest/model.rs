//! `/model`: the weights file of the live version.

use std::path::Path;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::error::ApiError;
use super::form::Form;
use super::query::Segment;
use super::{App, info, reply, versions};
use crate::rounds::registry::ModelVersion;

/// A safetensors header may be this long (limit of the format's reference reader).
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The weights of the live version.
#[utoipa::path(get, path = "/model/{model}", tag = "Model",
    params(("model" = String, Path, description = "a name under models in /info/")),
    responses((status = 200, description = "a safetensors file"), (status = 404, description = "unknown model")))]
pub async fn download(
    State(app): State<App>,
    headers: HeaderMap,
    Segment(model): Segment,
) -> Result<Response, ApiError> {
    let live = live(&app, &model).await?;
    let detail = json!({ "version": live.version });
    app.note_read("read-model", &model, &headers, detail)?;
    reply::file(&live.weights_path(), &format!("{model}.safetensors")).await
}

/// Checksum and age of the live version.
#[utoipa::path(get, path = "/model/info/{model}", tag = "Model",
    params(("model" = String, Path, description = "a name under models in /info/")),
    responses((status = 200, description = "checksum, modified_time, version, train_stats"), (status = 404, description = "unknown model")))]
pub async fn about(
    State(app): State<App>,
    Segment(model): Segment,
) -> Result<Json<Value>, ApiError> {
    let live = live(&app, &model).await?;
    let mut about = checksum(&live)?;
    about["train_stats"] = info::train_stats(&app, &model).await?;
    Ok(Json(about))
}

/// Publish other weights for the live architecture, as a new version.
#[utoipa::path(put, path = "/model/{model}", tag = "Model",
    request_body(content = String, content_type = "multipart/form-data", description = "form: file (safetensors)"),
    params(("model" = String, Path, description = "a name under models in /info/")),
    responses((status = 200, description = "checksum, modified_time, version"), (status = 404, description = "unknown model"),
        (status = 503, description = "they do not answer; kept as a candidate"), (status = 415, description = "not a safetensors file"), (status = 422, description = "no file, or weights of another architecture")))]
pub async fn upload(
    State(app): State<App>,
    Segment(model): Segment,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let live = live(&app, &model).await?;
    // Before a byte of the body is read.
    app.project.staging().check_space()?;
    let mut form = Form::read(request, &app.project.staging(), &["file"]).await?;
    let staged = form.require_file("file")?.staged;
    let Some(tensors) = tensors(&staged.path).await else {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_safetensors",
            "weights have to be a safetensors file; convert a PyTorch checkpoint with 'fewlabel convert'",
        ));
    };
    if Some(tensors) != self::tensors(&live.weights_path()).await {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "other_architecture",
            "these weights have other tensors than the live model; nothing was changed. \
             Serve another architecture with 'fewlabel serve --model DIR'",
        ));
    }
    let added = app.registry.add_weights(&live, staged).await?;
    // The live version serves until this one answers.
    versions::answers(&app, &model, added.version, false).await?;
    let published = app.registry.publish(&model, added.version, false).await?;
    Ok(Json(checksum(&published)?))
}

/// Not offered: versions are immutable.
#[utoipa::path(delete, path = "/model/{model}", tag = "Model",
    params(("model" = String, Path, description = "a name under models in /info/")),
    responses((status = 404, description = "unknown model"), (status = 409, description = "versions are immutable")))]
pub async fn remove(
    State(app): State<App>,
    Segment(model): Segment,
) -> Result<Json<Value>, ApiError> {
    live(&app, &model).await?;
    Err(ApiError::new(
        StatusCode::CONFLICT,
        "immutable",
        "versions of a model are kept, so that every label can be traced to the model that proposed it",
    ))
}

async fn live(app: &App, model: &str) -> Result<ModelVersion, ApiError> {
    app.registry
        .live(model)
        .await?
        .ok_or_else(|| ApiError::not_found("no_model", format!("Model File NOT Found for {model}")))
}

fn checksum(version: &ModelVersion) -> Result<Value, ApiError> {
    Ok(json!({
        "checksum": format!("SHA256:{}", version.manifest()?.weights_sha256),
        "modified_time": version.created_ts,
        "version": version.version,
    }))
}

/// Name, type and shape of each tensor in a safetensors file; `None` for any other file.
///
/// Format: 8 bytes with the length of the header (little endian), a JSON object, the data.
async fn tensors(path: &Path) -> Option<Vec<(String, Value, Value)>> {
    let mut file = File::open(path).await.ok()?;
    let size_bytes = file.metadata().await.ok()?.len();
    let header_bytes = file.read_u64_le().await.ok()?;
    if header_bytes > MAX_HEADER_BYTES || header_bytes > size_bytes.saturating_sub(8) {
        return None;
    }
    let mut header = vec![0; usize::try_from(header_bytes).ok()?];
    file.read_exact(&mut header).await.ok()?;
    let header: Map<String, Value> = serde_json::from_slice(&header).ok()?;
    let named = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__");
    let mut tensors: Vec<_> = named
        .map(|(name, mut about)| {
            let part = |about: &mut Value, key: &str| about.get_mut(key).map(Value::take);
            Some((name, part(&mut about, "dtype")?, part(&mut about, "shape")?))
        })
        .collect::<Option<_>>()?;
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Some(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Option<Vec<(String, Value, Value)>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        tensors(file.path()).await
    }

    #[tokio::test]
    async fn only_safetensors_are_read() {
        let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend([0; 4]);
        let expected = vec![("w".to_owned(), json!("F32"), json!([1]))];
        assert_eq!(read(&file).await, Some(expected));
        for other in [
            b"PK\x03\x04 a PyTorch file".as_slice(),
            b"\x80\x02}q",
            b"",
            &[0xFF; 64],
        ] {
            assert_eq!(read(other).await, None);
        }
    }
}
