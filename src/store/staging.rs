//! Where bytes from outside arrive first. Nothing refers to a staged file until it is committed,
//! so that an upload cut short leaves nothing but a file that is swept.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::StoreError;

/// The staging directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Staging {
    dir: PathBuf,
    limit_bytes: u64,
    min_free_bytes: u64,
    /// Why nothing is taken at all.
    refusal: Option<String>,
}

impl Staging {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            limit_bytes: u64::MAX,
            min_free_bytes: 0,
            refusal: None,
        }
    }

    /// The same directory with a size limit per file and a floor of free disk space.
    pub fn with_limits(&self, limit_bytes: u64, min_free_bytes: u64) -> Self {
        Self {
            dir: self.dir.clone(),
            limit_bytes,
            min_free_bytes,
            refusal: self.refusal.clone(),
        }
    }

    /// The largest file it takes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The same directory, taking nothing when there is a reason.
    #[must_use]
    pub fn refusing(mut self, reason: Option<&str>) -> Self {
        self.refusal = reason.map(str::to_owned);
        self
    }

    /// Refuses to go on when the disk has less free space than the floor, so that the database
    /// never meets a full disk.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`]; [`StoreError::ReadOnly`] when nothing is taken at all.
    pub fn check_space(&self) -> Result<(), StoreError> {
        if let Some(reason) = &self.refusal {
            return Err(StoreError::ReadOnly(reason.clone()));
        }
        let stat = rustix::fs::statvfs(&self.dir).map_err(std::io::Error::from)?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free_bytes < self.min_free_bytes {
            return Err(StoreError::NoSpace(format!(
                "{free_bytes} bytes free, {} required",
                self.min_free_bytes
            )));
        }
        Ok(())
    }

    /// Opens a new file for one upload.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] below the floor of free space; when the file cannot be created.
    pub async fn create(&self) -> Result<StagedWriter, StoreError> {
        self.check_space()?;
        let guard = RemoveOnDrop(Some(self.dir.join(Uuid::now_v7().to_string())));
        let file = File::create_new(guard.path()).await?;
        Ok(StagedWriter {
            file,
            guard,
            hash: Sha256::new(),
            size_bytes: 0,
            limit_bytes: self.limit_bytes,
        })
    }

    /// A copy of a local file, staged; the file itself is not changed.
    ///
    /// # Errors
    /// When it cannot be read or is above the limit.
    pub async fn copy_of(&self, path: &Path) -> Result<Staged, StoreError> {
        use tokio::io::AsyncReadExt;
        let mut from = File::open(path).await?;
        let mut writer = self.create().await?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match from.read(&mut buffer).await? {
                0 => return writer.finish().await,
                n => writer.write(&buffer[..n]).await?,
            }
        }
    }

    /// Stages what `write` puts into the file of the path that it is given. Blocks.
    ///
    /// # Errors
    /// What `write` returns; when the file cannot be read back and synced.
    pub(crate) fn write_with<E: From<StoreError>>(
        &self,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Staged, E> {
        let guard = RemoveOnDrop(Some(self.dir.join(Uuid::now_v7().to_string())));
        write(guard.path())?;
        let seal = || -> Result<Staged, StoreError> {
            let file = std::fs::File::open(guard.path())?;
            file.sync_all()?;
            let (size_bytes, sha256) = (file.metadata()?.len(), sha256_of_file(guard.path())?);
            Ok(Staged {
                path: guard.path().to_owned(),
                size_bytes,
                sha256,
                guard,
            })
        };
        Ok(seal()?)
    }

    /// Removes files that nobody has written to for `older_than`.
    pub(super) fn sweep(&self, older_than: Duration) -> Result<usize, StoreError> {
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let age = SystemTime::now()
                .duration_since(metadata.modified()?)
                .unwrap_or_default();
            if age >= older_than {
                if metadata.is_dir() {
                    remove_dir(&entry.path())?
                } else {
                    std::fs::remove_file(entry.path())?
                };
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// An upload under way: hashes, counts, and refuses more than the limit. Dropped, it is gone.
#[derive(Debug)]
pub struct StagedWriter {
    file: File,
    guard: RemoveOnDrop,
    hash: Sha256,
    size_bytes: u64,
    limit_bytes: u64,
}

impl StagedWriter {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] above the limit, [`StoreError::NoSpace`] when the disk is full.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        if size_bytes > self.limit_bytes {
            return Err(StoreError::TooLarge {
                limit_bytes: self.limit_bytes,
            });
        }
        self.file.write_all(bytes).await?;
        self.hash.update(bytes);
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// Bytes written so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Ends the upload; the bytes are on the disk when this returns.
    ///
    /// # Errors
    /// When they cannot be brought there.
    pub async fn finish(mut self) -> Result<Staged, StoreError> {
        self.file.flush().await?;
        self.file.sync_all().await?;
        Ok(Staged {
            path: self.guard.path().to_owned(),
            size_bytes: self.size_bytes,
            sha256: hex(&self.hash.finalize()),
            guard: self.guard,
        })
    }
}

/// A finished upload; its file is removed when this is dropped, unless it was moved away.
#[derive(Debug)]
pub struct Staged {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of its bytes, lower-case hexadecimal.
    pub sha256: String,
    guard: RemoveOnDrop,
}

impl Staged {
    /// Moves the file to `to`, which must lie on the same file system; the caller syncs the directory.
    ///
    /// # Errors
    /// When the file cannot be moved; it is then removed.
    pub(crate) fn move_to(mut self, to: &Path) -> Result<(), StoreError> {
        std::fs::rename(&self.path, to)?;
        self.guard.0.take();
        Ok(())
    }
}

#[derive(Debug)]
struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a staged file could not be removed; it is swept at the next start");
        }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a directory with all it holds, if it is there. Blocks.
///
/// # Errors
/// When something in it cannot be removed.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Brings the entries of a directory to the disk. Blocks.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    Ok(std::fs::File::open(dir)?.sync_all()?)
}

/// SHA-256 of a file, lower-case hexadecimal. Blocks.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn sha256_of_file(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// SHA-256 over the names and contents of the files of a directory. Blocks.
///
/// # Errors
/// When one of them cannot be read.
pub(crate) fn sha256_of_dir(dir: &Path) -> std::io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut hash = Sha256::new();
    for name in names {
        hash.update(format!("{}  {name}\n", sha256_of_file(&dir.join(&name))?));
    }
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staging() -> (tempfile::TempDir, Staging) {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(dir.path().to_owned());
        (dir, staging)
    }

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[tokio::test]
    async fn hashes_counts_and_removes_what_nobody_took() {
        let (dir, staging) = staging();
        let mut writer = staging.create().await.unwrap();
        writer.write(b"a").await.unwrap();
        writer.write(b"bc").await.unwrap();
        let staged = writer.finish().await.unwrap();
        assert_eq!(staged.size_bytes, 3);
        assert_eq!(
            staged.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(std::fs::read(&staged.path).unwrap(), b"abc");
        assert_eq!(sha256_of_file(&staged.path).unwrap(), staged.sha256);
        drop(staged);
        assert_eq!(files(dir.path()), 0);
    }

    #[tokio::test]
    async fn an_upload_above_the_limit_is_refused_and_removed() {
        let (dir, staging) = staging();
        let mut writer = staging.with_limits(4, 0).create().await.unwrap();
        writer.write(b"1234").await.unwrap();
        assert!(matches!(
            writer.write(b"5").await,
            Err(StoreError::TooLarge { limit_bytes: 4 })
        ));
        drop(writer);
        assert_eq!(files(dir.path()), 0);
    }

    #[tokio::test]
    async fn below_the_floor_of_free_space_nothing_is_taken() {
        let (dir, staging) = staging();
        assert!(matches!(
            staging.with_limits(4, u64::MAX).create().await,
            Err(StoreError::NoSpace(_))
        ));
        assert_eq!(files(dir.path()), 0);
    }

    #[tokio::test]
    async fn moved_files_stay_and_old_ones_are_swept() {
        let (dir, staging) = staging();
        let staged = staging.create().await.unwrap().finish().await.unwrap();
        let kept = dir.path().join("kept");
        staged.move_to(&kept).unwrap();
        assert!(kept.exists());
        assert_eq!(staging.sweep(Duration::from_secs(3600)).unwrap(), 0);
        assert_eq!(staging.sweep(Duration::ZERO).unwrap(), 1);
        assert_eq!(files(dir.path()), 0);
    }
}
