//! Unlabelled scans on disk.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::body;
use crate::imaging::{Budget, ImagingError, Volume, dicom, orientation, read_scan, resample};
use crate::model::error::ModelError;
use crate::model::infer::prepare;
use crate::model::manifest::Preprocessing;
use crate::rng::Rng;

/// Suffixes of files that are read.
const SUFFIXES: [&str; 4] = [".nii.gz", ".nii", ".nrrd", ".zip"];
/// Folders of the data folder that hold images and say nothing about patients.
const IMAGE_FOLDERS: [&str; 2] = ["imagesTr", "imagesTs"];
/// Folders that hold label maps.
const LABEL_FOLDERS: [&str; 3] = ["labelsTr", "labelsTs", "labels"];

/// A scan file and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its path below the data folder, with `/`.
    pub name: String,
    /// The patient: scans of one patient never stand on both sides of the validation split.
    pub patient: String,
}

/// Something that the reader of a run's report should know about one scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScanNote {
    /// Path below the data folder.
    pub scan: String,
    /// Whether the scan was left out.
    pub skipped: bool,
    /// Why, or what was repaired.
    pub reason: String,
}

/// All scans below a folder, sorted by name: `.nii.gz`, `.nii`, `.nrrd` and `.zip`, also in subfolders, and subfolders with
/// the files of a DICOM series; not hidden ones, not `labels`, `labelsTr` and `labelsTs`, not `.seg.nrrd`.
///
/// The patient of a file is its path below the data folder (`imagesTr` and `imagesTs` not counted), cut after
/// `patient_level` folders: with 1, all files below one subfolder are one patient. A file that lies less deep is a
/// patient of its own, named by the file without suffix.
///
/// # Errors
/// A folder that cannot be read.
pub fn find_scans(dir: &Path, patient_level: usize) -> Result<Vec<ScanFile>, ModelError> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut open = vec![(dir.to_owned(), Vec::<String>::new())];
    while let Some((folder, parts)) = open.pop() {
        // Links may lead in a circle; each folder is visited once.
        let real = folder.canonicalize().map_err(ModelError::io(&folder))?;
        if !seen.insert(real) {
            continue;
        }
        let mut is_series = false;
        for entry in std::fs::read_dir(&folder).map_err(ModelError::io(&folder))? {
            let path = entry.map_err(ModelError::io(&folder))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            // Of a folder with slices one look is enough.
            if name.starts_with('.') || is_series && !path.is_dir() {
                continue;
            }
            let mut parts = parts.clone();
            parts.push(name.to_owned());
            if path.is_dir() {
                if !LABEL_FOLDERS.contains(&name) {
                    open.push((path, parts));
                }
            } else if let Some(stem) = stem(name) {
                let patient = patient(&parts, stem, patient_level);
                found.push(ScanFile {
                    name: parts.join("/"),
                    patient,
                    path,
                });
            } else if dicom::is_file(&path) {
                is_series = true;
            }
        }
        if let (true, Some(last)) = (is_series, parts.last()) {
            found.push(ScanFile {
                name: parts.join("/"),
                patient: patient(&parts, last, patient_level),
                path: folder,
            });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn stem(name: &str) -> Option<&str> {
    let stem = SUFFIXES
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))?;
    (!stem.ends_with(".seg")).then_some(stem)
}

fn patient(parts: &[String], stem: &str, level: usize) -> String {
    let folders: Vec<&str> = parts[..parts.len() - 1]
        .iter()
        .map(String::as_str)
        .filter(|folder| !IMAGE_FOLDERS.contains(folder))
        .collect();
    if level > 0 && folders.len() >= level {
        folders[..level].join("/")
    } else {
        [&folders[..], &[stem]].concat().join("/")
    }
}

/// Scans to learn from and scans to validate on. A patient's side depends on the patient and the seed alone, except that
/// of two patients or more at least one is on each side (when `share` is above 0).
pub fn split_by_patient(
    scans: Vec<ScanFile>,
    seed: u64,
    share: f64,
) -> (Vec<ScanFile>, Vec<ScanFile>) {
    let draws = Rng::new(seed).named("split");
    let mut patients: BTreeMap<&str, f64> = BTreeMap::new();
    for scan in &scans {
        patients.insert(&scan.patient, draws.named(&scan.patient).uniform());
    }
    let mut order: Vec<(&str, f64)> = patients.into_iter().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let wanted = order.iter().filter(|(_, draw)| *draw < share).count();
    let least = usize::from(share > 0.0 && order.len() > 1);
    let count = wanted.clamp(least, order.len().saturating_sub(1).max(least));
    let held_out: HashSet<String> = order[..count.min(order.len())]
        .iter()
        .map(|(patient, _)| (*patient).to_owned())
        .collect();
    scans
        .into_iter()
        .partition(|scan| !held_out.contains(&scan.patient))
}

/// How scans are read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Spacing and HU window of the model.
    pub preprocessing: Preprocessing,
    /// Whether scans are cropped to the body first.
    pub body_crop: bool,
    /// Fewest voxels along an axis, after resampling, for a scan to be of use.
    pub min_sides: [usize; 3],
}

impl Reading {
    /// A scan in LPS order on the model's spacing, its HU window mapped to [-1, 1], and what was assumed or repaired.
    pub fn read(&self, path: &Path) -> Result<(Volume<f32>, Vec<String>), ModelError> {
        let scan = read_scan(path, &Budget::default())?;
        let air = self.preprocessing.hu_window[0];
        let upright = resample::upright(&scan.volume.geometry).map_err(ImagingError::from)?;
        let volume = match upright {
            None => scan.volume,
            Some(grid) => resample::linear(&scan.volume, &grid, air),
        };
        let mut volume = orientation::to_lps(&volume.geometry).apply(&volume);
        if self.body_crop {
            volume = body::crop(volume)?;
        }
        let volume = prepare(volume, &self.preprocessing)?;
        let shape = volume.geometry.shape();
        if (0..3).any(|axis| shape[axis] < self.min_sides[axis]) {
            return Err(ModelError::Data(format!(
                "it has {shape:?} voxels [z, y, x] at the model's spacing; at least {:?} are of use",
                self.min_sides
            )));
        }
        let first = volume.voxels.first();
        if volume.voxels.iter().all(|value| Some(value) == first) {
            return Err(ModelError::Data(
                "all its voxels have one value within the HU window; there is nothing to learn from".to_owned(),
            ));
        }
        Ok((volume, scan.warnings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(scans: &[ScanFile]) -> Vec<(&str, &str)> {
        scans
            .iter()
            .map(|scan| (scan.name.as_str(), scan.patient.as_str()))
            .collect()
    }

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        dir
    }

    #[test]
    fn scans_are_found_with_their_patients() {
        let dir = folder(&[
            "imagesTr/a.nii.gz",
            "imagesTr/p/one.nii",
            "imagesTr/p/two/three.nrrd",
            "labelsTr/a.nii.gz",
            "labels/final/a.nii.gz",
            ".hidden/a.nii.gz",
            "b.seg.nrrd",
            "b.nrrd",
            "notes.txt",
        ]);
        #[cfg(unix)]
        std::os::unix::fs::symlink(dir.path(), dir.path().join("circle")).unwrap();
        let found = find_scans(dir.path(), 1).unwrap();
        assert_eq!(
            names(&found),
            [
                ("b.nrrd", "b"),
                ("imagesTr/a.nii.gz", "a"),
                ("imagesTr/p/one.nii", "p"),
                ("imagesTr/p/two/three.nrrd", "p"),
            ]
        );
        let deeper = find_scans(dir.path(), 2).unwrap();
        assert_eq!(deeper[2].patient, "p/one");
        assert_eq!(deeper[3].patient, "p/two");
        assert!(find_scans(&dir.path().join("nowhere"), 1).is_err());
    }

    #[test]
    fn no_patient_stands_on_both_sides() {
        let scan = |n: usize| ScanFile {
            path: PathBuf::new(),
            name: n.to_string(),
            patient: format!("patient {}", n / 3),
        };
        let scans = || (0..300).map(scan).collect::<Vec<_>>();
        let (learning, held_out) = split_by_patient(scans(), 4, 0.2);
        assert_eq!(learning.len() + held_out.len(), 300);
        assert!((30..90).contains(&held_out.len()), "{}", held_out.len());
        let patients: HashSet<_> = held_out.iter().map(|scan| &scan.patient).collect();
        assert!(
            learning
                .iter()
                .all(|scan| !patients.contains(&scan.patient))
        );
        assert_ne!(held_out, split_by_patient(scans(), 5, 0.2).1);
        // A patient keeps its side when others come and go.
        let half = scans().split_off(150);
        let kept = split_by_patient(half, 4, 0.2).1;
        assert!(kept.iter().all(|scan| held_out.contains(scan)));
    }

    #[test]
    fn each_side_has_a_patient_where_there_are_two() {
        let scan = |n: usize| ScanFile {
            path: PathBuf::new(),
            name: n.to_string(),
            patient: n.to_string(),
        };
        for (count, share, sides) in [
            (2, 0.01, (1, 1)),
            (2, 1.0, (1, 1)),
            (1, 0.5, (1, 0)),
            (3, 0.0, (3, 0)),
            (0, 0.5, (0, 0)),
        ] {
            for seed in 0..5 {
                let (a, b) = split_by_patient((0..count).map(scan).collect(), seed, share);
                assert_eq!((a.len(), b.len()), sides, "{count} patients, share {share}");
            }
        }
    }
}
