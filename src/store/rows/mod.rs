//! The rows: SQLite in WAL mode with full synchronisation, shared by the server and its worker
//! process.
//!
//! All SQL lies in `store/sql` and `store/migrations`. Writes go through one connection per
//! process, in transactions that take the write lock at once and hold it for milliseconds; reads
//! have their own connections and never wait for writers.

mod images;
mod labels;
mod models;
mod sessions;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Sqlite, SqliteConnection, Transaction};

pub use images::{
    ImageFacts, ImageRecord, add_serving, image, put_image, set_image_info, set_image_state,
};
pub use labels::{
    LabelRecord, NewLabel, add_label, current_label, current_labels_of, is_blob_referenced,
    label_by_key, set_label_extra,
};
pub use models::{ModelRecord, add_model, set_live_model};
pub use sessions::SessionRecord;

use super::StoreError;
use super::staging::hex;

const READERS: u32 = 4;
/// How long a writer waits for the other process, and a request for a connection.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The SQL text of `store/sql/<name>.sql`.
macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/store/sql/",
            $name,
            ".sql"
        ))
    };
}
pub(in crate::store) use sql;

/// A write transaction: takes the write lock when it begins, rolls back when dropped.
pub type WriteTransaction = Transaction<'static, Sqlite>;

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Database {
    /// Opens or creates the database file and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Newer`] when a later release wrote it.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(BUSY_TIMEOUT)
        };
        // A full disk makes SQLite end a transaction by itself; a connection that still counts it as
        // open could never begin another, and is replaced.
        let writer = pool(1)
            .after_release(|connection, _| {
                Box::pin(async move {
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("src/store/migrations").run(&writer).await?;
        let readers = pool(READERS).connect_with(options).await?;
        Ok(Self { writer, readers })
    }

    /// Begins a write transaction.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the other process holds the write lock for too long.
    pub async fn begin(&self) -> Result<WriteTransaction, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    pub(in crate::store) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// The value of a setting.
    pub async fn setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(sql!("setting_get"))
            .bind(key)
            .fetch_optional(&self.readers)
            .await?)
    }

    /// The audit log, oldest first.
    pub async fn audit_rows(&self) -> Result<Vec<AuditRow>, StoreError> {
        Ok(sqlx::query_as(sql!("audit_all"))
            .fetch_all(&self.readers)
            .await?)
    }

    /// What SQLite finds wrong with the file; empty when nothing.
    pub async fn integrity(&self) -> Result<Vec<String>, StoreError> {
        let mut found: Vec<String> = sqlx::query_scalar(sql!("integrity"))
            .fetch_all(&self.readers)
            .await?;
        found.retain(|line| line != "ok");
        Ok(found)
    }

    /// Closes every connection; what was committed is in the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Sets a setting.
pub async fn put_setting(
    tx: &mut SqliteConnection,
    key: &str,
    value: &str,
) -> Result<(), StoreError> {
    sqlx::query(sql!("setting_put"))
        .bind(key)
        .bind(value)
        .execute(tx)
        .await?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn database() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("db")).await.unwrap();
        (dir, database)
    }

    #[tokio::test]
    async fn every_connection_syncs_and_checks_references() {
        let (_dir, database) = database().await;
        for pool in [&database.writer, &database.readers] {
            for (pragma, expected) in [
                ("PRAGMA synchronous", "2"),
                ("PRAGMA foreign_keys", "1"),
                ("PRAGMA busy_timeout", "10000"),
            ] {
                let value: i64 = sqlx::query_scalar(pragma).fetch_one(pool).await.unwrap();
                assert_eq!(value.to_string(), expected, "{pragma}");
            }
            let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
                .fetch_one(pool)
                .await
                .unwrap();
            assert_eq!(mode, "wal");
        }
    }

    #[tokio::test]
    async fn a_full_database_refuses_the_write_and_keeps_the_rest() {
        let (_dir, database) = database().await;
        let put = async |key: &str, value: &str| {
            let mut tx = database.begin().await?;
            put_setting(&mut tx, key, value).await?;
            Ok::<_, StoreError>(tx.commit().await?)
        };
        put("old", "value").await.unwrap();
        for _ in 0..3 {
            // Raising the limit again is not needed: the connection that met the full disk is replaced.
            sqlx::query("PRAGMA max_page_count = 1")
                .execute(&database.writer)
                .await
                .unwrap();
            assert!(matches!(
                put("new", &"x".repeat(1 << 20)).await,
                Err(StoreError::NoSpace(_))
            ));
            assert_eq!(
                database.setting("old").await.unwrap().as_deref(),
                Some("value")
            );
            assert_eq!(database.setting("new").await.unwrap(), None);
        }
        put("new", &"x".repeat(1 << 20)).await.unwrap();
    }

    #[tokio::test]
    async fn data_of_a_later_release_are_left_alone() {
        let (dir, database) = database().await;
        sqlx::query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, 1, x'00', 0)")
            .execute(&database.writer)
            .await
            .unwrap();
        database.close().await;
        let again = Database::open(&dir.path().join("db")).await;
        assert!(matches!(again, Err(StoreError::Newer(_))), "{again:?}");
    }
}
