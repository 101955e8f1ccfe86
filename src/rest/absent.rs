//! Routes of MONAI Label that this server does not have, with the answer their clients expect.

use axum::http::StatusCode;

use super::error::ApiError;

/// `GET /auth/`: clients take 404 as "no login needed".
pub async fn auth() -> ApiError {
    ApiError::not_found(
        "auth_off",
        "Authentication is off on this server; no token is needed",
    )
}

/// `GET /ohif/…`: the viewer is not part of this server.
pub async fn ohif() -> ApiError {
    ApiError::not_found("no_viewer", "Resource NOT Found")
}

/// `POST /infer/wsi…`: pathology.
pub async fn wsi() -> ApiError {
    ApiError::not_found(
        "no_pathology",
        "this server segments CT; it has no model for whole-slide images",
    )
}

/// `POST /reload`: the real server drops its application here, for anybody and without login.
pub async fn reload() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "no_reload",
        "this server reads new studies by itself and is not reloaded over HTTP",
    )
}
