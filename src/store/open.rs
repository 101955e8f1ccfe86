//! Opening the data directory: as its server, beside it, or to look at it only.

use std::path::Path;
use std::sync::Arc;

use super::jobs::Jobs;
use super::lock::ServerLock;
use super::rows::Database;
use super::{Blobs, DATABASE, Depth, Staging, Store, StoreError};
use crate::clock::Clock;

impl Store {
    /// Opens the directory as its one server: creates what is missing, puts jobs of dead workers
    /// back into the queue, removes left-overs of a crash. Damaged data are opened read only, with
    /// the reason in [`Database::read_only`].
    ///
    /// # Errors
    /// [`StoreError::Held`] when another server has it, [`StoreError::Damaged`] when nothing in the
    /// database can be read.
    pub async fn open_server(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        for name in ["blobs", "staging", "scratch", "sessions", "models"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        let lock = Arc::new(ServerLock::take(&dir.join("server.lock"), clock.now_ms())?);
        if dir.join(DATABASE).is_file()
            && let Some(reason) = Self::damage(dir, clock.clone()).await?
        {
            tracing::error!("the store is damaged and served read only: {reason}");
            let database = Database::open_read_only(&dir.join(DATABASE), &reason).await?;
            return Self::with(database, dir, clock, Some(lock));
        }
        let database = Database::open(&dir.join(DATABASE)).await?;
        let store = Self::with(database, dir, clock, Some(lock))?;
        store.jobs.requeue_all().await?;
        store.sweep().await?;
        Ok(store)
    }

    /// What a quick check finds wrong.
    async fn damage(dir: &Path, clock: Arc<dyn Clock>) -> Result<Option<String>, StoreError> {
        let store = Self::open_reader(dir, clock).await?;
        let report = store.examine(Depth::Quick).await;
        store.database.close().await;
        Ok(report?.reason())
    }

    /// Opens the directory to look at it only, whoever works on it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no server ever opened it.
    pub async fn open_reader(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let path = dir.join(DATABASE);
        if !path.is_file() {
            return Err(no_data_directory(dir));
        }
        let database = Database::open_read_only(&path, "it was opened to be read").await?;
        Self::with(database, dir, clock, None)
    }

    /// Opens the directory beside its server. Without a server, brings the schema up to date.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no server ever opened it, [`StoreError::Held`] when a server of an
    /// earlier release has it.
    pub async fn open_worker(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        if !dir.join(DATABASE).is_file() {
            return Err(no_data_directory(dir));
        }
        // Only the holder of the lock may change the schema: another release may be serving.
        let _lock = if Database::is_outdated(&dir.join(DATABASE)).await? {
            Some(ServerLock::take(&dir.join("server.lock"), clock.now_ms())?)
        } else {
            None
        };
        let database = Database::open(&dir.join(DATABASE)).await?;
        Self::with(database, dir, clock, None)
    }

    fn with(
        database: Database,
        dir: &Path,
        clock: Arc<dyn Clock>,
        lock: Option<Arc<ServerLock>>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            blobs: Blobs::open(dir.join("blobs"))?,
            jobs: Jobs::new(database.clone(), clock),
            staging: Staging::new(dir.join("staging")),
            dir: dir.to_owned(),
            database,
            _lock: lock,
        })
    }
}

fn no_data_directory(dir: &Path) -> StoreError {
    StoreError::NotFound(format!(
        "{} is no data directory; start a server on it first",
        dir.display()
    ))
}
