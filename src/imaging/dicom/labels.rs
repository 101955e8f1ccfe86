//! Labels as DICOM objects of one kind or another, and back.

use std::path::Path;

use super::dataset::DataSet;
use super::instance::Class;
use super::scan::Scans;
use super::segmentation::{self, Algorithm, SegmentationKind};
use super::source::{Content, Source};
use super::{segmentation_read, structures};
use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::Geometry;
use crate::imaging::label::LabelFile;
use crate::imaging::volume::Volume;
use crate::imaging::whole_file;

/// A DICOM object that holds labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultKind {
    /// A Segmentation object.
    Segmentation(SegmentationKind),
    /// An RT Structure Set.
    Structures,
}

/// Writes labels on the grid of a scan as a DICOM object that belongs to the scan's patient, study and slices. `names`
/// are the label values with their names. The file appears complete under its name or not at all.
///
/// # Errors
/// Labels on another grid or without a name, a scan whose files lack what the object has to repeat, a full disk.
pub fn write_labels(
    path: &Path,
    (scans, scan): (&Scans, usize),
    labels: &Volume<u16>,
    names: &[(u16, String)],
    by: &Algorithm,
    kind: ResultKind,
) -> Result<(), ImagingError> {
    let bytes = match kind {
        ResultKind::Segmentation(kind) => {
            segmentation::encode(scans, scan, labels, names, by, kind)?
        }
        ResultKind::Structures => structures::encode(scans, scan, labels, names, by)?,
    };
    Ok(whole_file::write(path, |out| out.write_all(&bytes))?)
}

/// Reads a Segmentation object, or the contours of an RT Structure Set on `grid`.
///
/// # Errors
/// Another DICOM object, damaged data, contours without a grid.
pub(in crate::imaging) fn read_labels(
    path: &Path,
    grid: Option<&Geometry>,
    budget: &Budget,
) -> Result<LabelFile, ImagingError> {
    let unknown = |what: &str| ImagingError::UnknownFormat(what.to_owned());
    let Content::Dicom(bytes) = Source::open(path)?.read_first(budget)? else {
        return Err(unknown("this is no DICOM file"));
    };
    let set = DataSet::parse(bytes, budget)?;
    match (Class::of(&set), grid) {
        (Class::Segmentation, _) => segmentation_read::decode(&set, budget),
        (Class::Structures, Some(grid)) => structures::decode(&set, grid, budget),
        (Class::Structures, None) => Err(unknown(
            "contours become labels only on the grid of their image",
        )),
        _ => Err(unknown(
            "this DICOM file is neither a Segmentation nor an RT Structure Set",
        )),
    }
}
