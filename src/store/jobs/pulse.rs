//! Whether a worker still has its job, and whether it is alive.

use super::{Claimed, Jobs};
use crate::store::StoreError;
use crate::store::rows::sql;

/// What the queue sees of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// It renews its leases, or there is nothing to do.
    Well,
    /// The lease of a job that it has is over.
    Lost,
    /// Jobs wait and it has none.
    Unclaimed,
}

impl Jobs {
    /// Refuses a transaction whose worker has lost the job meanwhile.
    ///
    /// # Errors
    /// [`StoreError::StaleFence`] then.
    pub async fn check_held(
        &self,
        tx: &mut sqlx::SqliteConnection,
        claimed: &Claimed,
    ) -> Result<(), StoreError> {
        let held: bool = sqlx::query_scalar(sql!("job_holds"))
            .bind(claimed.job.id.to_string())
            .bind(claimed.fence)
            .fetch_one(tx)
            .await?;
        if held {
            Ok(())
        } else {
            Err(StoreError::StaleFence(claimed.job.id.to_string()))
        }
    }

    /// What the queue sees of a worker.
    pub async fn pulse(&self, worker: &str) -> Result<Pulse, StoreError> {
        let seen: String = sqlx::query_scalar(sql!("worker_pulse"))
            .bind(worker)
            .bind(self.clock.now_ms())
            .fetch_one(self.database.readers())
            .await?;
        Ok(match seen.as_str() {
            "lost" => Pulse::Lost,
            "waits" => Pulse::Unclaimed,
            _ => Pulse::Well,
        })
    }
}
