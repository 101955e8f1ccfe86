//! Which instance of which series a file is.

use super::dataset::{DataSet, bad, is_dicom};
use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;

/// What a DICOM file says it is; each text may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// SOP Instance UID.
    pub instance_uid: String,
}

/// Walks a DICOM file from its first to its last tag, and tells what it says it is.
///
/// # Errors
/// What is no DICOM file, or not a whole one.
pub fn identity(file: &[u8], budget: &Budget) -> Result<Identity, ImagingError> {
    if !is_dicom(file) {
        return Err(bad("this is no DICOM file"));
    }
    let set = DataSet::parse(file.to_vec(), budget)?;
    let text = |tag| set.root().text(tag).unwrap_or_default();
    Ok(Identity {
        study_uid: text(0x0020_000d),
        series_uid: text(0x0020_000e),
        instance_uid: text(0x0008_0018),
    })
}
