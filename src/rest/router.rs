//! Every route, in one place.

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, OriginalUri};
use axum::http::header::{HOST, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde_json::json;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::{
    App, absent, activelearning, batch, datastore, description, dicomweb, docs, edge, guard,
    health, infer, info, leases, logs, metrics, model, reviews, revisions, rounds, scoring,
    session, statistics, structures, studies, train, versions,
};

#[derive(OpenApi)]
#[openapi(info(
    title = "Fewlabel",
    description = "Segmentation of CT with few labels, in the MONAI Label protocol. Every error body is {detail, code, request_id}."
))]
struct Description;

/// The routes of the protocol, and what this server adds to them.
#[allow(deprecated)] // Routes that the real server hides, and that its clients need.
fn protocol() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(info::info))
        // Inference
        .routes(routes!(infer::infer))
        .routes(routes!(batch::status, batch::stop))
        .routes(routes!(batch::start))
        // Training
        .routes(routes!(train::status, train::start_all, train::stop))
        .routes(routes!(train::start))
        // Active learning and scoring
        .routes(routes!(activelearning::next))
        .routes(routes!(scoring::status, scoring::start_all, scoring::stop))
        .routes(routes!(scoring::start))
        // Images and labels
        .routes(routes!(
            datastore::overview,
            datastore::put_image_old,
            datastore::delete_image_old
        ))
        .routes(routes!(
            datastore::get_image,
            datastore::head_image,
            datastore::put_image,
            datastore::delete_image
        ))
        .routes(routes!(datastore::image_info, datastore::put_image_info))
        .routes(routes!(
            datastore::get_label,
            datastore::head_label,
            datastore::put_label,
            datastore::delete_label
        ))
        .routes(routes!(datastore::label_info, datastore::put_label_info))
        .routes(routes!(datastore::put_label_info_old))
        .routes(routes!(revisions::list))
        .routes(routes!(revisions::compare))
        .routes(routes!(revisions::make_current))
        .routes(routes!(structures::schema))
        .routes(routes!(structures::label_map))
        .routes(routes!(datastore::dataset))
        .routes(routes!(studies::rescan))
        .routes(routes!(studies::confirm))
        // Review
        .routes(routes!(reviews::list, reviews::judge))
        // Rounds, versions, leases, statistics
        .routes(routes!(rounds::list))
        .routes(routes!(rounds::settings, rounds::change_settings))
        .routes(routes!(rounds::get, rounds::start, rounds::stop))
        .routes(routes!(versions::list))
        .routes(routes!(versions::publish))
        .routes(routes!(versions::keep))
        .routes(routes!(versions::pin))
        .routes(routes!(versions::unpin))
        .routes(routes!(versions::roll_back))
        .routes(routes!(leases::list, leases::renew, leases::give_back))
        .routes(routes!(statistics::statistics))
        // Sessions
        .routes(routes!(session::create))
        .routes(routes!(session::get, session::remove))
        // Model files
        .routes(routes!(model::download, model::upload, model::remove))
        .routes(routes!(model::about))
        // Operation
        .routes(routes!(logs::lines))
        .routes(routes!(logs::gpu))
}

/// Routes for whoever keeps the server running; never behind a prefix.
fn operation() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(metrics::metrics))
}

/// Routes that are not described: those whose answers are another server's, and those that are absent on purpose.
fn undescribed() -> Router<App> {
    Router::new()
        .route(
            "/proxy/dicom/{*path}",
            get(dicomweb::proxy).post(dicomweb::proxy),
        )
        .route("/auth/", any(absent::auth))
        .route("/ohif/", any(absent::ohif))
        .route("/ohif/{*path}", any(absent::ohif))
        .route("/infer/wsi/{model}", post(absent::wsi))
        .route("/infer/wsi_v2/{model}", post(absent::wsi))
        .route("/reload", post(absent::reload))
}

/// The whole server: described routes, pages, routes that are absent on purpose, and the edge.
pub fn router(app: App) -> Router {
    let guard = guard::Guard::new(app.hosts.clone(), app.cors_origins.clone());
    let cors = cors(app.cors_origins.iter().cloned());
    let metrics = app.metrics.clone();
    let (routes, api) = match &*app.prefix {
        "" => operation().merge(protocol()).split_for_parts(),
        prefix => operation().nest(prefix, protocol()).split_for_parts(),
    };
    let routes = match &*app.prefix {
        "" => routes.merge(undescribed()),
        prefix => routes.nest(prefix, undescribed()),
    };
    let templates: Vec<String> = api.paths.paths.keys().cloned().collect();
    let described = description::complete(json!(api), &app.prefix);
    routes
        .route("/", get(docs::page))
        .route("/docs", get(docs::page))
        .route("/static/{name}", get(docs::asset))
        .route("/favicon.ico", get(docs::icon))
        .route("/openapi.json", get(axum::Json(described)))
        .fallback(move |OriginalUri(uri): OriginalUri, headers: HeaderMap| {
            let target = other_spelling(uri.path(), &templates).map(|path| {
                let query = uri.query().map(|query| format!("?{query}"));
                let host = headers.get(HOST).and_then(|host| host.to_str().ok());
                let origin = host
                    .map(|host| format!("http://{host}"))
                    .unwrap_or_default();
                format!("{origin}{path}{}", query.unwrap_or_default())
            });
            std::future::ready(match target {
                Some(target) => redirect(target),
                None => ApiError::no_route().into_response(),
            })
        })
        .method_not_allowed_fallback(async || ApiError::wrong_method())
        // Uploads are streamed and bounded in `form`; bodies in memory are bounded in `query`.
        .layer(DefaultBodyLimit::disable())
        .layer(cors)
        .layer(axum::middleware::from_fn_with_state(guard, guard::guard))
        .layer(axum::middleware::from_fn_with_state(metrics, edge::observe))
        .with_state(app)
}

/// Pages of these origins may use the server; none by default, and never with credentials.
fn cors(origins: impl Iterator<Item = HeaderValue>) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .max_age(Duration::from_secs(600))
}

/// 307 keeps the method and the body, unlike axum's permanent redirect for browsers.
fn redirect(target: String) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, target)]).into_response()
}

/// `path` with or without its last slash, when that is a route and `path` is none.
fn other_spelling(path: &str, templates: &[String]) -> Option<String> {
    let other = match path.strip_suffix('/') {
        Some(shorter) => shorter.to_owned(),
        None => format!("{path}/"),
    };
    let fits = |template: &String| {
        let (mut wanted, mut given) = (template.split('/'), other.split('/'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(wanted), Some(given)) if wanted == given => {}
                (Some(wanted), Some(given)) if wanted.starts_with('{') && !given.is_empty() => {}
                _ => return false,
            }
        }
    };
    templates.iter().any(fits).then_some(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_slash_spellings() {
        let templates = ["/info/", "/batch/infer", "/model/{model}"].map(String::from);
        for (path, expected) in [
            ("/info", Some("/info/")),
            ("/batch/infer/", Some("/batch/infer")),
            ("/model/a/", Some("/model/a")),
            ("/model/", None),
            ("//info", None),
            ("/nothing", None),
            ("/", None),
        ] {
            assert_eq!(
                other_spelling(path, &templates).as_deref(),
                expected,
                "{path}"
            );
        }
    }
}
