//! `/logs`: the last log lines, and what the GPU driver says.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::App;
use super::docs;
use super::error::ApiError;
use super::query::Query;

/// Log lines, from memory.
#[utoipa::path(get, path = "/logs/", tag = "Others",
    params(
        ("lines" = Option<i64>, Query, description = "how many lines; 0 or less for all that are kept"),
        ("html" = Option<bool>, Query, description = "a page that reads the lines (default)"),
        ("text" = Option<bool>, Query, description = "the lines as text"),
        ("refresh" = Option<i64>, Query, description = "seconds after which the page reads again")),
    responses((status = 200, description = "a page, or text")))]
pub async fn lines(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let (lines, html, text) = query.read(|q| {
        q.integer("refresh", 0);
        (
            q.integer("lines", 300),
            q.flag("html", true),
            q.flag("text", false),
        )
    })?;
    let count = usize::try_from(lines).ok().filter(|count| *count > 0);
    if html && !text && count.is_some() {
        return Ok(docs::html(include_str!("pages/logs.html")).into_response());
    }
    Ok(plain(app.logs.tail(count)))
}

/// Output of nvidia-smi.
#[utoipa::path(get, path = "/logs/gpu", tag = "Others",
    responses((status = 200, description = "text"), (status = 404, description = "there is no nvidia-smi")))]
pub async fn gpu() -> Result<Response, ApiError> {
    match tokio::process::Command::new("nvidia-smi")
        .kill_on_drop(true)
        .output()
        .await
    {
        Ok(output) if output.status.success() => {
            Ok(plain(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        _ => Err(ApiError::not_found(
            "no_nvidia_smi",
            "nvidia-smi could not be run on this server: there is no NVIDIA driver, or it does not answer",
        )),
    }
}

fn plain(text: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}
