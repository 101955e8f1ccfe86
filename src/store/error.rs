//! Why the store failed.

use std::error::Error;
use std::io;

use super::lock::Holder;

/// A failure of the store. Nothing is half-written after any of them.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another server works on the same data directory.
    #[error(
        "the data directory is in use by another server: {0}; stop that server or choose another data directory"
    )]
    Held(Holder),
    /// The disk is full, or nearly so.
    #[error(
        "not enough free disk space ({0}); nothing was stored and earlier data are intact; free space and repeat"
    )]
    NoSpace(String),
    /// An upload above the limit.
    #[error("the upload is larger than the limit of {limit_bytes} bytes; nothing was stored")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// Busy or not reachable; repeating is safe.
    #[error("the store does not answer now ({0}); nothing was changed, repeat later")]
    Unavailable(String),
    /// A worker whose lease was given to another, or whose job was stopped.
    #[error("job {0} is no longer leased to this worker; its result was not taken")]
    StaleFence(String),
    /// The row already exists or was changed by somebody else.
    #[error("{0}")]
    Conflict(String),
    /// There is no such row.
    #[error("{0}")]
    NotFound(String),
    /// The data were written by a later release.
    #[error(
        "the data directory was written by a later release of this program ({0}); nothing was changed, use that release"
    )]
    Newer(String),
    /// The store is damaged; it is read only until that is mended.
    #[error(
        "the store is read only: {0}; nothing was changed, and what is not damaged can be read"
    )]
    ReadOnly(String),
    /// The database cannot be read.
    #[error(
        "the database is damaged ({0}); nothing was changed; restore a backup with `fewlabel restore`"
    )]
    Damaged(String),
    /// Anything else.
    #[error("the store failed: {0}; nothing was changed")]
    Internal(String),
}

/// Whether an error, or what caused it, is a full disk.
fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether an error, or what caused it, is a disk or a file table that does not do its work now.
fn is_disk_fault(error: &(dyn Error + 'static)) -> bool {
    use rustix::io::Errno;
    const FAULTS: [Errno; 6] = [
        Errno::IO,
        Errno::ROFS,
        Errno::MFILE,
        Errno::NFILE,
        Errno::STALE,
        Errno::TIMEDOUT,
    ];
    let mut cause = Some(error);
    while let Some(error) = cause {
        let number = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        if FAULTS
            .iter()
            .any(|fault| number == Some(fault.raw_os_error()))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The error and its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

impl StoreError {
    /// Any foreign error that has no conversion of its own.
    pub(crate) fn foreign(error: &(dyn Error + 'static)) -> Self {
        if is_disk_full(error) {
            Self::NoSpace(chain(error))
        } else if is_disk_fault(error) {
            Self::Unavailable(chain(error))
        } else {
            Self::Internal(chain(error))
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        Self::foreign(&error)
    }
}

impl From<object_store::Error> for StoreError {
    fn from(error: object_store::Error) -> Self {
        Self::foreign(&error)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                Self::Unavailable(error.to_string())
            }
            // Result codes of SQLite (sqlite3.h); the low byte is the primary code.
            sqlx::Error::Database(database) => match database
                .code()
                .and_then(|code| code.parse::<i32>().ok())
                .map(|code| code & 0xff)
            {
                // Busy, locked, and a lock that cannot be had.
                Some(5 | 6 | 15) => Self::Unavailable("the database is busy".to_owned()),
                // Input or output failed; the file cannot be opened.
                Some(10 | 14) => Self::Unavailable(chain(&error)),
                Some(11 | 26) => Self::Damaged(chain(&error)),
                Some(13) => Self::NoSpace(chain(&error)),
                _ => Self::foreign(&error),
            },
            _ => Self::foreign(&error),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        match error {
            sqlx::migrate::MigrateError::VersionMissing(version) => {
                Self::Newer(format!("schema {version}"))
            }
            other => Self::foreign(&other),
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::foreign(&error)
    }
}

impl From<tokio::task::JoinError> for StoreError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::foreign(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognised_below_other_errors() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert!(matches!(StoreError::from(full()), StoreError::NoSpace(_)));
        let wrapped = object_store::Error::Generic {
            store: "local",
            source: Box::new(full()),
        };
        assert!(matches!(StoreError::from(wrapped), StoreError::NoSpace(_)));
        let broken = io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
        assert!(matches!(
            StoreError::from(broken),
            StoreError::Unavailable(_)
        ));
        assert!(matches!(
            StoreError::from(io::Error::from(io::ErrorKind::NotFound)),
            StoreError::Internal(_)
        ));
    }
}
