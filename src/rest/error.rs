//! The only place where an error becomes a status.
//!
//! Every refusal has one body: `{"detail", "code", "request_id"}`. `detail` is what MONAI Label's
//! clients show: a sentence, or for 422 FastAPI's list of faults. `code` is for programs and does not
//! change; `request_id` finds the request in the log. Causes of 5xx are logged here, once, and are
//! not told to the client.

use axum::Json;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::project::{IdError, ProjectError, StoreError};
use crate::rounds::strategy::StrategyError;
use crate::telemetry;

/// When to try again while the store does not answer.
const RETRY_AFTER_S: u32 = 2;

/// One fault of a request, as FastAPI tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// FastAPI's name of the fault, for example `missing`.
    pub kind: &'static str,
    /// Where: `["query", "image"]` or `["body", "file"]`.
    pub at: Vec<&'static str>,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What the client sent.
    pub input: Value,
    /// More about what was expected.
    pub context: Option<Value>,
}

impl FieldError {
    /// `name` has to be in the `place` (`query` or `body`) but is not.
    pub fn missing(place: &'static str, name: &'static str) -> Self {
        Self {
            kind: "missing",
            at: vec![place, name],
            message: "Field required".to_owned(),
            input: Value::Null,
            context: None,
        }
    }

    fn to_json(&self) -> Value {
        let mut fault = json!({
            "type": self.kind, "loc": self.at, "msg": self.message, "input": self.input,
        });
        if let Some(context) = &self.context {
            fault["ctx"] = context.clone();
        }
        fault
    }
}

/// A refusal or failure, ready to be sent.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: Value,
    retry_after_s: Option<u32>,
    /// The rest of the request body was not read, so the connection cannot be used again.
    closes: bool,
}

impl ApiError {
    /// An error with a sentence for the client.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: Value::String(detail.into()),
            retry_after_s: None,
            closes: false,
        }
    }

    /// 422 in FastAPI's shape.
    pub fn invalid(faults: Vec<FieldError>) -> Self {
        Self {
            detail: faults.iter().map(FieldError::to_json).collect(),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "")
        }
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 404: there is nothing of that name.
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 404: there is no such route.
    pub fn no_route() -> Self {
        Self::not_found("no_route", "Not Found")
    }

    /// 405: the route has other methods; axum adds the `allow` header.
    pub fn wrong_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "wrong_method",
            "Method Not Allowed",
        )
    }

    /// 408: the client sent nothing for too long.
    pub fn idle() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "upload_idle",
            "no bytes came for too long; nothing was kept, send the request again",
        )
        .closing()
    }

    /// 400: the body ended early.
    pub fn body_cut() -> Self {
        Self::bad_request(
            "body_cut",
            "the body ended early or is not well-formed; nothing was kept, send the request again",
        )
        .closing()
    }

    /// 413: more than `limit_bytes`.
    pub fn too_large(limit_bytes: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!(
                "the request is larger than this server takes ({limit_bytes} bytes); nothing was kept"
            ),
        )
        .closing()
    }

    /// 429 with a hint when to come back.
    pub fn busy(code: &'static str, detail: impl Into<String>, retry_after_s: u32) -> Self {
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail)
        }
    }

    /// 500; the cause goes to the log and not to the client.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        Self::failed(StatusCode::INTERNAL_SERVER_ERROR, "internal", cause)
    }

    fn failed(status: StatusCode, code: &'static str, cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(
            request_id = telemetry::request_id(),
            code,
            "request failed: {cause}"
        );
        Self::new(
            status,
            code,
            "the server could not do this; what was accepted before is safe. \
             Try again, and give the request id to whoever runs the server",
        )
    }

    fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// What the client is told.
    #[cfg(test)]
    pub fn detail(&self) -> &Value {
        &self.detail
    }
}

impl From<ProjectError> for ApiError {
    fn from(error: ProjectError) -> Self {
        let text = error.to_string();
        match error {
            ProjectError::NotFound(_) => Self::not_found("not_found", text),
            ProjectError::Invalid(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", text)
            }
            ProjectError::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", text),
            ProjectError::TooLarge(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text).closing()
            }
            ProjectError::NoSpace(_) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", text).closing()
            }
            ProjectError::Unavailable(_) => Self {
                retry_after_s: Some(RETRY_AFTER_S),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text)
            },
            ProjectError::Damaged(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "read_only", text).closing()
            }
            ProjectError::Internal(_) => Self::internal(&text),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        ProjectError::from(error).into()
    }
}

impl From<IdError> for ApiError {
    fn from(error: IdError) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_id",
            error.to_string(),
        )
    }
}

impl From<StrategyError> for ApiError {
    fn from(error: StrategyError) -> Self {
        let text = error.to_string();
        match error {
            StrategyError::Unknown { .. } => Self::not_found("no_strategy", text),
            StrategyError::Project(error) => error.into(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({
            "detail": self.detail, "code": self.code, "request_id": telemetry::request_id(),
        });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
