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
mod backup;
mod blobs;
mod check;
mod error;
pub mod jobs;
mod lock;
mod open;
mod partial;
pub mod rows;
mod staging;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use audit::{AuditFault, AuditReport};
pub use backup::{Backup, restore};
pub use blobs::Blobs;
pub use check::{Depth, Orphan, Problem, Report};
pub use error::StoreError;
pub use lock::Holder;
pub(crate) use partial::Partial;
pub use staging::{Staged, StagedWriter, Staging};
pub(crate) use staging::{hex, remove_dir, sha256_of_dir, sha256_of_file, sync_dir};

use jobs::Jobs;
use lock::ServerLock;
use rows::Database;

/// Staged files and results nobody has written to for this long are left-overs.
const STAGING_LIFETIME: Duration = Duration::from_secs(6 * 3600);
/// Blobs without a row for this long are left-overs of interrupted submits.
const ORPHAN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The file of the rows, in the data directory.
const DATABASE: &str = "fewlabel.db";

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
