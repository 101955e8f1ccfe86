//! Files in answers: one file as download, and the two-part answer of `/infer`.
//!
//! Every file answer has `Content-Length`. MONAI Label's Python client reads `/infer` from the raw
//! socket, so a chunked answer would put chunk sizes into the mask, silently.

use std::io::Cursor;
use std::path::Path;

use axum::body::Body;
use axum::http::header::{
    CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, LAST_MODIFIED,
};
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::error::ApiError;

/// Bytes that are read at once; each read waits for a thread.
const CHUNK_BYTES: usize = 1 << 18;

/// What may stand in a header parameter and in a path segment unescaped.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// `path` as a download called `name`.
///
/// # Errors
/// 500 when the file cannot be opened; callers check before that it should be there.
pub async fn file(path: &Path, name: &str) -> Result<Response, ApiError> {
    let (file, size_bytes, modified) = open(path).await?;
    let headers = [
        (CONTENT_TYPE, media_type(name).to_owned()),
        (CONTENT_LENGTH, size_bytes.to_string()),
        (CONTENT_DISPOSITION, attachment(name)),
        (LAST_MODIFIED, http_date(modified)),
        (
            ETAG,
            format!("\"{size_bytes:x}-{:x}\"", modified.as_nanosecond()),
        ),
    ];
    let body = Body::from_stream(ReaderStream::with_capacity(
        file.take(size_bytes),
        CHUNK_BYTES,
    ));
    Ok((headers, body).into_response())
}

/// Like [`file()`], and removes the file when it was sent or the client has gone.
///
/// # Errors
/// As [`file()`].
pub async fn passing_file(path: TempPath, name: &str) -> Result<Response, ApiError> {
    let (file, size_bytes, _) = open(&path).await?;
    let headers = [
        (CONTENT_TYPE, media_type(name).to_owned()),
        (CONTENT_LENGTH, size_bytes.to_string()),
        (CONTENT_DISPOSITION, attachment(name)),
    ];
    let kept = Kept {
        reader: file.take(size_bytes),
        _path: path,
    };
    Ok((
        headers,
        Body::from_stream(ReaderStream::with_capacity(kept, CHUNK_BYTES)),
    )
        .into_response())
}

/// The answer of `/infer`: `params` as JSON, then the file as part `image`; removes the file after.
///
/// # Errors
/// As [`file()`].
pub async fn params_and_file(
    params: &Value,
    path: TempPath,
    name: &str,
) -> Result<Response, ApiError> {
    let (file, size_bytes, _) = open(&path).await?;
    let boundary = uuid::Uuid::new_v4().simple().to_string();
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"params\"\r\n\
         Content-Type: application/json\r\n\r\n{params}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"image\"; filename=\"{name}\"\r\n\
         Content-Type: {}\r\n\r\n",
        media_type(name),
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let length_bytes = head.len() as u64 + size_bytes + tail.len() as u64;
    let headers = [
        (
            CONTENT_TYPE,
            format!("multipart/form-data; boundary={boundary}"),
        ),
        (CONTENT_LENGTH, length_bytes.to_string()),
    ];
    let reader = Cursor::new(head)
        .chain(file.take(size_bytes))
        .chain(Cursor::new(tail));
    let kept = Kept {
        reader,
        _path: path,
    };
    Ok((
        headers,
        Body::from_stream(ReaderStream::with_capacity(kept, CHUNK_BYTES)),
    )
        .into_response())
}

/// Headers of [`file()`] without a body, for HEAD.
///
/// # Errors
/// As [`file()`].
pub async fn file_head(path: &Path, name: &str) -> Result<Response, ApiError> {
    let (mut parts, _) = file(path, name).await?.into_parts();
    for name in [CONTENT_DISPOSITION, CONTENT_LENGTH] as [HeaderName; 2] {
        parts.headers.remove(name);
    }
    Ok(Response::from_parts(parts, Body::empty()))
}

/// A reader that keeps a temporary file alive until it is dropped.
struct Kept<R> {
    reader: R,
    _path: TempPath,
}

impl<R: tokio::io::AsyncRead + Unpin> tokio::io::AsyncRead for Kept<R> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

async fn open(path: &Path) -> Result<(File, u64, jiff::Timestamp), ApiError> {
    let opened = async {
        let file = File::open(path).await?;
        let about = file.metadata().await?;
        let modified = jiff::Timestamp::try_from(about.modified()?).unwrap_or_default();
        std::io::Result::Ok((file, about.len(), modified))
    };
    opened.await.map_err(|error| ApiError::internal(&error))
}

/// Media type by suffix, as MONAI Label has it.
pub fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("json") => "application/json",
        Some("dcm") => "application/dicom",
        Some("zip") => "application/zip",
        _ => "application/octet-stream",
    }
}

fn attachment(name: &str) -> String {
    let quoted = utf8_percent_encode(name, PLAIN).to_string();
    if quoted == name {
        format!("attachment; filename=\"{name}\"")
    } else {
        format!("attachment; filename*=utf-8''{quoted}")
    }
}

fn http_date(time: jiff::Timestamp) -> String {
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn download_names_are_quoted_or_encoded() {
        insta::assert_snapshot!(attachment("case_01.nii.gz"), @r#"attachment; filename="case_01.nii.gz""#);
        insta::assert_snapshot!(attachment("case 03 \"é\".nii.gz"), @"attachment; filename*=utf-8''case%2003%20%22%C3%A9%22.nii.gz");
    }

    #[test]
    fn http_dates() {
        let time = jiff::Timestamp::from_second(784_111_777).unwrap();
        insta::assert_snapshot!(http_date(time), @"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[tokio::test]
    async fn two_part_answer_layout() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, b"NRRD\r\n--raw\r\n").unwrap();
        let on_disk = path.to_path_buf();
        let params = serde_json::json!({"label_names": {"spleen": 1}});
        let response = params_and_file(&params, path, "r.nrrd").await.unwrap();
        let length = response.headers()[CONTENT_LENGTH]
            .to_str()
            .unwrap()
            .to_owned();
        let kind = response.headers()[CONTENT_TYPE]
            .to_str()
            .unwrap()
            .to_owned();
        let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        assert_eq!(length, bytes.len().to_string());
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        insta::assert_snapshot!(format!("{:?}", text.replace(boundary, "B")), @r#""--B\r\nContent-Disposition: form-data; name=\"params\"\r\nContent-Type: application/json\r\n\r\n{\"label_names\":{\"spleen\":1}}\r\n--B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"r.nrrd\"\r\nContent-Type: application/octet-stream\r\n\r\nNRRD\r\n--raw\r\n\r\n--B--\r\n""#);
        assert!(!on_disk.exists());
    }
}
