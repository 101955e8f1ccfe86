//! Where the files of a series are: one file, a folder with its subfolders, or a zip file, which is read in place and
//! never unpacked to disk.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::dataset;
use crate::imaging::budget::{Budget, decode_error};
use crate::imaging::error::ImagingError;

/// Deepest subfolder; DICOM media have three levels (patient, study, series).
const MAX_DEPTH: usize = 8;
/// Most files that are looked at.
const MAX_FILES: usize = 50_000;
/// Bytes at the beginning of a file that show whether it is DICOM.
const HEAD_BYTES: usize = 132;
/// Files that are looked into to see whether a folder holds DICOM.
const MAX_HEADS: usize = 64;
/// Suffixes that promise DICOM.
const SUFFIXES: [&str; 3] = [".dcm", ".ima", ".dicom"];

/// Files to read, in the order of their names.
pub(super) struct Source {
    files: Vec<Found>,
    zip: Option<Mutex<ZipArchive<BufReader<File>>>>,
}

struct Found {
    /// Path below the folder or inside the archive.
    name: String,
    place: Place,
}

enum Place {
    Disk(PathBuf),
    Entry(usize),
}

/// What a file turned out to be.
pub(super) enum Content {
    /// A DICOM file.
    Dicom(Vec<u8>),
    /// Something else that does not claim to be DICOM.
    Other,
}

/// Whether a file that begins like this is a zip archive with something in it.
pub(super) fn is_zip(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

impl Source {
    /// Lists a file, folder or zip file.
    ///
    /// # Errors
    /// When it cannot be read, or holds too many files.
    pub fn open(path: &Path) -> Result<Self, ImagingError> {
        if path.is_dir() {
            return Ok(Self {
                files: list(path)?,
                zip: None,
            });
        }
        let mut head = Vec::new();
        let file = File::open(path)?;
        (&file).take(4).read_to_end(&mut head)?;
        if is_zip(&head) {
            return Self::archive(path);
        }
        let found = Found {
            name: String::new(),
            place: Place::Disk(path.to_owned()),
        };
        Ok(Self {
            files: vec![found],
            zip: None,
        })
    }

    fn archive(path: &Path) -> Result<Self, ImagingError> {
        let mut archive = ZipArchive::new(BufReader::new(File::open(path)?)).map_err(zip_error)?;
        if archive.len() > MAX_FILES {
            return Err(too_many());
        }
        let mut files = Vec::new();
        for entry in 0..archive.len() {
            let file = archive.by_index_raw(entry).map_err(zip_error)?;
            let name = file.name().map_err(zip_error)?.into_owned();
            if file.is_file() && !name.split('/').any(is_hidden) {
                files.push(Found {
                    name,
                    place: Place::Entry(entry),
                });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            files,
            zip: Some(Mutex::new(archive)),
        })
    }

    /// Reads the first file.
    ///
    /// # Errors
    /// As [`Source::read`]; nothing there.
    pub fn read_first(&self, budget: &Budget) -> Result<Content, ImagingError> {
        if self.files.is_empty() {
            return Err(dataset::bad("there is no file"));
        }
        self.read(0, budget)
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Name of a file for messages: its path inside of what was opened; empty when that is the file itself.
    pub fn name(&self, file: usize) -> &str {
        &self.files[file].name
    }

    /// Reads a whole file, unless its first bytes show that it is something else.
    ///
    /// # Errors
    /// A file whose name promises DICOM and whose content is not, one over the budget, or trouble with the disk.
    pub fn read(&self, file: usize, budget: &Budget) -> Result<Content, ImagingError> {
        let found = &self.files[file];
        match (&found.place, &self.zip) {
            (Place::Disk(path), _) => {
                let mut file = File::open(path)?;
                let size = file.metadata()?.len();
                contents(&found.name, size, &mut file, budget)
            }
            (Place::Entry(entry), Some(zip)) => {
                let mut zip = zip.lock().unwrap_or_else(PoisonError::into_inner);
                let mut file = zip.by_index(*entry).map_err(zip_error)?;
                // The size is what the archive says; the buffer grows with what arrives.
                contents(&found.name, 0, &mut file, budget)
            }
            (Place::Entry(_), None) => Ok(Content::Other),
        }
    }

    /// SHA-256 over the hashes of all DICOM files in their order: a name of the content, whatever the files are called.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn sha256(&self, budget: &Budget) -> Result<String, ImagingError> {
        let mut hashes = Vec::new();
        for file in 0..self.len() {
            if let Content::Dicom(bytes) = self.read(file, budget)? {
                hashes.push(Sha256::digest(&bytes));
            }
        }
        hashes.sort();
        let mut all = Sha256::new();
        hashes.iter().for_each(|hash| all.update(hash));
        Ok(all
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

fn contents(
    name: &str,
    size: u64,
    reader: &mut dyn Read,
    budget: &Budget,
) -> Result<Content, ImagingError> {
    let limit = budget.max_bytes;
    let too_large = || ImagingError::TooLarge(format!("a DICOM file of more than {limit} bytes"));
    let mut bytes = Vec::new();
    Read::take(&mut *reader, HEAD_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(decode_error)?;
    if !dataset::is_dicom(&bytes) {
        let lower = name.to_ascii_lowercase();
        if name.is_empty() || SUFFIXES.iter().any(|suffix| lower.ends_with(suffix)) {
            return Err(dataset::bad(match bytes.len() {
                0 => "the file is empty",
                _ => "the file is no DICOM file, although it is named like one",
            }));
        }
        return Ok(Content::Other);
    }
    if size > limit {
        return Err(too_large());
    }
    bytes
        .try_reserve_exact(size as usize)
        .map_err(|_| too_large())?;
    reader
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(decode_error)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(Content::Dicom(bytes))
}

fn list(folder: &Path) -> Result<Vec<Found>, ImagingError> {
    let (mut files, mut open) = (Vec::new(), vec![(folder.to_owned(), String::new(), 0)]);
    while let Some((folder, below, depth)) = open.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_hidden(&name) {
                continue;
            }
            let (path, name) = (entry.path(), format!("{below}{name}"));
            // A link to a folder may lead in a circle.
            let is_link = entry.file_type()?.is_symlink();
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() && !is_link && depth < MAX_DEPTH => {
                    open.push((path, format!("{name}/"), depth + 1));
                }
                Ok(metadata) if metadata.is_file() => files.push(Found {
                    name,
                    place: Place::Disk(path),
                }),
                _ => {}
            }
            if files.len() + open.len() > MAX_FILES {
                return Err(too_many());
            }
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// The files of a folder and its subfolders.
pub(super) fn files_below(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let files = list(folder).map_err(|error| match error {
        ImagingError::Io(error) => error,
        error => std::io::Error::other(error),
    })?;
    let path = |found: Found| match found.place {
        Place::Disk(path) => Some(path),
        Place::Entry(_) => None,
    };
    Ok(files.into_iter().filter_map(path).collect())
}

/// Whether one of the first files of a folder and its subfolders begins like DICOM.
pub(super) fn holds_dicom(folder: &Path) -> bool {
    let files = files_below(folder).unwrap_or_default();
    files
        .iter()
        .take(MAX_HEADS)
        .any(|path| dataset::is_dicom(&head(path)))
}

/// The first bytes of a file; none when it cannot be read.
pub(super) fn head(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    // What cannot be opened is no series; reading it says why.
    let _ = File::open(path).and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head));
    head
}

/// Whether a file is DICOM or a zip file by its content.
pub(super) fn starts_ours(path: &Path) -> bool {
    super::is_ours(&head(path))
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name == "__MACOSX"
}

fn too_many() -> ImagingError {
    ImagingError::TooLarge(format!(
        "more than {MAX_FILES} files; give the folder of one series"
    ))
}

fn zip_error(error: zip::result::ZipError) -> ImagingError {
    match error {
        zip::result::ZipError::Io(error) => decode_error(error),
        error => ImagingError::Corrupt(format!("zip: {error}")),
    }
}
