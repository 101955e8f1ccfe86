//! Which release wrote the database file.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use super::{BUSY_TIMEOUT, Database, StoreError, sql};

/// What brings a file of any earlier release up to date.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations");

impl Database {
    /// Whether an earlier release wrote the file, so that opening it changes its schema.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn is_outdated(path: &Path) -> Result<bool, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT);
        if !path.exists() {
            return Ok(true);
        }
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let known: bool = sqlx::query_scalar(sql!("schema_known"))
            .fetch_one(&mut connection)
            .await?;
        let written: Option<i64> = if known {
            sqlx::query_scalar(sql!("schema_written"))
                .fetch_one(&mut connection)
                .await?
        } else {
            None
        };
        connection.close().await?;
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max();
        Ok(written < newest)
    }
}
