//! Rows of the split into training, validation and test images, and of what fixed it.

use sqlx::SqliteConnection;

use super::{Database, StoreError, sql};

/// The part of one image, since one moment.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct SplitRecord {
    /// Order of all decisions.
    pub seq: i64,
    /// Image id.
    pub image: String,
    /// Whom it shows; the image's id where nobody is known.
    pub patient: String,
    /// `train`, `validation` or `test`.
    pub part: String,
    /// `first sight`, `same patient` or `command`.
    pub reason: String,
    /// Who decided.
    pub actor: String,
    /// When.
    pub created_ms: i64,
}

impl Database {
    /// The part of every image that has one, oldest decision first.
    pub async fn splits(&self) -> Result<Vec<SplitRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("splits_current"))
            .fetch_all(self.readers())
            .await?)
    }

    /// Whether any present image has no part yet.
    pub async fn has_unsplit_images(&self) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(sql!("images_unsplit"))
            .fetch_one(self.readers())
            .await?)
    }

    /// Ids of the test images.
    pub async fn test_images(&self) -> Result<Vec<String>, StoreError> {
        self.list(sqlx::query_scalar(sql!("split_test"))).await
    }
}

/// The part of every image that has one, as the transaction sees it.
pub async fn splits(tx: &mut SqliteConnection) -> Result<Vec<SplitRecord>, StoreError> {
    Ok(sqlx::query_as(sql!("splits_current")).fetch_all(tx).await?)
}

/// Adds a decision; `seq` follows.
pub async fn add_split(tx: &mut SqliteConnection, row: &SplitRecord) -> Result<(), StoreError> {
    sqlx::query(sql!("split_insert"))
        .bind(&row.image)
        .bind(&row.patient)
        .bind(&row.part)
        .bind(&row.reason)
        .bind(&row.actor)
        .bind(row.created_ms)
        .execute(tx)
        .await?;
    Ok(())
}

/// Notes the first use of an image, after which its part is fixed.
pub async fn mark_used(
    tx: &mut SqliteConnection,
    image: &str,
    used_for: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(sql!("split_use_insert"))
        .bind(image)
        .bind(used_for)
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(())
}

/// What an image was used for first.
pub async fn use_of(tx: &mut SqliteConnection, image: &str) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar(sql!("split_use_get"))
        .bind(image)
        .fetch_optional(tx)
        .await?)
}
