//! A folder that is filled under a temporary name and gets its own when it is complete.

use std::fs::File;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{StoreError, remove_dir, sync_dir};

/// A folder under a temporary name, removed unless it is finished.
#[derive(Debug)]
pub(crate) struct Partial(PathBuf);

impl Partial {
    /// The folder as it is being filled.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Beside a target that must not be there, or be an empty folder.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when something is there.
    pub fn beside(target: &Path) -> Result<Self, StoreError> {
        let empty = std::fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
        if !empty && target.symlink_metadata().is_ok() {
            return Err(StoreError::Conflict(format!(
                "{} is there already; nothing was written, choose another name or an empty folder",
                target.display()
            )));
        }
        let name = target.file_name().ok_or_else(|| {
            StoreError::Conflict(format!("{} is no name for a folder", target.display()))
        })?;
        let home = match target.parent() {
            Some(home) if home != Path::new("") => home,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(home)?;
        let name = format!(".{}.{}.partial", name.to_string_lossy(), Uuid::now_v7());
        let dir = home.canonicalize()?.join(name);
        std::fs::create_dir(&dir)?;
        Ok(Self(dir))
    }

    /// Brings the folders to the disk, and gives it its name. Blocks.
    ///
    /// # Errors
    /// When the target is there by now.
    pub fn finish(self, target: &Path) -> Result<(), StoreError> {
        sync_tree(&self.0)?;
        // A rename replaces an empty folder.
        std::fs::rename(&self.0, target)?;
        if let Some(home) = self.0.parent() {
            sync_dir(home)?;
        }
        Ok(())
    }

    /// Gives it its name as one file, a tar archive. Blocks.
    ///
    /// # Errors
    /// When the file cannot be written; it is not there then.
    pub fn pack(self, target: &Path) -> Result<(), StoreError> {
        let packed = self.0.with_extension("partial-tar");
        let write = || -> Result<(), StoreError> {
            let mut archive = tar::Builder::new(File::create_new(&packed)?);
            archive.follow_symlinks(false);
            archive.append_dir_all("", &self.0)?;
            archive.into_inner()?.sync_all()?;
            std::fs::rename(&packed, target)?;
            Ok(())
        };
        let written = write();
        if written.is_err() {
            // The error that matters is the one of writing.
            let _ = std::fs::remove_file(&packed);
        }
        written?;
        if let Some(home) = self.0.parent() {
            sync_dir(home)?;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = remove_dir(&self.0) {
            tracing::warn!("{} is left over: {error}", self.0.display());
        }
    }
}

/// Brings the entries of a folder and of those in it to the disk.
fn sync_tree(dir: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_dir(dir)
}
