//! The open database file: connections, schema, who may write.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::de::DeserializeOwned;
use sqlx::query::QueryScalar;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Sqlite};

use super::schema::{self, MIGRATIONS};
use super::{BrokenSeal, WriteTransaction, seal, sql};
use crate::store::StoreError;

const READERS: u32 = 4;
/// How long a writer waits for the other process, and a request for a connection.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    pub(super) writer: SqlitePool,
    pub(super) readers: SqlitePool,
    /// Why nothing may be written.
    read_only: Arc<OnceLock<String>>,
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
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("temp_store", "MEMORY")
            .disable_statement_logging();
        let mut first = options.connect().await?;
        MIGRATIONS.run(&mut first).await?;
        seal::seal_all_once(&mut first).await?;
        first.close().await?;
        // A full disk makes SQLite end a transaction by itself; a connection that still counts it as
        // open could never begin another, and is replaced.
        let writer = pool(1)
            .after_connect(|connection, _| Box::pin(seal::watch(connection)))
            .after_release(|connection, _| {
                Box::pin(async move {
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options.clone())
            .await?;
        let readers = pool(READERS).connect_with(options).await?;
        Ok(Self {
            writer,
            readers,
            read_only: Arc::default(),
        })
    }

    /// Opens an existing database file to look at it only, beside whoever writes to it. Its schema
    /// stays as it is.
    ///
    /// # Errors
    /// When there is no such file, or nothing in it can be read.
    pub async fn open_read_only(path: &Path, reason: &str) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let readers = pool(READERS).connect_with(options).await?;
        Ok(Self {
            writer: readers.clone(),
            readers,
            read_only: Arc::new(OnceLock::from(reason.to_owned())),
        })
    }

    /// What a query lists in one value, a JSON array. Rows go one by one from the connection's thread to the one that
    /// waits for them, which costs several microseconds each: too much for lists of all images in every request.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        query: QueryScalar<'_, Sqlite, String, SqliteArguments>,
    ) -> Result<Vec<T>, StoreError> {
        Ok(serde_json::from_str(
            &query.fetch_one(&self.readers).await?,
        )?)
    }

    /// Why nothing may be written, when that is so.
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.get().map(String::as_str)
    }

    /// Refuses every further write, for this reason.
    pub fn set_read_only(&self, reason: &str) {
        // The first reason stands: the others follow from it or are found by a check.
        let _ = self.read_only.set(reason.to_owned());
    }

    /// Begins a write transaction.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the other process holds the write lock for too long,
    /// [`StoreError::ReadOnly`] when nothing may be written.
    pub async fn begin(&self) -> Result<WriteTransaction, StoreError> {
        if let Some(reason) = self.read_only() {
            return Err(StoreError::ReadOnly(reason.to_owned()));
        }
        let begun = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(WriteTransaction(begun))
    }

    /// Version of the schema in the file, 0 for none, and that of this release.
    pub async fn schema_versions(&self) -> Result<(i64, i64), StoreError> {
        let objects: i64 = sqlx::query_scalar(sql!("schema_objects"))
            .fetch_one(&self.readers)
            .await?;
        let ours = MIGRATIONS.iter().map(|migration| migration.version).max();
        if objects == 0 {
            return Ok((0, ours.unwrap_or_default()));
        }
        let stored = sqlx::query_scalar(sql!("schema_version"))
            .fetch_one(&self.readers)
            .await?;
        Ok((stored, ours.unwrap_or_default()))
    }

    /// Rows that are not as they were written.
    pub async fn broken_seals(&self) -> Result<Vec<BrokenSeal>, StoreError> {
        Ok(seal::broken(&mut *self.readers.acquire().await?).await?)
    }

    /// Writes a consistent copy of the database to a new file, while others write.
    pub async fn copy_to(&self, path: &Path) -> Result<(), StoreError> {
        sqlx::query(sql!("vacuum_into"))
            .bind(path.to_string_lossy().into_owned())
            .execute(&self.readers)
            .await?;
        Ok(())
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

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(BUSY_TIMEOUT)
}
