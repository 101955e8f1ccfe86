//! Is the audit log still what was written?

use super::{Store, StoreError};

/// What following the chain of the audit log found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Rows that are whole, from the first on.
    pub rows: u64,
    /// Hash of the last of them: it stands for the whole log before it.
    pub last_hash: Option<String>,
    /// The first row that is not.
    pub broken: Option<AuditFault>,
}

/// The first broken row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("audit log: row {seq} {what}")]
pub struct AuditFault {
    /// Its number.
    pub seq: i64,
    /// What is wrong.
    pub what: &'static str,
}

impl Store {
    /// Follows the chain of the audit log from the first row to the last. A changed row, a row that is
    /// gone from the middle and rows that are gone from the end are found. A log rewritten from some
    /// row to its end, with all its hashes, is not: compare the last hash with one kept elsewhere.
    ///
    /// # Errors
    /// When the database cannot be read at all.
    pub async fn verify_audit(&self) -> Result<AuditReport, StoreError> {
        // Before the rows: what is appended meanwhile only adds to them.
        let written = self.database.audit_rows_written().await?;
        let (mut report, mut seq) = (AuditReport::default(), 0);
        loop {
            let page = self.database.audit_page(seq, i64::MIN).await?;
            if page.is_empty() {
                break;
            }
            for row in page {
                let what = if row.seq != seq + 1 {
                    "is missing"
                } else if row.hash != row.expected_hash(report.last_hash.as_deref()) {
                    "or a row before it was changed"
                } else {
                    seq = row.seq;
                    report.rows += 1;
                    report.last_hash = Some(row.hash);
                    continue;
                };
                report.broken = Some(AuditFault { seq: seq + 1, what });
                return Ok(report);
            }
        }
        if seq < written {
            report.broken = Some(AuditFault {
                seq: seq + 1,
                what: "is missing, and all after it",
            });
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::ManualClock;
    use crate::store::rows::{AuditEntry, append_audit};

    async fn store_with(rows: usize) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_server(dir.path(), Arc::new(ManualClock::new(0)))
            .await
            .unwrap();
        let mut tx = store.database.begin().await.unwrap();
        for row in 0..rows {
            let entry = AuditEntry {
                now_ms: 1,
                actor: "ann",
                action: "look",
                subject: &row.to_string(),
                detail: serde_json::json!({}),
            };
            append_audit(&mut tx, entry).await.unwrap();
        }
        tx.commit().await.unwrap();
        (dir, store)
    }

    async fn change(store: &Store, sql: &'static str) -> AuditReport {
        let mut tx = store.database.begin().await.unwrap();
        sqlx::query(sql).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        store.verify_audit().await.unwrap()
    }

    #[tokio::test]
    async fn the_first_broken_row_is_named() {
        // More than one page.
        let (_dir, store) = store_with(2_500).await;
        let whole = store.verify_audit().await.unwrap();
        assert_eq!((whole.rows, &whole.broken), (2_500, &None));
        let cases = [
            (
                "DELETE FROM audit WHERE seq = 2500",
                2_500,
                "is missing, and all after it",
            ),
            ("DELETE FROM audit WHERE seq = 1700", 1_700, "is missing"),
            (
                "UPDATE audit SET actor = 'bob' WHERE seq = 1003",
                1_003,
                "or a row before it was changed",
            ),
            ("DELETE FROM audit WHERE seq = 1", 1, "is missing"),
        ];
        for (sql, seq, what) in cases {
            let report = change(&store, sql).await;
            assert_eq!(report.broken, Some(AuditFault { seq, what }), "{sql}");
            assert_eq!(report.rows + 1, seq as u64);
        }
    }

    #[tokio::test]
    async fn an_empty_log_is_whole_and_an_emptied_one_is_not() {
        let (_dir, store) = store_with(0).await;
        assert_eq!(store.verify_audit().await.unwrap(), AuditReport::default());
        let (_dir, store) = store_with(3).await;
        assert!(change(&store, "DELETE FROM audit").await.broken.is_some());
    }
}
