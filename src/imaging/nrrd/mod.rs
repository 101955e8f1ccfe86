//! NRRD (teem.sourceforge.net/nrrd/format.html) and the `.seg.nrrd` of 3D Slicer.
//!
//! Rules where readers are known to differ, and what is done here:
//! - Any order of fields is read. A field given twice must say the same both times.
//! - RAS, LAS and LPS spaces are converted. A space without anatomical meaning, or none at all, is
//!   taken as LPS with a warning; missing directions mean straight axes, a missing origin zero.
//! - Missing `endian` is taken as little with a warning.
//! - One axis that is not spatial (`list`, `vector`, ..) is dropped when its size is 1, and holds the
//!   layers of a segmentation when the header names segments; any other such image is refused.
//! - Data files are opened only inside of the folder of their header.
//! - A cropped `.seg.nrrd` states its own origin; `ReferenceImageExtentOffset` repeats that in
//!   voxels of the scan and is not needed to place it.

mod data;
mod header;
mod read;
mod segments;
mod write;

pub(super) use read::read;
pub(super) use segments::segment_fields;
pub(super) use write::write;

#[cfg(test)]
mod tests;
