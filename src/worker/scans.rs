//! Scans that people work on, so that a second click or stroke reads and prepares nothing again.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Failure;
use super::models::Window;
use crate::imaging::{Budget, ImagingError, Volume, dicom, read_scan};
use crate::model::OpenScan;
use crate::store::sha256_of_file;

/// Memory for scans that are kept; the one in use may be larger while it is used.
pub const MOST_BYTES: usize = 1 << 30;
/// Scans kept at most.
const MOST_SCANS: usize = 8;
/// Hashes of files remembered.
const MOST_HASHES: usize = 64;

/// A scan in memory.
pub struct HeldScan {
    sha256: String,
    /// HU on the grid of the file.
    pub scan: Volume<f32>,
    /// SHA-256 of the weights of the model that it was opened with and its window, and what that one said.
    pub open: Option<((String, Window), OpenScan)>,
    /// What such a model says without points, where that was needed.
    pub alone: Option<((String, Window), Volume<u16>)>,
}

impl HeldScan {
    fn bytes(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |(_, open)| open.bytes());
        let alone = self.alone.as_ref();
        let alone = alone.map_or(0, |(_, labels)| labels.voxels.len() * size_of::<u16>());
        self.scan.voxels.len() * size_of::<f32>() + open + alone
    }
}

/// What says that the files of a scan have not been written since.
#[derive(PartialEq)]
struct Written(Vec<(PathBuf, u64, Option<SystemTime>)>);

impl Written {
    /// Of a file, or of a folder with a DICOM series.
    fn of(path: &Path) -> std::io::Result<Self> {
        let files = match path.is_dir() {
            true => dicom::files_below(path)?,
            false => vec![path.to_owned()],
        };
        let about = files.into_iter().map(|file| {
            let about = std::fs::metadata(&file)?;
            Ok((file, about.len(), about.modified().ok()))
        });
        about.collect::<std::io::Result<_>>().map(Self)
    }
}

/// The scans last used, by the hash of their content.
#[derive(Default)]
pub struct HeldScans {
    /// The last used first.
    held: VecDeque<HeldScan>,
    hashes: VecDeque<(Written, String)>,
}

impl HeldScans {
    /// Takes out a scan that is held, or reads it. Whoever took it puts it back.
    ///
    /// # Errors
    /// [`Failure::Image`] when the file is no scan.
    pub fn take(&mut self, path: &Path, budget: &Budget) -> Result<HeldScan, Failure> {
        let sha256 = self.hash(path, budget).map_err(Failure::Image)?;
        if let Some(at) = self.held.iter().position(|held| held.sha256 == sha256)
            && let Some(held) = self.held.remove(at)
        {
            return Ok(held);
        }
        let scan = read_scan(path, budget).map_err(Failure::Image)?.volume;
        Ok(HeldScan {
            sha256,
            scan,
            open: None,
            alone: None,
        })
    }

    /// Keeps a scan as long as there is room; those not used for the longest time go first.
    pub fn put(&mut self, scan: HeldScan) {
        self.held.push_front(scan);
        let mut bytes = 0;
        let fit = self.held.iter().take(MOST_SCANS).take_while(|held| {
            bytes += held.bytes();
            bytes <= MOST_BYTES
        });
        let fit = fit.count();
        self.held.truncate(fit);
    }

    /// SHA-256 of a file or a series, computed again only when it was written since.
    fn hash(&mut self, path: &Path, budget: &Budget) -> Result<String, ImagingError> {
        let written = Written::of(path)?;
        if let Some((_, sha256)) = self.hashes.iter().find(|(known, _)| *known == written) {
            return Ok(sha256.clone());
        }
        let sha256 = match path.is_dir() {
            true => dicom::content_sha256(path, budget)?,
            false => sha256_of_file(path)?,
        };
        self.hashes.push_front((written, sha256.clone()));
        self.hashes.truncate(MOST_HASHES);
        Ok(sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::{Geometry, LabelFormat, write_scan};

    fn scan(path: &Path, side: usize, hu: f32) {
        let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        let geometry = Geometry::new([side; 3], [0.0; 3], steps).unwrap();
        let scan = Volume::new(geometry, vec![hu; side * side * side]).unwrap();
        write_scan(path, &scan, LabelFormat::Nifti).unwrap();
    }

    #[test]
    fn a_scan_is_read_once_and_again_when_its_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.nii");
        let mut scans = HeldScans::default();
        let take = |scans: &mut HeldScans, path: &Path| {
            let Ok(held) = scans.take(path, &Budget::default()) else {
                panic!("a scan");
            };
            held
        };
        scan(&path, 3, 10.0);
        let mut held = take(&mut scans, &path);
        // A mark that no file holds.
        held.scan.voxels[0] = 77.5;
        scans.put(held);
        let copy = dir.path().join("copy.nii");
        std::fs::copy(&path, &copy).unwrap();
        let held = take(&mut scans, &copy);
        assert_eq!(
            held.scan.voxels[0], 77.5,
            "the same content under another name"
        );
        scans.put(held);
        scan(&path, 4, 20.0);
        assert_eq!(take(&mut scans, &path).scan.voxels[0], 20.0);
        std::fs::write(&path, b"no scan").unwrap();
        assert!(matches!(
            scans.take(&path, &Budget::default()),
            Err(Failure::Image(_))
        ));
    }

    #[test]
    fn the_number_of_scans_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut scans = HeldScans::default();
        for n in 0..MOST_SCANS + 3 {
            let path = dir.path().join(format!("{n}.nii"));
            scan(&path, 2, n as f32);
            let Ok(held) = scans.take(&path, &Budget::default()) else {
                panic!("a scan");
            };
            scans.put(held);
        }
        assert_eq!(scans.held.len(), MOST_SCANS);
        assert_eq!(scans.held[0].scan.voxels[0], (MOST_SCANS + 2) as f32);
    }
}
