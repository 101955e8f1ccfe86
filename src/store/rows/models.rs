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
    /// `candidate`, `kept` or `published`.
    pub state: String,
    /// Why it is in this state.
    pub reason: String,
    /// Whether it is the one that serves.
    pub live: bool,
    /// Whether it is, and rounds do not replace it.
    pub pinned: bool,
}

/// What a check needs of a version; data of every release have it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ListedModel {
    /// As in [`ModelRecord`], likewise below.
    pub name: String,
    /// 1, 2, ... per name.
    pub version: i64,
    /// Hash of its files.
    pub sha256: String,
    /// Whether it is the one that serves.
    pub live: bool,
}

impl Database {
    /// All versions by name and number, also of data that were not brought up to date yet.
    pub(in crate::store) async fn listed_models(&self) -> Result<Vec<ListedModel>, StoreError> {
        Ok(sqlx::query_as(sql!("models_listed"))
            .fetch_all(self.readers())
            .await?)
    }

    /// All versions by name and number.
    pub async fn models(&self) -> Result<Vec<ModelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("models_all"))
            .fetch_all(self.readers())
            .await?)
    }

    /// The version that this one replaced when it was published last, rollbacks not counted.
    pub async fn replaced_by(&self, name: &str, version: i64) -> Result<Option<i64>, StoreError> {
        let found: Option<Option<i64>> = sqlx::query_scalar(sql!("publication_replaced"))
            .bind(name)
            .bind(version)
            .fetch_optional(self.readers())
            .await?;
        Ok(found.flatten())
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
        .bind(&row.state)
        .bind(&row.reason)
        .execute(tx)
        .await?;
    Ok(())
}

/// A change of the version that serves.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// The version that serves from now on.
    pub version: i64,
    /// Whether rounds may not replace it.
    pub pinned: bool,
    /// Whether it is the way back from another one.
    pub rollback: bool,
    /// Who decided.
    pub actor: &'a str,
    /// When.
    pub now_ms: i64,
}

/// Makes a version the one that serves, and notes which one it replaced.
pub async fn set_live_model(
    tx: &mut SqliteConnection,
    new: &Publication<'_>,
) -> Result<(), StoreError> {
    sqlx::query(sql!("publication_insert"))
        .bind(new.name)
        .bind(new.version)
        .bind(new.rollback)
        .bind(new.actor)
        .bind(new.now_ms)
        .execute(&mut *tx)
        .await?;
    sqlx::query(sql!("model_set_live"))
        .bind(new.name)
        .bind(new.version)
        .bind(new.pinned)
        .execute(tx)
        .await?;
    Ok(())
}

/// Sets what was decided about a version.
pub async fn set_model_state(
    tx: &mut SqliteConnection,
    name: &str,
    version: i64,
    state: &str,
    reason: &str,
) -> Result<(), StoreError> {
    sqlx::query(sql!("model_set_state"))
        .bind(state)
        .bind(reason)
        .bind(name)
        .bind(version)
        .execute(tx)
        .await?;
    Ok(())
}
