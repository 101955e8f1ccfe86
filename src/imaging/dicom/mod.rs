//! DICOM series as scans, and labels as DICOM objects (PS3.3, PS3.5, PS3.10).
//!
//! | file | what it is about |
//! |---|---|
//! | `source` | which files there are: one, a folder, a zip file |
//! | `dataset`, `identity` | the tags of a file, walked without recursion; every length checked before it is used |
//! | `syntax` | how a file is encoded |
//! | `pixels` | a frame's pixels, and the decoders |
//! | `instance` | what one file says about its slices |
//! | `series` | which slices are one scan, in which order, on which grid |
//! | `scan` | their voxels |
//! | `labels` | labels as DICOM objects, and back |
//! | `segmentation`, `segmentation_read` | Segmentation objects |
//! | `structures`, `contour` | RT Structure Sets |
//! | `layers` | segments that may overlap |
//! | `origin`, `encode` | what a result says about its scan; how a file is written |
//!
//! Rules where readers are known to differ, and what is done here:
//! - Slices are ordered and spaced by their positions. A missing slice is refused; uneven slices are interpolated to an
//!   even grid with a warning; a tilted gantry gives a sheared grid, which keeps every voxel as it was measured.
//! - The rescale is that of each slice; bits above the stored ones are cut off; padding is air in a scan.
//! - Copies of an image count once, localizers do not count. Several scans in one place are told apart by their time or
//!   acquisition, else refused.
//! - One damaged file refuses its folder: the scan would silently lack a slice.
//!
//! The walker is our own: `dicom-object` 0.10 ends the process on deeply nested files, and believes lengths.
//!
//! No value that could name a patient is kept or put into a message.

mod contour;
mod dataset;
mod encode;
mod identity;
mod instance;
mod labels;
mod layers;
mod origin;
mod pixels;
mod scan;
mod segmentation;
mod segmentation_read;
mod series;
mod source;
mod structures;
mod syntax;

use std::path::Path;

pub use identity::{Identity, identity};
pub(super) use labels::read_labels;
pub use labels::{ResultKind, write_labels};
pub use scan::Scans;
pub use segmentation::{Algorithm, Drawn, SegmentationKind};

use super::budget::Budget;
use super::error::ImagingError;
use super::raster::Raster;
use super::volume::Scan;
use source::Source;

/// Whether a file that begins like this is read here: DICOM, or a zip file.
pub(super) fn is_ours(start: &[u8]) -> bool {
    dataset::is_dicom(start) || source::is_zip(start)
}

/// Whether a path is a series for [`open`]: a folder with DICOM files below it, or a zip or DICOM file.
pub fn is_series(path: &Path) -> bool {
    if path.is_dir() {
        source::holds_dicom(path)
    } else {
        source::starts_ours(path)
    }
}

/// Whether a file is DICOM by its content.
pub fn is_file(path: &Path) -> bool {
    dataset::is_dicom(&source::head(path))
}

/// Whether a file is a zip file by its content.
pub fn is_archive(path: &Path) -> bool {
    source::is_zip(&source::head(path))
}

/// Looks through a folder with its subfolders, a zip file or a single file.
///
/// # Errors
/// What cannot be read, and the first damaged DICOM file.
pub fn open(path: &Path, budget: &Budget) -> Result<Scans, ImagingError> {
    Scans::open(Source::open(path)?, budget)
}

/// Reads the one scan of a folder, zip file or single file.
///
/// # Errors
/// As [`open`]; and none or several scans.
pub(super) fn read(path: &Path, budget: &Budget) -> Result<Raster, ImagingError> {
    let mut scans = open(path, budget)?;
    let scan = scans.only()?;
    scans.read(scan)
}

/// As [`read`], as HU.
///
/// # Errors
/// As [`read`].
pub(super) fn read_scan(path: &Path, budget: &Budget) -> Result<Scan, ImagingError> {
    let mut scans = open(path, budget)?;
    let scan = scans.only()?;
    scans.read_scan(scan)
}

/// The files of a folder and its subfolders that [`open`] looks at.
///
/// # Errors
/// A folder that cannot be read.
pub fn files_below(folder: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    source::files_below(folder)
}

/// SHA-256 of the content of a series, whatever its files are called.
///
/// # Errors
/// What cannot be read.
pub fn content_sha256(path: &Path, budget: &Budget) -> Result<String, ImagingError> {
    Source::open(path)?.sha256(budget)
}
