//! Settings of the project: one text per key.

use sqlx::SqliteConnection;

use super::{Database, sql};
use crate::store::StoreError;

impl Database {
    /// The value of a setting.
    pub async fn setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(sql!("setting_get"))
            .bind(key)
            .fetch_optional(&self.readers)
            .await?)
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
