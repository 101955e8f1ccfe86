//! Immutable bytes, named by their SHA-256 and written durably.
//!
//! A blob is put before the row that refers to it, so that a crash leaves at worst a blob without
//! a row, which is swept after a day. Putting the same bytes twice is harmless.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::StoreError;
use super::staging::{Staged, hex, sync_dir};

/// Bytes in memory per write.
const PART_BYTES: usize = 8 << 20;

/// The blob directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    dir: PathBuf,
}

impl Blobs {
    pub(super) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        let store = LocalFileSystem::new_with_prefix(&dir)?.with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            dir,
        })
    }

    /// Copies a staged file into the store, under its hash; returns when it is on the disk.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] when the disk is full; nothing is kept then.
    pub async fn put(&self, staged: &Staged) -> Result<(), StoreError> {
        if self.renew(&staged.sha256).await? {
            return Ok(());
        }
        let mut upload = self.store.put_multipart(&key(&staged.sha256)).await?;
        let outcome = match copy(staged, upload.as_mut()).await {
            Ok(()) => upload.complete().await.map(drop).map_err(StoreError::from),
            Err(error) => Err(error),
        };
        if outcome.is_err()
            && let Err(error) = upload.abort().await
        {
            tracing::debug!(%error, "the remains of a failed blob stay until they are swept");
        }
        outcome
    }

    /// Whether the blob is there.
    pub fn exists(&self, sha256: &str) -> bool {
        self.path(sha256).is_file()
    }

    /// Where its bytes lie; read only.
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.dir.join(folder(sha256)).join(sha256)
    }

    /// Makes an existing blob young again, so that a sweep leaves it for the row that follows. It is
    /// synced again: who put it first may have been killed before its name was on the disk.
    async fn renew(&self, sha256: &str) -> Result<bool, StoreError> {
        let (path, dir) = (self.path(sha256), self.dir.clone());
        tokio::task::spawn_blocking(move || {
            match std::fs::File::options().append(true).open(&path) {
                Ok(file) => {
                    file.set_modified(SystemTime::now())?;
                    file.sync_all()?;
                    if let Some(folder) = path.parent() {
                        sync_dir(folder)?;
                    }
                    sync_dir(&dir)?;
                    Ok(true)
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await?
    }

    /// Names of files that nobody wrote or renewed for `older_than`: blobs, and remains of
    /// interrupted writes. Blocks.
    pub(super) fn older_than(&self, older_than: Duration) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for folder in std::fs::read_dir(&self.dir)? {
            let folder = folder?;
            if !folder.file_type()?.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(folder.path())? {
                let name = file?.file_name().to_string_lossy().into_owned();
                if self.is_older_than(&name, older_than)? {
                    names.push(name);
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether the file is there and that old. The age is the file system's: no other clock knows it.
    pub(super) fn is_older_than(
        &self,
        name: &str,
        older_than: Duration,
    ) -> Result<bool, StoreError> {
        match std::fs::metadata(self.path(name)) {
            Ok(metadata) => Ok(SystemTime::now()
                .duration_since(metadata.modified()?)
                .unwrap_or_default()
                >= older_than),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file that no row refers to. Blocks.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        Ok(std::fs::remove_file(self.path(name))?)
    }
}

/// Blobs are spread over 256 folders by the first byte of their name.
pub(super) fn folder(sha256: &str) -> &str {
    sha256.get(..2).unwrap_or("00")
}

fn key(sha256: &str) -> Key {
    Key::from_iter([folder(sha256), sha256])
}

/// Streams the file, and makes sure that its bytes are still those that were received.
async fn copy(staged: &Staged, upload: &mut dyn MultipartUpload) -> Result<(), StoreError> {
    let mut file = tokio::fs::File::open(&staged.path).await?;
    let mut hash = Sha256::new();
    loop {
        let mut part = Vec::with_capacity(
            PART_BYTES
                .min(usize::try_from(staged.size_bytes).unwrap_or(PART_BYTES))
                .max(1),
        );
        (&mut file)
            .take(PART_BYTES as u64)
            .read_to_end(&mut part)
            .await?;
        if part.is_empty() {
            break;
        }
        hash.update(&part);
        upload.put_part(PutPayload::from(part)).await?;
    }
    if hex(&hash.finalize()) != staged.sha256 {
        return Err(StoreError::Internal(
            "a staged file changed while it was stored; send it again".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::staging::Staging;

    async fn staged(staging: &Staging, bytes: &[u8]) -> Staged {
        let mut writer = staging.create().await.unwrap();
        writer.write(bytes).await.unwrap();
        writer.finish().await.unwrap()
    }

    #[tokio::test]
    async fn bytes_come_back_and_a_second_put_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(dir.path().join("staging"));
        std::fs::create_dir(dir.path().join("staging")).unwrap();
        std::fs::create_dir(dir.path().join("blobs")).unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        // Longer than one part, and empty.
        for bytes in [vec![7; PART_BYTES + 3], vec![]] {
            let one = staged(&staging, &bytes).await;
            assert!(!blobs.exists(&one.sha256));
            blobs.put(&one).await.unwrap();
            blobs.put(&one).await.unwrap();
            assert_eq!(std::fs::read(blobs.path(&one.sha256)).unwrap(), bytes);
        }
        assert_eq!(blobs.older_than(Duration::ZERO).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_file_damaged_in_staging_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(dir.path().join("staging"));
        std::fs::create_dir(dir.path().join("staging")).unwrap();
        std::fs::create_dir(dir.path().join("blobs")).unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        let one = staged(&staging, b"label").await;
        std::fs::write(&one.path, b"labem").unwrap();
        assert!(blobs.put(&one).await.is_err());
        assert!(!blobs.exists(&one.sha256));
        assert!(blobs.older_than(Duration::ZERO).unwrap().is_empty());
    }
}
