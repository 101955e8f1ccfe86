//! NIfTI-1 and NIfTI-2 (nifti.nimh.nih.gov), one file or `.hdr` with `.img`, plain or gzip, either
//! byte order; written as NIfTI-1.
//!
//! Rules where readers are known to differ, and what is done here:
//! - The sform is used when its code is above 0, else the qform, else voxel sizes alone with the
//!   x axis flipped and the grid centred (as nibabel does), with a warning. A chosen transform that
//!   is singular or not finite is refused; the other one is not tried, it may lie elsewhere.
//! - `scl_slope` 0 or not finite means no rescaling, and then the intercept is ignored too.
//! - Lengths in metres or micrometres become millimetres.
//! - Dimensions after the third must be 1; a 2-D image is one slice.
//! - `bitpix` is redundant; a wrong one is a warning.
//!
//! The header codec is our own: both versions share one table of fields, and the checks on every
//! field stand beside its use.

mod header;
mod read;
mod write;

pub(super) use header::is_header;
pub(super) use read::read;
pub(super) use write::write;

#[cfg(test)]
mod tests;
