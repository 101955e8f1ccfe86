//! Copies of series, one zip file each, below a limit of bytes: the least recently used go first.
//!
//! A copy appears under its name when it is complete, or not at all. Several processes share the folder. The operating
//! system's locks on the files themselves tell them apart, and end with a process however it ends: who writes a copy has it
//! alone, who reads one shares it, and only what nobody reads is removed.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::SeriesKey;

const SUFFIX: &str = ".zip";
const PART: &str = ".part";
/// A copy that was begun and not written to for so long is left over from a process that ended.
const PART_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Pause between two looks whether another process is done with a copy.
const LOOK: Duration = Duration::from_millis(100);

/// The folder of copies.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    limit_bytes: u64,
}

/// A copy that stays while this is held.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    #[expect(dead_code, reason = "its lock keeps the copy")]
    lock: File,
}

impl Held {
    /// The zip file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What [`Cache::begin`] found.
pub(super) enum Begun {
    /// Somebody else made the copy meanwhile.
    Done(Held),
    /// An empty file to be written.
    Part(Part),
}

/// A copy that is being written, by this process alone.
pub(super) struct Part {
    /// Where to write.
    pub file: File,
    path: PathBuf,
    to: PathBuf,
}

impl Cache {
    pub fn new(dir: &Path, limit_bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            limit_bytes,
        }
    }

    /// Where the copy of a series is.
    pub fn path(&self, key: &SeriesKey) -> PathBuf {
        self.dir
            .join(format!("{}.n{}{SUFFIX}", key.series, key.instances))
    }

    /// Keeps a copy that is there; it counts as used now.
    pub fn hold(&self, key: &SeriesKey) -> io::Result<Option<Held>> {
        let path = self.path(key);
        let lock = match File::options().read(true).append(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            lock => lock?,
        };
        lock.lock_shared()?;
        // It may have been removed before it was locked.
        if !is_at(&lock, &path)? {
            return Ok(None);
        }
        lock.set_modified(SystemTime::now())?;
        Ok(Some(Held { path, lock }))
    }

    /// Begins a copy, alone: waits while another process makes the same.
    pub async fn begin(&self, key: &SeriesKey) -> io::Result<Begun> {
        std::fs::create_dir_all(&self.dir)?;
        let to = self.path(key);
        let mut path = to.clone().into_os_string();
        path.push(PART);
        let path = PathBuf::from(path);
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .read(true)
                .open(&path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK).await,
                Err(TryLockError::Error(error)) => return Err(error),
                // Whoever had it may have given it its name, or removed it.
                Ok(()) if is_at(&file, &path)? && !to.exists() => {
                    file.set_len(0)?;
                    return Ok(Begun::Part(Part { file, path, to }));
                }
                Ok(()) => {
                    if to.exists() && is_at(&file, &path)? {
                        std::fs::remove_file(&path)?;
                    }
                    drop(file);
                    if let Some(held) = self.hold(key)? {
                        return Ok(Begun::Done(held));
                    }
                }
            }
        }
    }

    /// Removes what was not used for the longest time until the limit is kept, and what was left unfinished.
    pub fn tidy(&self) -> io::Result<()> {
        let mut copies = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Somebody else may tidy up too.
            let Ok(about) = entry.metadata() else {
                continue;
            };
            let used = about.modified()?;
            if name.ends_with(PART) {
                let age = SystemTime::now().duration_since(used).unwrap_or_default();
                if age >= PART_LIFETIME {
                    remove(&entry.path())?;
                }
            } else if name.ends_with(SUFFIX) {
                copies.push((used, about.len(), entry.path()));
            }
        }
        copies.sort();
        let mut total: u64 = copies.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in copies {
            if total <= self.limit_bytes {
                break;
            }
            if remove(&path)? {
                total -= size;
            }
        }
        Ok(())
    }
}

impl Part {
    /// Gives the copy, which is complete, its name, and keeps it.
    pub fn finish(self) -> io::Result<Held> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, &self.to)?;
        rustix::fs::flock(&self.file, FlockOperation::LockShared)?;
        // Between alone and shared it may be removed, when it alone is over the limit.
        if !is_at(&self.file, &self.to)? {
            return Err(io::Error::other(
                "the limit for copies is smaller than this series",
            ));
        }
        Ok(Held {
            path: self.to,
            lock: self.file,
        })
    }
}

/// Removes a file that nobody has locked; whether it did.
fn remove(path: &Path) -> io::Result<bool> {
    let Ok(file) = File::options().read(true).append(true).open(path) else {
        return Ok(false);
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

/// Whether an open file is the one of this name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let named = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        named => named?,
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let own = file.metadata()?;
        Ok(own.ino() == named.ino() && own.dev() == named.dev())
    }
    #[cfg(not(unix))]
    {
        // There an open file can be neither removed nor renamed.
        let _ = (file, named);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::dicomweb::Uid;

    fn key(series: &str, instances: u32) -> SeriesKey {
        SeriesKey {
            study: Uid::parse("1").unwrap(),
            series: Uid::parse(series).unwrap(),
            instances,
        }
    }

    async fn put(cache: &Cache, key: &SeriesKey, size: usize) -> Held {
        match cache.begin(key).await.unwrap() {
            Begun::Done(_) => panic!("it is there"),
            Begun::Part(mut part) => {
                part.file.write_all(&vec![7; size]).unwrap();
                part.finish().unwrap()
            }
        }
    }

    fn age(cache: &Cache, key: &SeriesKey, seconds: u64) {
        let file = File::options().append(true).open(cache.path(key)).unwrap();
        let then = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(then).unwrap();
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_and_what_is_read_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), 250);
        let keys = [key("1", 3), key("2", 3), key("3", 3), key("4", 3)];
        for (n, key) in keys.iter().enumerate() {
            drop(put(&cache, key, 100).await);
            age(&cache, key, 1000 - 100 * n as u64);
        }
        let read = cache.hold(&keys[1]).unwrap().unwrap();
        age(&cache, &keys[1], 2000);
        cache.tidy().unwrap();
        let left: Vec<bool> = keys.iter().map(|key| cache.path(key).exists()).collect();
        assert_eq!(left, [false, true, false, true], "the second is being read");
        drop(read);
        let smaller = Cache::new(dir.path(), 100);
        smaller.tidy().unwrap();
        assert!(!cache.path(&keys[1]).exists());
        assert!(cache.hold(&keys[3]).unwrap().is_some());
        assert!(cache.hold(&key("4", 4)).unwrap().is_none(), "another state");
    }

    #[tokio::test]
    async fn a_copy_is_made_once_and_never_half() {
        let dir = tempfile::tempdir().unwrap();
        let cache = std::sync::Arc::new(Cache::new(dir.path(), 1 << 20));
        let one = key("1", 1);
        // A process that ends in the middle leaves nothing that is taken for a copy.
        let Begun::Part(mut part) = cache.begin(&one).await.unwrap() else {
            panic!("nothing is there yet");
        };
        part.file.write_all(b"half").unwrap();
        drop(part);
        assert!(cache.hold(&one).unwrap().is_none());
        // Others wait for the first, and take what it made.
        let Begun::Part(mut part) = cache.begin(&one).await.unwrap() else {
            panic!("nothing is there yet");
        };
        assert_eq!(part.file.metadata().unwrap().len(), 0);
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let (cache, one) = (cache.clone(), one.clone());
                tokio::spawn(
                    async move { matches!(cache.begin(&one).await.unwrap(), Begun::Done(_)) },
                )
            })
            .collect();
        tokio::time::sleep(LOOK * 2).await;
        part.file.write_all(b"whole").unwrap();
        let held = part.finish().unwrap();
        for waiting in waiting {
            assert!(waiting.await.unwrap());
        }
        assert_eq!(std::fs::read(held.path()).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
