//! The pages for people: what this server offers. They work without any other network.

use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse, Response};

use super::error::ApiError;
use super::query::Segment;

/// `GET /` and `GET /docs`: the endpoints, listed from `/openapi.json`.
pub async fn page() -> impl IntoResponse {
    html(include_str!("pages/docs.html"))
}

/// A page that may load nothing but its own server's files.
pub fn html(text: &'static str) -> impl IntoResponse {
    (
        [(CONTENT_SECURITY_POLICY, "default-src 'self'")],
        Html(text),
    )
}

/// `GET /favicon.ico`: the sign of the pages.
pub async fn icon() -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "image/svg+xml")],
        include_str!("pages/icon.svg"),
    )
}

/// `GET /static/{name}`: scripts and styles of the pages.
///
/// # Errors
/// 404 for any other name.
pub async fn asset(Segment(name): Segment) -> Result<Response, ApiError> {
    let (media_type, text) = match name.as_str() {
        "docs.js" => ("text/javascript", include_str!("pages/docs.js")),
        "logs.js" => ("text/javascript", include_str!("pages/logs.js")),
        "page.css" => ("text/css", include_str!("pages/page.css")),
        _ => return Err(ApiError::no_route()),
    };
    Ok(([(CONTENT_TYPE, media_type)], text).into_response())
}
