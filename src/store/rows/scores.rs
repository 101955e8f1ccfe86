//! Rows of what models said of images.

use sqlx::SqliteConnection;

use super::{Database, StoreError, sql};

/// What a model version said of one image; `scores` is JSON.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ScoreRecord {
    /// Image id.
    pub image: String,
    /// Version of the model.
    pub version: i64,
    /// How it was asked.
    pub asked: String,
    /// Size of the image's file then.
    pub size_bytes: i64,
    /// Time of its last change then, seconds since 1970-01-01 UTC.
    pub mtime_s: i64,
    /// What it said.
    pub scores: String,
}

impl Database {
    /// What a model said of all images, or of one.
    pub async fn scores(
        &self,
        model: &str,
        image: Option<&str>,
    ) -> Result<Vec<ScoreRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("scores_of"))
            .bind(model)
            .bind(image)
            .fetch_all(self.readers())
            .await?)
    }
}

/// Keeps what a model said of an image in place of what it said before.
pub async fn put_score(
    tx: &mut SqliteConnection,
    model: &str,
    row: &ScoreRecord,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(sql!("score_put"))
        .bind(&row.image)
        .bind(model)
        .bind(row.version)
        .bind(&row.asked)
        .bind(row.size_bytes)
        .bind(row.mtime_s)
        .bind(&row.scores)
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(())
}
