//! Rows of model versions and of the pointer to the live one.

use sqlx::SqliteConnection;

use super::{Database, StoreError, sql};

/// One model version as stored; `metrics` and `lineage` are JSON.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ModelRecord {
    /// Name.
    pub name: String,
    /// 1, 2, ... per name; gaps are possible.
    pub version: i64,
    /// Hash of its files.
    pub sha256: String,
    /// Hash of its weights file.
    pub weights_sha256: String,
    /// The version it was trained from.
    pub parent: Option<i64>,
    /// When it was published.
    pub created_ms: i64,
    /// Measured on the held-out cases.
    pub metrics: String,
    /// What it was made of.
    pub lineage: String,
    /// Whether it is the one that serves.
    pub live: bool,
}

impl Database {
    /// All versions by name and number.
    pub async fn models(&self) -> Result<Vec<ModelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("models_all"))
            .fetch_all(self.readers())
            .await?)
    }
}

/// Adds a version.
pub async fn add_model(tx: &mut SqliteConnection, row: &ModelRecord) -> Result<(), StoreError> {
    sqlx::query(sql!("model_insert"))
        .bind(&row.name)
        .bind(row.version)
        .bind(&row.sha256)
        .bind(&row.weights_sha256)
        .bind(row.parent)
        .bind(row.created_ms)
        .bind(&row.metrics)
        .bind(&row.lineage)
        .execute(tx)
        .await?;
    Ok(())
}

/// Makes a version the one that serves.
pub async fn set_live_model(
    tx: &mut SqliteConnection,
    name: &str,
    version: i64,
) -> Result<(), StoreError> {
    sqlx::query(sql!("model_set_live"))
        .bind(name)
        .bind(version)
        .execute(tx)
        .await?;
    Ok(())
}
