//! Rows of short-lived uploads.

use super::{Database, StoreError, sql};

/// One session as stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SessionRecord {
    /// Id, a UUID.
    pub id: String,
    /// Name shown to the client.
    pub name: String,
    /// File name in the session's directory; empty when the directory itself is the image.
    pub image: String,
    /// When it was made.
    pub created_ms: i64,
    /// When it was last used.
    pub last_access_ms: i64,
    /// How long after the last use it ends.
    pub expiry_s: i64,
}

impl Database {
    /// Adds a session.
    pub async fn add_session(&self, row: &SessionRecord) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query(sql!("session_insert"))
            .bind(&row.id)
            .bind(&row.name)
            .bind(&row.image)
            .bind(row.created_ms)
            .bind(row.last_access_ms)
            .bind(row.expiry_s)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// The session.
    pub async fn session(&self, id: &str) -> Result<Option<SessionRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("session_get"))
            .bind(id)
            .fetch_optional(self.readers())
            .await?)
    }

    /// Notes a use.
    pub async fn touch_session(&self, id: &str, now_ms: i64) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query(sql!("session_touch"))
            .bind(now_ms)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Removes the row.
    pub async fn remove_session(&self, id: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query(sql!("session_delete"))
            .bind(id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Sessions that were over before `now_ms`.
    pub async fn expired_sessions(&self, now_ms: i64) -> Result<Vec<SessionRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("sessions_expired"))
            .bind(now_ms)
            .fetch_all(self.readers())
            .await?)
    }
}
