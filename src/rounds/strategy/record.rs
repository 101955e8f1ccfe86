//! What was served to whom.

use serde_json::{Value, json};

use super::StrategyError;
use crate::project::{ImageRow, Map, Project};
use crate::store::{StoreError, rows};

/// Notes the serving, one entry per strategy in the image's info.
pub async fn serving(
    project: &Project,
    name: &str,
    client: &str,
    image: &ImageRow,
) -> Result<(), StrategyError> {
    let mut served = image
        .info
        .get("strategy")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    served.insert(
        name.to_owned(),
        json!({"ts": project.clock().now_s(), "client_id": client}),
    );
    let info = Map::from_iter([("strategy".to_owned(), Value::Object(served))]);
    let mut tx = project.store().database.begin().await?;
    project.merge_image_info(&mut tx, &image.id, info).await?;
    rows::add_serving(
        &mut tx,
        name,
        image.id.as_str(),
        client,
        project.clock().now_ms(),
    )
    .await?;
    project
        .mark_used(&mut tx, [image.id.as_str()], "a next sample")
        .await?;
    Ok(tx.commit().await.map_err(StoreError::from)?)
}
