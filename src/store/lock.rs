//! One server per data directory, enforced by the operating system.
//!
//! The lock is advisory and belongs to the open file: it ends with the process, however that ends,
//! so that no stale lock ever has to be removed by hand.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::StoreError;

/// Who works on the data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Host name.
    pub host: String,
    /// Start, milliseconds since 1970-01-01 UTC.
    pub since_ms: i64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on host {:?}", self.pid, self.host)?;
        match jiff::Timestamp::from_millisecond(self.since_ms) {
            Ok(since) => write!(f, ", since {since:.0}"),
            Err(_) => Ok(()),
        }
    }
}

/// The held lock; dropping it frees the data directory.
#[derive(Debug)]
pub struct ServerLock(#[expect(dead_code, reason = "open for as long as the lock is held")] File);

impl ServerLock {
    /// Takes the lock file at `path` for this process.
    ///
    /// # Errors
    /// [`StoreError::Held`] with the holder when another process has it.
    pub fn take(path: &Path, now_ms: i64) -> Result<Self, StoreError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                return Err(StoreError::Held(
                    serde_json::from_str(&text).unwrap_or_default(),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let holder = Holder {
            pid: std::process::id(),
            host,
            since_ms: now_ms,
        };
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&serde_json::to_vec(&holder)?)?;
        file.sync_all()?;
        Ok(Self(file))
    }
}

/// Whether a server has the lock file at `path`.
pub fn is_held(path: &Path) -> bool {
    let held = |file: File| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    File::open(path).is_ok_and(held)
}
