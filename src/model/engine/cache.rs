//! Where compiled kernels and the results of searching the fastest one stay, so that the next start is warm.
//!
//! CubeCL names a kernel by its Rust type and sizes, not by its source: a folder belongs to one build of this program and
//! one kind of device. Two processes do not share it at the same time; the second one compiles for itself.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// From now on, kernels that are compiled for a GPU stay below `root`. Counts before the first use of a GPU, once.
pub fn keep_kernels_in(root: &Path) {
    ROOT.get_or_init(|| root.to_owned());
}

/// Sets CubeCL up for a device, before its first use.
#[cfg(not(any(feature = "cuda", feature = "vulkan")))]
pub fn apply(_device: &str) {}

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub use gpu::apply;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod gpu {
    use std::fs::{self, File};
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Once;
    use std::time::Duration;

    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
    use sha2::{Digest, Sha256};

    use super::ROOT;

    /// Folders of other builds that nobody used for so long are removed.
    const FORGET: Duration = Duration::from_secs(30 * 24 * 3600);
    /// Held by the process that uses a folder; its time says when it was last used.
    const LOCK: &str = "in-use";

    /// Sets CubeCL up for a device, before its first use.
    pub fn apply(device: &str) {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let Some(root) = ROOT.get() else {
                return;
            };
            match folder(root, device) {
                Ok((folder, alone)) => set(folder, alone),
                Err(error) => tracing::warn!(
                    "compiled kernels cannot be kept in {}: {error}; every start compiles them again",
                    root.display()
                ),
            }
        });
    }

    fn set(folder: PathBuf, alone: bool) {
        if CubeClRuntimeConfig::storage().lock().is_some() {
            return;
        }
        let mut config = CubeClRuntimeConfig::default();
        config.autotune.cache = CacheConfig::File(folder.clone());
        if alone {
            config.compilation.cache = Some(CacheConfig::File(folder));
        }
        CubeClRuntimeConfig::set(config.override_from_env());
    }

    /// The folder of this build and device, and whether no other process uses it.
    fn folder(root: &Path, device: &str) -> io::Result<(PathBuf, bool)> {
        let folder = root.join(format!("{}-{}", build()?, kind_of(device)));
        fs::create_dir_all(&folder)?;
        forget(root, &folder);
        let lock = File::create(folder.join(LOCK))?;
        let alone = lock.try_lock().is_ok();
        // The lock is held until the process ends.
        std::mem::forget(lock);
        Ok((folder, alone))
    }

    /// The first digits of the hash of this program.
    fn build() -> io::Result<String> {
        let digest = Sha256::digest(fs::read(std::env::current_exe()?)?);
        Ok(digest[..6]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    /// A device's name without its number, as part of a file name.
    fn kind_of(device: &str) -> String {
        let (api, rest) = device.split_once(':').unwrap_or((device, ""));
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let words = rest
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty());
        [api].into_iter().chain(words).collect::<Vec<_>>().join("-")
    }

    fn forget(root: &Path, used: &Path) {
        let Ok(entries) = fs::read_dir(root) else {
            return;
        };
        for entry in entries.flatten().filter(|entry| entry.path() != used) {
            let last = fs::metadata(entry.path().join(LOCK)).and_then(|data| data.modified());
            let old = last.is_ok_and(|last| last.elapsed().is_ok_and(|age| age > FORGET));
            if old && let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!("{} cannot be removed: {error}", entry.path().display());
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_folder_is_used_by_one_process_at_a_time_and_forgotten_when_old() {
            let root = tempfile::tempdir().unwrap();
            let name = "cuda:1 (NVIDIA H200, compute capability 9.0, CUDA 13)";
            let (first, alone) = folder(root.path(), name).unwrap();
            assert!(alone);
            let told = first.file_name().unwrap().to_string_lossy().into_owned();
            assert!(
                told.ends_with("-cuda-NVIDIA-H200-compute-capability-9-0-CUDA-13"),
                "{told}"
            );
            let (second, alone) = folder(root.path(), &name.replace("cuda:1", "cuda:0")).unwrap();
            assert_eq!((second, alone), (first.clone(), false));
            let old = root.path().join("other");
            fs::create_dir(&old).unwrap();
            let lock = File::create(old.join(LOCK)).unwrap();
            let long_ago = std::time::SystemTime::now() - 2 * FORGET;
            lock.set_modified(long_ago).unwrap();
            folder(root.path(), name).unwrap();
            assert!(first.exists() && !old.exists());
        }
    }
}
