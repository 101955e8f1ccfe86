//! `/activelearning`: which image to annotate next.

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::query::{JsonObject, Segment};
use crate::rounds::strategy;

/// Next image to annotate.
#[utoipa::path(post, path = "/activelearning/{strategy}", tag = "ActiveLearning",
    request_body(content = String, content_type = "application/json", description = "optional object: client_id"),
    params(("strategy" = String, Path, description = "a name under strategies in /info/")),
    responses((status = 200, description = "the image, or {} when every image is labeled"),
        (status = 404, description = "unknown strategy")))]
pub async fn next(
    State(app): State<App>,
    Segment(name): Segment,
    body: JsonObject,
) -> Result<Json<Value>, ApiError> {
    App::require(app.offers.strategies, "the choice of a next sample")?;
    let params = body.or_empty();
    let client = params
        .get("client_id")
        .and_then(Value::as_str)
        .unwrap_or("admin");
    let Some(choice) = strategy::next(&app.project, &name, client).await? else {
        return Ok(Json(json!({})));
    };
    let image = choice.image;
    // Slicer keeps downloads by name; the checksum makes it notice another image of that name.
    let sha256 = app.project.image_sha256(&image.id).await?;
    let mut answer = Map::from_iter([("id".to_owned(), image.id.to_string().into())]);
    answer.extend(choice.extras);
    // A Slicer on this machine opens the path when it is there, by its suffix. The file of an upload
    // has none, so such an image is offered for download only.
    let path = if image.uploaded {
        image.name.into()
    } else {
        image.path.to_string_lossy()
    };
    answer.insert("path".to_owned(), path.into());
    answer.extend(image.info);
    answer.insert("checksum".to_owned(), format!("SHA256:{sha256}").into());
    Ok(Json(answer.into()))
}
