//! Files that appear complete or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::{Compression, write::GzEncoder};

/// Fast, and close to the best for label maps.
const GZIP_LEVEL: u32 = 3;

/// Lets `fill` write next to `path` and renames the result into place; on any error nothing is
/// left and an earlier file under `path` is untouched. Durability (fsync) is the caller's business.
pub(crate) fn write(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let part = part_path(path)?;
    let result = File::create(&part).and_then(|file| {
        let mut writer = BufWriter::with_capacity(1 << 18, file);
        fill(&mut writer)?;
        writer.into_inner()?.flush()?;
        fs::rename(&part, path)
    });
    if result.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&part);
    }
    result
}

/// Writes `parts` as one gzip stream.
pub(crate) fn gzip(out: &mut dyn Write, parts: &[&[u8]]) -> io::Result<()> {
    let mut encoder = GzEncoder::new(out, Compression::new(GZIP_LEVEL));
    for part in parts {
        encoder.write_all(part)?;
    }
    encoder.finish().map(|_| ())
}

fn part_path(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path to write has no file name",
        )
    })?;
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    // Two writers of one name, in this process or another, each have their own part.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    part.push(format!(
        ".{}-{}.part",
        std::process::id(),
        WRITES.fetch_add(1, Ordering::Relaxed)
    ));
    Ok(path.with_file_name(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_earlier_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write(&path, |w| w.write_all(b"one")).unwrap();
        let failed = write(&path, |w| {
            w.write_all(b"two")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
