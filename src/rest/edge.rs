//! What every request passes: a request id, one log line, and the checks that need no route.

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CONTENT_ENCODING, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::metrics::Metrics;
use crate::telemetry;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Takes or makes the request id, answers with it, and logs and counts route, status and duration.
pub async fn observe(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(&X_REQUEST_ID);
    let id = telemetry::accept_request_id(sent.and_then(|value| value.to_str().ok()));
    let method = request.method().clone();
    // The template and not the path: an id in a path can be a patient's name.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("(none)", MatchedPath::as_str);
    let in_progress = metrics.request(&method, route);
    let mut response = telemetry::within_request(id.clone(), async {
        if request
            .headers()
            .get(CONTENT_ENCODING)
            .is_some_and(|coding| coding != "identity")
        {
            // A compressed body could unfold to any size before it is looked at.
            return compressed().into_response();
        }
        next.run(request).await
    })
    .await;
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(X_REQUEST_ID, value);
    }
    let duration_ms = in_progress.answered(response.status()).as_millis();
    let status = response.status().as_u16();
    tracing::info!(
        request_id = id,
        %method,
        route,
        status,
        duration_ms,
        "{method} {route} answered {status} after {duration_ms} ms"
    );
    response
}

fn compressed() -> ApiError {
    ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "content_encoding",
        "this server takes no Content-Encoding; send the body as it is (a .nii.gz file is fine)",
    )
}
