//! Is everything that was acknowledged still there, byte for byte?

use super::staging::sha256_of_file;
use super::{Store, StoreError};

impl Store {
    /// Reads everything and says what is damaged or missing; empty when all is well. Changes nothing.
    ///
    /// # Errors
    /// When the database cannot be read at all.
    pub async fn check(&self) -> Result<Vec<String>, StoreError> {
        let mut problems: Vec<String> = self
            .database
            .integrity()
            .await?
            .into_iter()
            .map(|line| format!("database: {line}"))
            .collect();
        let audit = self.verify_audit().await?;
        problems.extend(audit.broken.map(|fault| fault.to_string()));
        let (blobs, names) = (self.blobs.clone(), self.database.referenced_blobs().await?);
        let of_blobs = tokio::task::spawn_blocking(move || {
            names
                .into_iter()
                .filter_map(|name| match sha256_of_file(&blobs.path(&name)) {
                    Ok(sha256) if sha256 == name => None,
                    Ok(_) => Some(format!(
                        "blob {name}: its bytes are damaged; restore it from a backup"
                    )),
                    Err(error) => Some(format!("blob {name}: {error}; restore it from a backup")),
                })
                .collect::<Vec<_>>()
        });
        problems.extend(of_blobs.await?);
        Ok(problems)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::ManualClock;
    use crate::store::rows::{AuditEntry, append_audit};

    #[tokio::test]
    async fn a_changed_audit_row_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_server(dir.path(), Arc::new(ManualClock::new(0)))
            .await
            .unwrap();
        for subject in ["a", "b", "c"] {
            let mut tx = store.database.begin().await.unwrap();
            let entry = AuditEntry {
                now_ms: 1,
                actor: "ann",
                action: "look",
                subject,
                detail: serde_json::json!({}),
            };
            append_audit(&mut tx, entry).await.unwrap();
            tx.commit().await.unwrap();
        }
        assert_eq!(store.check().await.unwrap(), [""; 0]);
        let mut tx = store.database.begin().await.unwrap();
        sqlx::query("UPDATE audit SET actor = 'bob' WHERE seq = 2")
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        assert_eq!(
            store.check().await.unwrap(),
            ["audit log: row 2 or a row before it was changed"]
        );
    }
}
