//! Why an image or label could not be read or written.

use std::io;

use super::geometry::GeometryError;

/// A refused image or label. The text says what is wrong and what to do; it holds no path, so that
/// it can be shown to a client: the caller knows which file it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ImagingError {
    /// The file could not be opened, read or written.
    #[error("the file could not be read or written: {0}")]
    Io(#[from] io::Error),
    /// No known format by its content.
    #[error(
        "not an image this program reads ({0}); send NIfTI (.nii, .nii.gz, .hdr with .img), NRRD (.nrrd, .nhdr, .seg.nrrd) or a DICOM series"
    )]
    UnknownFormat(String),
    /// A file of a series.
    #[error("{file}: {error}")]
    InFile {
        /// Its name without folders.
        file: String,
        /// What is wrong with it.
        error: Box<ImagingError>,
    },
    /// The header contradicts the format's definition.
    #[error("damaged {format} header: {what}")]
    Header {
        /// Name of the format for the reader of the message.
        format: &'static str,
        /// The field and what is wrong with it.
        what: String,
    },
    /// Valid, but outside of what can be used as a scan or label.
    #[error("unsupported image: {0}")]
    Unsupported(String),
    /// The header asks for more than the decode limits allow, or the stream delivers more.
    #[error("the image is over the decode limit: {0}")]
    TooLarge(String),
    /// The voxels end before the header's size is reached.
    #[error(
        "the file is truncated: {expected_bytes} bytes of voxels announced, {found_bytes} found; send the complete file"
    )]
    Truncated {
        /// Bytes the header announces.
        expected_bytes: u64,
        /// Bytes the file delivers.
        found_bytes: u64,
    },
    /// Compressed data whose checksum or structure is wrong.
    #[error("the compressed data are damaged ({0}); make the file again from its source")]
    Corrupt(String),
    /// A header names a data file that may not be opened.
    #[error("the header refers to another file: {0}")]
    DataFile(String),
    /// The affine is no usable geometry.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Values that are no labels.
    #[error("not a label map: {0}; labels are whole numbers from 0 to 65535")]
    LabelValues(String),
    /// Text or raw voxels that do not parse as the header says.
    #[error("the voxel data do not match the header: {0}")]
    Data(String),
}

impl ImagingError {
    /// A short stable name of the kind of refusal, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::UnknownFormat(_) => "unknown_format",
            Self::InFile { error, .. } => error.code(),
            Self::Header { .. } => "bad_header",
            Self::Unsupported(_) => "unsupported",
            Self::TooLarge(_) => "too_large",
            Self::Truncated { .. } => "truncated",
            Self::Corrupt(_) => "corrupt",
            Self::DataFile(_) => "data_file",
            Self::Geometry(_) => "bad_geometry",
            Self::LabelValues(_) => "bad_label_values",
            Self::Data(_) => "bad_data",
        }
    }
}
