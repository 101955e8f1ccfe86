//! A consistent copy of the data directory while it is in use, and the way back.
//!
//! Order of a backup: a snapshot of the rows first (`VACUUM INTO`, one read transaction), then the
//! files that the snapshot names. Those are immutable and are put before their rows, so all of them
//! are there. Everything is verified in the copy, which gets its name last.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::rows::ModelRecord;
use super::{Blobs, DATABASE, Partial, Store, StoreError, sha256_of_dir, sha256_of_file, sync_dir};
use crate::clock::Clock;

/// What a backup says about itself.
const MANIFEST: &str = "backup.json";
/// A backup of this suffix is one file.
const TAR: &str = "tar";
/// Layout of a backup.
const FORMAT: u32 = 1;

/// What was saved or restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    format: u32,
    /// Version of the program.
    pub program: String,
    /// When, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// Hash of the database.
    pub database_sha256: String,
    /// Blobs.
    pub blobs: usize,
    /// Model versions.
    pub models: usize,
    /// Size of all files.
    pub size_bytes: u64,
}

impl Store {
    /// Writes a backup to `out`: a folder, or one file when its suffix is `.tar`. Others may write
    /// to the store meanwhile. With `link`, files are linked instead of copied where that is possible.
    ///
    /// # Errors
    /// When `out` is there already, or something in the store is damaged; `out` is not made then.
    pub async fn backup(
        &self,
        out: &Path,
        link: bool,
        clock: &Arc<dyn Clock>,
    ) -> Result<Backup, StoreError> {
        let partial = Partial::beside(out)?;
        std::fs::create_dir(partial.path().join("blobs"))?;
        self.database
            .copy_to(&partial.path().join(DATABASE))
            .await?;
        let mut backup = Backup {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            created_ms: clock.now_ms(),
            database_sha256: sha256_of_file(&partial.path().join(DATABASE))?,
            blobs: 0,
            models: 0,
            size_bytes: 0,
        };
        let (files, from) = (
            Files::named_in(partial.path(), clock).await?,
            self.dir().to_owned(),
        );
        let out = out.to_owned();
        let write = move || {
            let place = |from: &Path, to: &Path| {
                if link && std::fs::hard_link(from, to).is_ok() {
                    return Ok(());
                }
                copy(from, to)
            };
            files.bring(&from, partial.path(), place, &mut backup)?;
            let manifest = serde_json::to_vec_pretty(&backup)?;
            let mut file = File::create_new(partial.path().join(MANIFEST))?;
            file.write_all(&manifest)?;
            file.sync_all()?;
            File::open(partial.path().join(DATABASE))?.sync_all()?;
            if out.extension().is_some_and(|suffix| suffix == TAR) {
                partial.pack(&out)?;
            } else {
                partial.finish(&out)?;
            }
            Ok(backup)
        };
        tokio::task::spawn_blocking(write).await?
    }
}

/// Makes a data directory of a backup, and verifies all of it.
///
/// # Errors
/// When `data` is there already and not empty, or the backup is no backup or damaged; `data` is not
/// made then.
pub async fn restore(
    backup: &Path,
    data: &Path,
    clock: &Arc<dyn Clock>,
) -> Result<Backup, StoreError> {
    let (partial, from) = (Partial::beside(data)?, backup.to_owned());
    let unpacked = Partial::beside(data)?;
    std::fs::create_dir(partial.path().join("blobs"))?;
    let (source, told) = tokio::task::spawn_blocking(move || {
        let source = if from.is_file() {
            unpack(&from, unpacked.path())?;
            unpacked.path().to_owned()
        } else {
            from
        };
        let told = read_manifest(&source)?;
        copy(&source.join(DATABASE), &partial.path().join(DATABASE))?;
        if sha256_of_file(&partial.path().join(DATABASE))? != told.database_sha256 {
            return Err(damaged(DATABASE));
        }
        // The unpacked files live as long as they are read.
        Ok::<_, StoreError>(((source, unpacked, partial), told))
    })
    .await??;
    let (source, unpacked, partial) = source;
    let files = Files::named_in(partial.path(), clock).await?;
    let data = data.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut restored = Backup {
            blobs: 0,
            models: 0,
            size_bytes: 0,
            ..told
        };
        files.bring(&source, partial.path(), copy, &mut restored)?;
        partial.finish(&data)?;
        drop(unpacked);
        Ok(restored)
    })
    .await?
}

fn read_manifest(dir: &Path) -> Result<Backup, StoreError> {
    let no_backup = |why: &dyn std::fmt::Display| {
        StoreError::NotFound(format!(
            "{} is no backup of this program ({MANIFEST}: {why})",
            dir.display()
        ))
    };
    let text = std::fs::read(dir.join(MANIFEST)).map_err(|error| no_backup(&error))?;
    let told: Backup = serde_json::from_slice(&text).map_err(|error| no_backup(&error))?;
    if told.format > FORMAT {
        return Err(StoreError::Newer(format!("backup format {}", told.format)));
    }
    Ok(told)
}

fn damaged(name: &str) -> StoreError {
    StoreError::Damaged(format!("{name} is not as it was written"))
}

/// The files that a database names.
struct Files {
    blobs: Vec<String>,
    models: Vec<ModelRecord>,
}

impl Files {
    /// Those of the database in `dir`, whose rows must be intact.
    async fn named_in(dir: &Path, clock: &Arc<dyn Clock>) -> Result<Self, StoreError> {
        let snapshot = Store::open_reader(dir, clock.clone()).await?;
        let mut report = super::Report::default();
        snapshot.examine_rows(&mut report).await?;
        let mut blobs: Vec<String> = snapshot
            .database
            .blob_sizes()
            .await?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        blobs.dedup();
        let models = snapshot.database.models().await?;
        snapshot.database.close().await;
        match report.reason() {
            Some(reason) => Err(StoreError::Damaged(reason)),
            None => Ok(Self { blobs, models }),
        }
    }

    /// Brings them from one data directory to another and verifies them there. Blocks.
    fn bring(
        &self,
        from: &Path,
        to: &Path,
        place: impl Fn(&Path, &Path) -> Result<(), StoreError>,
        count: &mut Backup,
    ) -> Result<(), StoreError> {
        count.size_bytes += std::fs::metadata(to.join(DATABASE))?.len();
        let (blobs, copies) = (from.join("blobs"), to.join("blobs"));
        std::fs::create_dir_all(&copies)?;
        let (blobs, copies) = (Blobs::open(blobs)?, Blobs::open(copies)?);
        for name in &self.blobs {
            let copy = copies.path(name);
            if let Some(folder) = copy.parent() {
                std::fs::create_dir_all(folder)?;
            }
            place(&blobs.path(name), &copy).map_err(|error| missing("blob", name, &error))?;
            if sha256_of_file(&copy)? != *name {
                return Err(damaged(&format!("blob {name}")));
            }
            count.blobs += 1;
            count.size_bytes += std::fs::metadata(&copy)?.len();
        }
        for model in &self.models {
            let version = format!("{}/{}", model.name, model.version);
            let (dir, copy) = (
                from.join("models").join(&version),
                to.join("models").join(&version),
            );
            std::fs::create_dir_all(&copy)?;
            let files = std::fs::read_dir(&dir)
                .map_err(|error| missing("model", &version, &error.into()))?;
            for file in files {
                let file = file?;
                place(&file.path(), &copy.join(file.file_name()))?;
                count.size_bytes += file.metadata()?.len();
            }
            if sha256_of_dir(&copy)? != model.sha256 {
                return Err(damaged(&format!("model {version}")));
            }
            sync_dir(&copy)?;
            count.models += 1;
        }
        Ok(())
    }
}

fn missing(area: &str, name: &str, error: &StoreError) -> StoreError {
    match error {
        StoreError::NoSpace(_) => StoreError::NoSpace(format!("at {area} {name}")),
        _ => StoreError::Damaged(format!("{area} {name} cannot be copied: {error}")),
    }
}

/// A copy that is on the disk when this returns.
fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::copy(from, to)?;
    Ok(File::open(to)?.sync_all()?)
}

/// Plain files and folders only, below `to`.
fn unpack(file: &Path, to: &Path) -> Result<(), StoreError> {
    let mut archive = tar::Archive::new(File::open(file)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        // `unpack_in` refuses paths that lead out of the folder.
        if !(kind.is_file() || kind.is_dir()) || !entry.unpack_in(to)? {
            return Err(damaged(&file.display().to_string()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::store::rows::put_setting;

    fn clock() -> Arc<dyn Clock> {
        Arc::new(ManualClock::new(0))
    }

    async fn store(dir: &Path) -> Store {
        let store = Store::open_server(dir, clock()).await.unwrap();
        let mut tx = store.database.begin().await.unwrap();
        put_setting(&mut tx, "key", "value").await.unwrap();
        tx.commit().await.unwrap();
        store
    }

    #[tokio::test]
    async fn a_backup_is_restored_and_a_target_with_files_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir.path().join("data")).await;
        for name in ["saved", "saved.tar"] {
            let out = dir.path().join(name);
            let saved = store.backup(&out, true, &clock()).await.unwrap();
            assert!(matches!(
                store.backup(&out, true, &clock()).await,
                Err(StoreError::Conflict(_))
            ));
            let back = dir.path().join(format!("back of {name}"));
            std::fs::create_dir(&back).unwrap();
            let restored = restore(&out, &back, &clock()).await.unwrap();
            assert_eq!(restored, saved);
            assert!(matches!(
                restore(&out, &back, &clock()).await,
                Err(StoreError::Conflict(_))
            ));
            let again = Store::open_server(&back, clock()).await.unwrap();
            assert_eq!(
                again.database.setting("key").await.unwrap().as_deref(),
                Some("value")
            );
            assert_eq!(again.check().await.unwrap(), [""; 0]);
        }
        let names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 5, "nothing partial is left: {names:?}");
    }

    #[tokio::test]
    async fn what_is_damaged_or_no_backup_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir.path().join("data")).await;
        let (saved, back) = (dir.path().join("saved"), dir.path().join("back"));
        assert!(matches!(
            restore(&dir.path().join("data"), &back, &clock()).await,
            Err(StoreError::NotFound(_))
        ));
        store.backup(&saved, true, &clock()).await.unwrap();
        let database = saved.join(DATABASE);
        let mut bytes = std::fs::read(&database).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&database, bytes).unwrap();
        assert!(matches!(
            restore(&saved, &back, &clock()).await,
            Err(StoreError::Damaged(_))
        ));
        assert!(!back.exists());
    }
}
