//! Rows of rounds.

use sqlx::SqliteConnection;

use super::{Database, StoreError, sql};

/// One round as stored; `plan` and `comparison` are JSON.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct RoundRecord {
    /// 1, 2, ... without gaps.
    pub number: i64,
    /// Its job.
    pub job: String,
    /// Name of the model.
    pub model: String,
    /// `request`, `labels` or `schedule`.
    pub cause: String,
    /// Who asked for it.
    pub actor: String,
    /// The last label revision of the project when it was asked for.
    pub labels_seq: i64,
    /// When it was asked for.
    pub created_ms: i64,
    /// When a worker began with it.
    pub started_ms: Option<i64>,
    /// What it learns from.
    pub plan: Option<String>,
    /// When its version was there.
    pub finished_ms: Option<i64>,
    /// `published` or `kept`.
    pub decision: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// The version that it made.
    pub version: Option<i64>,
    /// Old against new on the validation cases.
    pub comparison: Option<String>,
}

/// How a round ended that made a version.
#[derive(Debug, Clone)]
pub struct RoundEnd {
    /// The round.
    pub number: i64,
    /// As in [`RoundRecord`], likewise below.
    pub decision: &'static str,
    /// Why.
    pub reason: String,
    /// Old against new.
    pub comparison: Option<String>,
}

impl Database {
    /// The newest rounds, newest first.
    pub async fn rounds(&self, limit: u32) -> Result<Vec<RoundRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("rounds_last"))
            .bind(limit)
            .fetch_all(self.readers())
            .await?)
    }

    /// One round.
    pub async fn round(&self, number: i64) -> Result<Option<RoundRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("round_get"))
            .bind(number)
            .fetch_optional(self.readers())
            .await?)
    }

    /// The round of a job.
    pub async fn round_of_job(&self, job: &str) -> Result<Option<RoundRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("round_of_job"))
            .bind(job)
            .fetch_optional(self.readers())
            .await?)
    }

    /// Images whose current label of a tag came after revision `seq` of all labels.
    pub async fn labels_since(&self, tag: &str, seq: i64) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(sql!("labels_since"))
            .bind(tag)
            .bind(seq)
            .fetch_one(self.readers())
            .await?)
    }
}

/// Adds a round; returns its number.
pub async fn add_round(
    tx: &mut SqliteConnection,
    job: &str,
    model: &str,
    cause: &str,
    actor: &str,
    now_ms: i64,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar(sql!("round_insert"))
        .bind(job)
        .bind(model)
        .bind(cause)
        .bind(actor)
        .bind(now_ms)
        .fetch_one(tx)
        .await?)
}

/// Fixes what a round learns from, once.
pub async fn start_round(
    tx: &mut SqliteConnection,
    number: i64,
    plan: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(sql!("round_start"))
        .bind(now_ms)
        .bind(plan)
        .bind(number)
        .execute(tx)
        .await?;
    Ok(())
}

/// Notes how a round ended and which version it made.
pub async fn finish_round(
    tx: &mut SqliteConnection,
    end: &RoundEnd,
    version: i64,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(sql!("round_finish"))
        .bind(now_ms)
        .bind(end.decision)
        .bind(&end.reason)
        .bind(version)
        .bind(&end.comparison)
        .bind(end.number)
        .execute(tx)
        .await?;
    Ok(())
}
