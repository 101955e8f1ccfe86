//! The audit log: who did what to what, each row sealed by a hash over the row before it.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::SqliteConnection;

use super::{Database, sql};
use crate::store::StoreError;
use crate::store::staging::hex;

/// Rows read at a time.
const PAGE_ROWS: i64 = 1_000;

impl Database {
    /// A page of the audit log after row `after` (0 for the start), of rows written since `since_ms`;
    /// empty at the end.
    pub async fn audit_page(&self, after: i64, since_ms: i64) -> Result<Vec<AuditRow>, StoreError> {
        Ok(sqlx::query_as(sql!("audit_page"))
            .bind(after)
            .bind(since_ms)
            .bind(PAGE_ROWS)
            .fetch_all(&self.readers)
            .await?)
    }

    /// How many rows were ever appended to the audit log.
    pub async fn audit_rows_written(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(sql!("audit_written"))
            .fetch_one(&self.readers)
            .await?)
    }
}

/// One entry of the audit log.
#[derive(Debug, Clone)]
pub struct AuditEntry<'a> {
    /// Milliseconds since 1970-01-01 UTC.
    pub now_ms: i64,
    /// Who.
    pub actor: &'a str,
    /// Did what.
    pub action: &'a str,
    /// To what.
    pub subject: &'a str,
    /// Hashes and the like.
    pub detail: Value,
}

/// One row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AuditRow {
    /// 1, 2, ... without gaps.
    pub seq: i64,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// Who.
    pub actor: String,
    /// Did what.
    pub action: String,
    /// To what.
    pub subject: String,
    /// JSON.
    pub detail: String,
    /// Over this row and the hash of the row before it.
    pub hash: String,
}

impl AuditRow {
    /// The hash that the row must have after a row of hash `before`.
    pub fn expected_hash(&self, before: Option<&str>) -> String {
        audit_hash(
            before,
            self.created_ms,
            [&self.actor, &self.action, &self.subject, &self.detail],
        )
    }
}

/// Appends to the audit log; each row's hash covers the row before it, so that a change of an old
/// row shows.
pub async fn append_audit(
    tx: &mut SqliteConnection,
    entry: AuditEntry<'_>,
) -> Result<(), StoreError> {
    let before: Option<String> = sqlx::query_scalar(sql!("audit_last"))
        .fetch_optional(&mut *tx)
        .await?;
    let detail = entry.detail.to_string();
    let hash = audit_hash(
        before.as_deref(),
        entry.now_ms,
        [entry.actor, entry.action, entry.subject, &detail],
    );
    sqlx::query(sql!("audit_insert"))
        .bind(entry.now_ms)
        .bind(entry.actor)
        .bind(entry.action)
        .bind(entry.subject)
        .bind(detail)
        .bind(hash)
        .execute(tx)
        .await?;
    Ok(())
}

/// The hash of an audit row: SHA-256 of the JSON array of the hash before it and its columns.
fn audit_hash(before: Option<&str>, now_ms: i64, texts: [&str; 4]) -> String {
    hex(&Sha256::digest(json!([before, now_ms, texts]).to_string()))
}
