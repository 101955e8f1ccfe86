//! `/activelearning`: which image to annotate next.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::query::{JsonObject, Segment, lenient_flag, typed};
use super::scoring;
use crate::rounds::leases::{self, Offer};

/// What the body may have.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Params {
    /// Whom the image is leased to.
    client_id: Option<String>,
    /// Give back the image that this client has, and offer another one.
    #[serde(deserialize_with = "lenient_flag")]
    skip: bool,
}

/// Next image to annotate.
#[utoipa::path(post, path = "/activelearning/{strategy}", tag = "ActiveLearning",
    request_body(content = String, content_type = "application/json", description = "optional object: client_id, skip"),
    params(("strategy" = String, Path, description = "a name under strategies in /info/")),
    responses((status = 200, description = "the image, with its lease and where the model is least sure of it under uncertainty; {} when every image is labeled, {leased} when the rest is leased to others"),
        (status = 404, description = "unknown strategy")))]
pub async fn next(
    State(app): State<App>,
    Segment(name): Segment,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    App::require(app.offers.strategies, "the choice of a next sample")?;
    let params: Params = typed(body.or_empty())?;
    let client = params.client_id.as_deref().filter(|id| !id.is_empty());
    let offer = leases::next(&app.project, &name, client, params.skip).await?;
    let (choice, lease) = match offer {
        Offer::Image(choice, lease) => (*choice, lease),
        // No id: to old clients there is nothing left, which is so for the moment.
        Offer::AllLeased(leased) => return Ok(Json(json!({"leased": leased}))),
        Offer::Nothing => return Ok(Json(json!({}))),
    };
    if choice.scores_missing && app.offers.scoring {
        scoring::ask_for_scores(&app).await?;
    }
    let image = choice.image;
    // Slicer keeps downloads by name; the checksum makes it notice another image of that name.
    let (file, sha256) = app.project.client_file(&image).await?;
    let mut answer = Map::from_iter([("id".to_owned(), image.id.to_string().into())]);
    answer.extend(choice.extras);
    // A Slicer on this machine opens the path when it is there, by its suffix. The file of an upload
    // has none, so such an image is offered for download only.
    let path = if image.uploaded && !image.is_series {
        image.name.into()
    } else {
        file.to_string_lossy()
    };
    answer.insert("path".to_owned(), path.into());
    answer.extend(image.info);
    answer.insert("checksum".to_owned(), format!("SHA256:{sha256}").into());
    if let Some((lease, again)) = lease {
        let mut lease = super::leases::object(&lease, app.project.clock().now_ms());
        lease["again"] = again.into();
        answer.insert("lease".to_owned(), lease);
    }
    Ok(Json(answer.into()))
}
