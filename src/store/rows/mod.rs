//! The rows: SQLite in WAL mode with full synchronisation, shared by the server and its worker
//! process.
//!
//! All SQL lies in `store/sql` and `store/migrations`. Writes go through one connection per
//! process, in transactions that take the write lock at once and hold it for milliseconds; reads
//! have their own connections and never wait for writers.

mod audit;
mod images;
mod labels;
mod models;
mod schema;
mod sessions;
mod settings;
mod splits;

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Sqlite, Transaction};

pub use audit::{AuditEntry, AuditRow, append_audit};
pub use images::{
    ImageFacts, ImageRecord, add_serving, image, put_image, set_image_info, set_image_state,
};
pub use labels::{
    LabelRecord, NewLabel, add_label, current_label, current_labels_of, is_blob_referenced,
    label_by_key, label_revision, point_label, set_label_extra,
};
pub use models::{ModelRecord, add_model, set_live_model};
pub use sessions::SessionRecord;
pub use settings::put_setting;
pub use splits::{SplitRecord, add_split, mark_used, splits, use_of};

use super::StoreError;

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
        schema::check(path).await?;
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
        schema::MIGRATIONS.run(&writer).await?;
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

#[cfg(test)]
mod tests;
