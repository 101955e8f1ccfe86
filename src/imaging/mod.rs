//! Voxels in the patient: reading, writing, turning, resampling and showing images.
//!
//! One convention everywhere: arrays are `[z, y, x]` with x fastest, the world is LPS millimetres,
//! and [`Geometry`] is the only mapping between them. Readers ([`read_scan`], [`read_label`])
//! decide by content, never by name, keep to a [`Budget`] of memory, and refuse with an
//! [`ImagingError`] what they do not understand completely. Writers ([`write_label`],
//! [`write_scan`]) leave either a whole file or none.
//!
//! | file | what it is in the patient |
//! |---|---|
//! | [`geometry`], [`volume`] | the grid, and voxels on it |
//! | `nifti`, `nrrd`, [`dicom`] | the formats, their rules and traps |
//! | [`orientation`], [`resample`], [`components`] | grids turned, resampled, cleaned |
//! | [`distance`], [`metrics`] | distances in mm; how well two label maps agree |
//! | [`phantom`] | a synthetic torso, a pure function of its seed |
//! | [`scribbles`] | painted strokes become a mask: likelihoods and a minimum cut |
//! | [`render`] | pictures of a scan with its labels |
//! | [`terminology`] | what the names of structures mean, coded |
//!
//! Nothing here knows of projects, models or servers.

pub mod budget;
pub mod color;
pub mod components;
pub mod dicom;
pub mod distance;
pub mod error;
pub mod geometry;
pub mod label;
pub mod metrics;
mod nifti;
mod nrrd;
pub mod orientation;
pub mod phantom;
pub mod raster;
pub mod render;
pub mod resample;
pub mod sample;
pub mod scribbles;
pub mod terminology;
pub mod volume;
pub(crate) mod whole_file;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

pub use budget::Budget;
pub use error::ImagingError;
pub use geometry::{Geometry, GeometryError};
pub use label::{
    LabelFile, LabelFormat, Segment, read_label, read_label_of, write_label, write_label_as,
    write_scan,
};
pub use raster::Raster;
pub use sample::Sample;
pub use volume::{Scan, Volume};

use budget::Packing;

/// Bytes of the file that its first reads may look at.
const READ_BUFFER_BYTES: usize = 1 << 18;

/// Reads a scan: NIfTI-1, NIfTI-2, NRRD or a DICOM series (a folder, a zip file, one file), decided by
/// content. Values are rescaled as the file says, and every voxel is finite.
///
/// # Errors
/// Whatever is no complete, plausible, scalar 3-D image within `budget`.
pub fn read_scan(path: &Path, budget: &Budget) -> Result<Scan, ImagingError> {
    match is_dicom(path)? {
        true => dicom::read_scan(path, budget),
        false => read_raster(path, budget)?.into_scan(),
    }
}

fn is_dicom(path: &Path) -> Result<bool, ImagingError> {
    Ok(path.is_dir() || matches!(sniff(open(path)?.0.fill_buf()?)?, Kind::Dicom))
}

/// Reads an image without deciding what it is.
///
/// # Errors
/// As [`read_scan`].
pub fn read_raster(path: &Path, budget: &Budget) -> Result<Raster, ImagingError> {
    if path.is_dir() {
        return dicom::read(path, budget);
    }
    let (mut reader, stored_bytes) = open(path)?;
    let mut raster = match sniff(reader.fill_buf()?)? {
        Kind::Dicom => return dicom::read(path, budget),
        Kind::Nrrd => nrrd::read(path, reader, stored_bytes, budget)?,
        Kind::Nifti(packing) => nifti::read(path, reader, packing, stored_bytes, budget)?,
    };
    raster.note_shear();
    Ok(raster)
}

enum Kind {
    Dicom,
    Nrrd,
    Nifti(Packing),
}

fn sniff(start: &[u8]) -> Result<Kind, ImagingError> {
    if start.starts_with(b"NRRD") {
        return Ok(Kind::Nrrd);
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Kind::Nifti(Packing::Gzip));
    }
    if nifti::is_header(start) {
        return Ok(Kind::Nifti(Packing::Plain));
    }
    if dicom::is_ours(start) {
        return Ok(Kind::Dicom);
    }
    Err(ImagingError::UnknownFormat(match start.len() {
        0 => "the file is empty".to_owned(),
        _ => "its first bytes are no known header".to_owned(),
    }))
}

/// A buffered reader of a regular file, and the file's size.
fn open(path: &Path) -> Result<(BufReader<File>, u64), ImagingError> {
    // Asked before opening: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(ImagingError::UnknownFormat(
            "it is not a regular file".to_owned(),
        ));
    }
    let file = File::open(path)?;
    let stored_bytes = file.metadata()?.len();
    Ok((
        BufReader::with_capacity(READ_BUFFER_BYTES, file),
        stored_bytes,
    ))
}

#[cfg(test)]
mod tests;
