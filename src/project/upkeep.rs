//! Checking, saving and restoring the data directory as a whole, for the command line.

use std::path::Path;
use std::sync::Arc;

use super::ProjectError;
use crate::clock::{Clock, SystemClock};
use crate::store::{self, Depth, Report, Store, StoreError};

pub use crate::store::Backup;

/// What a check found and did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Checked {
    /// What was found.
    #[serde(flatten)]
    pub report: Report,
    /// Files without a row that were removed.
    pub removed: usize,
}

/// Reads every row and every file of a data directory, which may be in use. With `repair_orphans`,
/// files that no row names are removed, when nothing is damaged and no server works on the data.
///
/// # Errors
/// [`ProjectError::NotFound`] when it is no data directory, [`ProjectError::Unavailable`] when a
/// server has it that is to be repaired.
pub async fn check(data: &Path, repair_orphans: bool) -> Result<Checked, ProjectError> {
    let store = reader(data).await;
    let mut report = match store {
        Ok(store) => {
            let report = store.examine(Depth::Full).await;
            store.database.close().await;
            report?
        }
        Err(ProjectError::Damaged(text)) => Report::unreadable(&text),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    if repair_orphans && report.problems.is_empty() && !report.orphans.is_empty() {
        let store = Store::open_server(&canonical(data)?, clock()).await?;
        removed = store.remove_orphans(&report.orphans).await?;
        store.database.close().await;
        report.orphans.clear();
    }
    Ok(Checked { report, removed })
}

/// Writes a consistent, verified copy of a data directory, which may be in use.
///
/// # Errors
/// [`ProjectError::Conflict`] when `out` is there, [`ProjectError::Damaged`] when something in the
/// directory is damaged; `out` is not made then.
pub async fn backup(data: &Path, out: &Path, link: bool) -> Result<Backup, ProjectError> {
    let store = reader(data).await?;
    let saved = store.backup(out, link, &clock()).await;
    store.database.close().await;
    Ok(saved?)
}

/// Makes a data directory of a backup.
///
/// # Errors
/// [`ProjectError::Conflict`] when `data` is there and not empty, [`ProjectError::Damaged`] when the
/// backup is; `data` is not made then.
pub async fn restore(backup: &Path, data: &Path) -> Result<Backup, ProjectError> {
    Ok(store::restore(backup, data, &clock()).await?)
}

async fn reader(data: &Path) -> Result<Store, ProjectError> {
    Ok(Store::open_reader(&canonical(data)?, clock()).await?)
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

fn canonical(data: &Path) -> Result<std::path::PathBuf, StoreError> {
    std::fs::canonicalize(data).map_err(|error| {
        StoreError::NotFound(format!("{} cannot be opened: {error}", data.display()))
    })
}
