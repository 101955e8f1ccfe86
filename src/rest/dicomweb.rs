//! `/proxy/dicom`: the DICOMweb server behind this one, for viewers that reach it only this way.
//!
//! Query, `Accept` and conditions are passed on, and both bodies are streams. The address never changes but below the one
//! of the server; a client's own login and cookies stay here.

use axum::body::Body;
use axum::extract::{OriginalUri, Request, State};
use axum::http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, ETAG, EXPIRES, HeaderName,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, RANGE, WARNING,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, Limited};

use super::App;
use super::error::ApiError;
use crate::dicomweb::WebError;

/// Before what is passed on.
const ROUTE: &str = "/proxy/dicom/";
/// Parts of MONAI Label's routes that say which service is meant; here all are at one address.
const SERVICES: [&str; 3] = ["qido/", "wado/", "stow/"];
/// Of a request.
const SENT: [HeaderName; 7] = [
    ACCEPT,
    ACCEPT_LANGUAGE,
    CONTENT_TYPE,
    CONTENT_LENGTH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    RANGE,
];
/// Of an answer.
const RETURNED: [HeaderName; 6] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    ETAG,
    EXPIRES,
    LAST_MODIFIED,
    WARNING,
];

/// `GET` and `POST /proxy/dicom/{path}`: what the DICOMweb server answers, with its status. 400 for a path that leads
/// elsewhere, 404 when the studies are a folder, 502 when the server does not answer.
pub async fn proxy(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    request: Request,
) -> Result<Response, ApiError> {
    let Some(pacs) = app.project.dicomweb() else {
        return Err(ApiError::not_found(
            "no_dicomweb",
            "the studies of this server are a folder, not a DICOMweb server, so there is nothing to proxy",
        ));
    };
    let path = uri.path().split_once(ROUTE).map_or("", |(_, path)| path);
    let path = SERVICES
        .iter()
        .find_map(|service| path.strip_prefix(service))
        .unwrap_or(path)
        .trim_end_matches('/');
    let (parts, body) = request.into_parts();
    // Axum gives HEAD requests to GET routes.
    let method = match parts.method {
        Method::POST => Method::POST,
        _ => Method::GET,
    };
    let limit = usize::try_from(app.project.staging().limit_bytes()).unwrap_or(usize::MAX);
    let body = Limited::new(body, limit).boxed_unsync();
    let headers = chosen(&parts.headers, &SENT);
    let answer = pacs
        .forward(method, (path, uri.query()), headers, body)
        .await
        .map_err(refused)?;
    let (parts, body) = answer.into_parts();
    let mut response = (parts.status, Body::new(body)).into_response();
    *response.headers_mut() = chosen(&parts.headers, &RETURNED);
    Ok(response)
}

fn chosen(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let kept = names.iter().flat_map(|name| {
        let values = headers.get_all(name).iter();
        values.map(move |value| (name.clone(), value.clone()))
    });
    kept.collect()
}

fn refused(error: WebError) -> ApiError {
    match error {
        WebError::Path(_) => ApiError::bad_request("bad_path", error.to_string()),
        error => ApiError::new(StatusCode::BAD_GATEWAY, "dicomweb", error.to_string()),
    }
}
