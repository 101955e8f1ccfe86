//! Forms with files: multipart, urlencoded, or nothing at all.
//!
//! MONAI Label's clients send `/infer` with a multipart form, an urlencoded form or no body, so
//! absence is not an error here. Files go to staging chunk by chunk; memory stays bounded whatever
//! their size. A whole form may be as long as one upload; one without files, as long as a text.

use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http_body_util::{LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::error::{ApiError, FieldError};
use super::idle::Idle;
use super::query::{SMALL_BODY_BYTES, read_small};
use crate::project::{Staged, Staging};

/// Boundaries, part headers and texts beside the files of a form.
const ROOM_BYTES: u64 = 8 << 20;
/// A DICOM series is one file per slice; nothing sane has more parts than this.
const MAX_PARTS: usize = 8_192;

/// A file that a client sent, in staging; it is removed when dropped.
#[derive(Debug)]
pub struct Upload {
    /// The bytes, hashed and on disk.
    pub staged: Staged,
    /// Last component of the client's file name; empty when it sent none.
    pub file_name: String,
}

/// The fields of a form.
#[derive(Debug, Default)]
pub struct Form {
    texts: Vec<(String, String)>,
    files: Vec<(String, Upload)>,
}

impl Form {
    /// Reads the form of `request`; files of fields in `keep` go to `staging`, others are dropped.
    ///
    /// # Errors
    /// 400 for a broken body, 408 for an idle client, 413 for a body or text that is too long, and what
    /// staging refuses.
    pub async fn read(
        request: Request,
        staging: &Staging,
        keep: &[&str],
    ) -> Result<Self, ApiError> {
        match media_type(request.headers()).as_str() {
            "multipart/form-data" => Self::read_multipart(request, staging, keep).await,
            "application/x-www-form-urlencoded" => {
                let bytes = read_small(request.into_body()).await?;
                Ok(Self {
                    texts: form_urlencoded::parse(&bytes).into_owned().collect(),
                    files: Vec::new(),
                })
            }
            _ => {
                read_small(request.into_body()).await?;
                Ok(Self::default())
            }
        }
    }

    async fn read_multipart(
        request: Request<Body>,
        staging: &Staging,
        keep: &[&str],
    ) -> Result<Self, ApiError> {
        let limit_bytes = match keep {
            [] => SMALL_BODY_BYTES as u64,
            _ => staging.limit_bytes().saturating_add(ROOM_BYTES),
        };
        let announced = request.headers().get(CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > limit_bytes) {
            return Err(ApiError::too_large(limit_bytes));
        }
        let limit = usize::try_from(limit_bytes).unwrap_or(usize::MAX);
        let request = request.map(|body| Body::new(Limited::new(body, limit)));
        let refused = |error: MultipartError| refusal(&error, limit_bytes);
        let mut parts = Multipart::from_request(request, &())
            .await
            .map_err(|_| ApiError::body_cut())?;
        let mut form = Self::default();
        let mut text_bytes = 0;
        let mut count = 0;
        while let Some(mut field) = parts.next_field().await.map_err(refused)? {
            count += 1;
            if count > MAX_PARTS {
                return Err(ApiError::too_large(MAX_PARTS as u64));
            }
            let name = field.name().unwrap_or_default().to_owned();
            match file_name(field.headers()) {
                None => {
                    let mut text = Vec::new();
                    while let Some(chunk) = field.chunk().await.map_err(refused)? {
                        text_bytes += chunk.len();
                        if text_bytes > SMALL_BODY_BYTES {
                            return Err(ApiError::too_large(SMALL_BODY_BYTES as u64));
                        }
                        text.extend_from_slice(&chunk);
                    }
                    let text = String::from_utf8_lossy(&text).into_owned();
                    form.texts.push((name, text));
                }
                Some(file_name) if keep.contains(&name.as_str()) => {
                    let staged = stage(&mut field, staging, refused).await?;
                    form.files.push((name, Upload { staged, file_name }));
                }
                Some(_) => while field.chunk().await.map_err(refused)?.is_some() {},
            }
        }
        Ok(form)
    }

    /// The last text of that name.
    pub fn text(&self, name: &str) -> Option<&str> {
        let found = self.texts.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, text)| text.as_str())
    }

    /// The JSON object in the text field `name`; empty when the field is absent or empty.
    ///
    /// # Errors
    /// 400 when the text is not a JSON object.
    pub fn object(&self, name: &'static str) -> Result<Map<String, Value>, ApiError> {
        match self.text(name).map(str::trim) {
            None | Some("") => Ok(Map::new()),
            Some(text) => serde_json::from_str(text).map_err(|error| {
                ApiError::bad_request(
                    "bad_params",
                    format!(
                        "the form field '{name}' has to be a JSON object ({error}); nothing was kept"
                    ),
                )
            }),
        }
    }

    /// Takes the last file of that name.
    pub fn take_file(&mut self, name: &str) -> Option<Upload> {
        let at = self.files.iter().rposition(|(key, _)| key == name)?;
        Some(self.files.swap_remove(at).1)
    }

    /// Takes the last file of that name.
    ///
    /// # Errors
    /// 422 when there is none.
    pub fn require_file(&mut self, name: &'static str) -> Result<Upload, ApiError> {
        self.take_file(name).ok_or_else(|| missing_file(name))
    }

    /// Takes all files of that name, in the order they came.
    ///
    /// # Errors
    /// 422 when there is none.
    pub fn require_files(self, name: &'static str) -> Result<Vec<Upload>, ApiError> {
        let named = self.files.into_iter().filter(|(key, _)| key == name);
        let files: Vec<Upload> = named.map(|(_, upload)| upload).collect();
        if files.is_empty() {
            return Err(missing_file(name));
        }
        Ok(files)
    }
}

fn missing_file(name: &'static str) -> ApiError {
    ApiError::invalid(vec![FieldError::missing("body", name)])
}

async fn stage(
    field: &mut Field<'_>,
    staging: &Staging,
    refused: impl Fn(MultipartError) -> ApiError,
) -> Result<Staged, ApiError> {
    let mut writer = staging.create().await?;
    while let Some(chunk) = field.chunk().await.map_err(&refused)? {
        writer.write(&chunk).await?;
    }
    Ok(writer.finish().await?)
}

/// Why a body could not be read to its end.
pub fn refusal(error: &(dyn std::error::Error + 'static), limit_bytes: u64) -> ApiError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<Idle>() {
            return ApiError::idle();
        }
        if error.is::<LengthLimitError>() {
            return ApiError::too_large(limit_bytes);
        }
        cause = error.source();
    }
    ApiError::body_cut()
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media = value.unwrap_or_default().split(';').next();
    media.unwrap_or_default().trim().to_ascii_lowercase()
}

/// The file name of a part, without folders; `None` for a part that is not a file.
///
/// The Python client sends the full path of the file on its machine, unescaped: with backslashes on
/// Windows and with any quotation mark the name has. So the name ends at the *last* quotation mark.
fn file_name(headers: &HeaderMap) -> Option<String> {
    let disposition = headers.get(CONTENT_DISPOSITION)?;
    let disposition = String::from_utf8_lossy(disposition.as_bytes());
    let path = if let Some((_, encoded)) = disposition.split_once("filename*=") {
        let encoded = encoded.split(';').next().unwrap_or_default();
        let encoded = encoded.trim().trim_matches('"');
        let encoded = encoded.rsplit('\'').next().unwrap_or_default();
        percent_decode_str(encoded).decode_utf8_lossy().into_owned()
    } else {
        let (_, rest) = disposition.split_once("filename=")?;
        match rest.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find("\"; ").or_else(|| quoted.rfind('"'));
                quoted[..end.unwrap_or(quoted.len())].to_owned()
            }
            None => rest.split(';').next().unwrap_or_default().trim().to_owned(),
        }
    };
    path.rsplit(['/', '\\']).next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(disposition: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_DISPOSITION, disposition.parse().unwrap());
        file_name(&headers)
    }

    #[test]
    fn names_lose_the_clients_folders() {
        for (sent, expected) in [
            (
                r#"form-data; name="file"; filename="/home/u/a b.nii.gz""#,
                "a b.nii.gz",
            ),
            (
                r#"form-data; name="file"; filename="C:\data\x.seg.nrrd""#,
                "x.seg.nrrd",
            ),
            (
                r#"form-data; name="file"; filename="/tmp/say "hi".nii.gz""#,
                r#"say "hi".nii.gz"#,
            ),
            (r#"form-data; filename="a.nrrd"; name="file""#, "a.nrrd"),
            ("form-data; name=file; filename=plain.nii", "plain.nii"),
            (
                "form-data; name=file; filename*=utf-8''caf%C3%A9.nii",
                "café.nii",
            ),
            (
                r#"form-data; name="file"; filename="../../etc/passwd""#,
                "passwd",
            ),
        ] {
            assert_eq!(named(sent).as_deref(), Some(expected), "{sent}");
        }
        assert_eq!(named(r#"form-data; name="params""#), None);
    }
}
