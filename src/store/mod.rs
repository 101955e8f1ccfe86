//! Everything that lasts: rows in SQLite, blobs in files, the queue of jobs, staged uploads.
//!
//! ```text
//! <data>/server.lock    held by the one server
//! <data>/fewlabel.db    rows
//! <data>/blobs/ab/ab…   immutable bytes by SHA-256
//! <data>/staging/       uploads under way
//! <data>/scratch/       results on their way to a client
//! <data>/sessions/      short-lived uploads
//! <data>/models/        <name>/<version>/, immutable
//! ```
//! A worker process opens the same directory beside the server. The store knows rows and bytes,
//! not what they mean: that is `project`'s part.

mod audit;
mod blobs;
mod check;
mod error;
pub mod jobs;
mod lock;
pub mod rows;
mod staging;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use audit::{AuditFault, AuditReport};
pub use blobs::Blobs;
pub use error::StoreError;
pub use lock::Holder;
pub use staging::{Staged, StagedWriter, Staging};
pub(crate) use staging::{hex, remove_dir, sha256_of_file, sync_dir};

use crate::clock::Clock;
use jobs::Jobs;
use lock::ServerLock;
use rows::Database;

/// Staged files and results nobody has written to for this long are left-overs.
const STAGING_LIFETIME: Duration = Duration::from_secs(6 * 3600);
/// Blobs without a row for this long are left-overs of interrupted submits.
const ORPHAN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The open data directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    /// The rows.
    pub database: Database,
    /// The blobs.
    pub blobs: Blobs,
    /// The queue.
    pub jobs: Jobs,
    /// Uploads under way.
    pub staging: Staging,
    dir: PathBuf,
    _lock: Option<Arc<ServerLock>>,
}

impl Store {
    /// Opens the directory as its one server: creates what is missing, puts jobs of dead workers
    /// back into the queue, removes left-overs of a crash.
    ///
    /// # Errors
    /// [`StoreError::Held`] when another server has it.
    pub async fn open_server(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        for name in ["blobs", "staging", "scratch", "sessions", "models"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        let lock = ServerLock::take(&dir.join("server.lock"), clock.now_ms())?;
        let store = Self::open(dir, clock, Some(Arc::new(lock))).await?;
        store.jobs.requeue_all().await?;
        store.sweep().await?;
        Ok(store)
    }

    /// Opens the directory beside its server. Without a server, brings the schema up to date.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no server ever opened it, [`StoreError::Held`] when a server of an
    /// earlier release has it.
    pub async fn open_worker(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        if !dir.join("server.lock").is_file() {
            return Err(StoreError::NotFound(format!(
                "{} is no data directory; start a server on it first",
                dir.display()
            )));
        }
        // Only the holder of the lock may change the schema: another release may be serving.
        let _lock = if Database::is_outdated(&dir.join("fewlabel.db")).await? {
            Some(ServerLock::take(&dir.join("server.lock"), clock.now_ms())?)
        } else {
            None
        };
        Self::open(dir, clock, None).await
    }

    async fn open(
        dir: &Path,
        clock: Arc<dyn Clock>,
        lock: Option<Arc<ServerLock>>,
    ) -> Result<Self, StoreError> {
        let database = Database::open(&dir.join("fewlabel.db")).await?;
        Ok(Self {
            blobs: Blobs::open(dir.join("blobs"))?,
            jobs: Jobs::new(database.clone(), clock),
            staging: Staging::new(dir.join("staging")),
            dir: dir.to_owned(),
            database,
            _lock: lock,
        })
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes left-overs: staged and scratch files, blobs without a row. Returns how many files.
    ///
    /// # Errors
    /// When the disk does not answer.
    pub async fn sweep(&self) -> Result<usize, StoreError> {
        let (staging, scratch, blobs) = (
            self.staging.clone(),
            Staging::new(self.dir.join("scratch")),
            self.blobs.clone(),
        );
        let (mut removed, old) = tokio::task::spawn_blocking(move || {
            let removed = staging.sweep(STAGING_LIFETIME)? + scratch.sweep(ORPHAN_LIFETIME)?;
            Ok::<_, StoreError>((removed, blobs.older_than(ORPHAN_LIFETIME)?))
        })
        .await??;
        for name in old {
            if self.database.is_blob_referenced(&name).await? {
                continue;
            }
            // Under the write lock nobody can commit a row for it between the question and the removal.
            let mut tx = self.database.begin().await?;
            if !rows::is_blob_referenced(&mut tx, &name).await?
                && self.blobs.is_older_than(&name, ORPHAN_LIFETIME)?
            {
                self.blobs.remove(&name)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
