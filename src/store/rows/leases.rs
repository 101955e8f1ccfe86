//! Rows of leases: who works on which image.

use sqlx::SqliteConnection;

use super::{Database, StoreError, sql};

/// One lease as stored.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct LeaseRecord {
    /// Image id.
    pub image: String,
    /// Who.
    pub client: String,
    /// The strategy that offered it.
    pub strategy: String,
    /// Since when.
    pub taken_ms: i64,
    /// Until when.
    pub until_ms: i64,
}

impl Database {
    /// The leases that are not over at `now_ms`, the next to end first.
    pub async fn leases(&self, now_ms: i64) -> Result<Vec<LeaseRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("leases_open"))
            .bind(now_ms)
            .fetch_all(self.readers())
            .await?)
    }
}

/// The lease of an image, unless it is over at `now_ms`.
pub async fn lease(
    tx: &mut SqliteConnection,
    image: &str,
    now_ms: i64,
) -> Result<Option<LeaseRecord>, StoreError> {
    Ok(sqlx::query_as(sql!("lease_get"))
        .bind(image)
        .bind(now_ms)
        .fetch_optional(tx)
        .await?)
}

/// Leases an image, whatever was there before.
pub async fn put_lease(tx: &mut SqliteConnection, row: &LeaseRecord) -> Result<(), StoreError> {
    sqlx::query(sql!("lease_put"))
        .bind(&row.image)
        .bind(&row.client)
        .bind(&row.strategy)
        .bind(row.taken_ms)
        .bind(row.until_ms)
        .execute(tx)
        .await?;
    Ok(())
}

/// Ends the lease of an image, if there is one.
pub async fn end_lease(tx: &mut SqliteConnection, image: &str) -> Result<(), StoreError> {
    sqlx::query(sql!("lease_end"))
        .bind(image)
        .execute(tx)
        .await?;
    Ok(())
}
