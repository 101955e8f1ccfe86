//! Which release wrote the database file.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use super::{BUSY_TIMEOUT, Database, StoreError, sql};

/// What brings a file of any earlier release up to date.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations");

/// The latest release whose schema this program knows.
fn newest() -> Option<i64> {
    MIGRATIONS.iter().map(|migration| migration.version).max()
}

/// The schema of the file; none when there is no file, or an empty one. Changes nothing.
async fn written(path: &Path) -> Result<Option<i64>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let known: bool = sqlx::query_scalar(sql!("schema_known"))
        .fetch_one(&mut connection)
        .await?;
    let written = if known {
        sqlx::query_scalar(sql!("schema_written"))
            .fetch_one(&mut connection)
            .await?
    } else {
        None
    };
    connection.close().await?;
    Ok(written)
}

/// Refuses a file of a later release.
pub(super) async fn check(path: &Path) -> Result<(), StoreError> {
    match written(path).await? {
        Some(version) if Some(version) > newest() => {
            Err(StoreError::Newer(format!("schema {version}")))
        }
        _ => Ok(()),
    }
}

impl Database {
    /// Whether there is no file yet, or an earlier release wrote it, so that opening it changes its
    /// schema.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn is_outdated(path: &Path) -> Result<bool, StoreError> {
        Ok(written(path).await? < newest())
    }
}
