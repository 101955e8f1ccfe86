//! What a result says about the scan that it was made on.

use super::dataset::{DataSet, bad};
use super::scan::Scans;
use super::segmentation::LabelledSlice;
use super::source::Content;
use crate::imaging::error::ImagingError;
use crate::imaging::volume::Volume;

/// How far labels may lie from the grid of their scan, in voxels.
const SAME_GRID_VOXELS: f64 = 0.01;

/// A frame of a scan, as results refer to it.
pub(super) struct SourceFrame {
    pub class_uid: String,
    pub instance_uid: String,
    /// Number of the frame, from 1, where the instance has several.
    pub frame_number: Option<u32>,
    /// Centre of the first pixel, LPS mm.
    pub position: [f64; 3],
    /// Unit way along a row, and along a column.
    pub directions: [[f64; 3]; 2],
    /// Distance of neighbours along a row, and along a column, mm.
    pub spacing: [f64; 2],
}

impl Scans {
    /// The slices of a scan as they were measured, with their labels. Labels of an uneven scan lie on its even grid;
    /// each slice gets those that are nearest.
    ///
    /// # Errors
    /// Labels on another grid, or a scan without identity.
    pub(super) fn slices_of<'l>(
        &self,
        scan: usize,
        labels: &'l Volume<u16>,
    ) -> Result<Vec<LabelledSlice<'l>>, ImagingError> {
        let stack = &self.stacks[scan];
        let spacing = stack.geometry.spacing_mm();
        let tolerance_mm = SAME_GRID_VOXELS * spacing.into_iter().fold(f64::INFINITY, f64::min);
        if !labels.geometry.same_grid(&stack.geometry, tolerance_mm) {
            return Err(ImagingError::Unsupported(
                "the labels lie on another grid than the DICOM scan".to_owned(),
            ));
        }
        let [_, rows, columns] = labels.geometry.shape();
        let voxel_slice = |n: usize| match &stack.uneven {
            None => n,
            Some(places) => {
                let distance = |place: f64| (place - n as f64).abs();
                let nearest = places
                    .iter()
                    .enumerate()
                    .min_by(|a, b| distance(*a.1).total_cmp(&distance(*b.1)));
                nearest.map_or(0, |(slice, _)| slice)
            }
        };
        let one = |(n, at): (usize, &super::series::FrameRef)| {
            let instance = &self.instances[at.instance];
            if instance.sop_uid.is_empty() || instance.class_uid.is_empty() {
                return Err(bad(
                    "a slice has no SOP Instance UID, which a result has to name",
                ));
            }
            let slice = &instance.slices[at.frame];
            let first = voxel_slice(n) * rows * columns;
            Ok(LabelledSlice {
                source: SourceFrame {
                    class_uid: instance.class_uid.clone(),
                    instance_uid: instance.sop_uid.clone(),
                    frame_number: (instance.slices.len() > 1).then_some(at.frame as u32 + 1),
                    position: slice.position,
                    directions: slice.directions,
                    spacing: slice.spacing,
                },
                labels: &labels.voxels[first..first + rows * columns],
            })
        };
        stack.frames.iter().enumerate().map(one).collect()
    }

    /// The data set of the first slice of a scan, for what all have in common.
    pub(super) fn first_data_set(&self, scan: usize) -> Result<DataSet, ImagingError> {
        let first = self.stacks[scan].frames[0];
        let file = self.instances[first.instance].file;
        match self.source.read(file, &self.budget)? {
            Content::Dicom(bytes) => DataSet::parse(bytes, &self.budget),
            Content::Other => Err(bad("the file was changed while it was read")),
        }
    }

    /// Distance of neighbouring slices along their normal, mm; of an uneven scan, that of its grid.
    pub(super) fn slice_distance_mm(&self, scan: usize) -> f64 {
        use crate::imaging::geometry::{cross, dot, normalised};
        let [z, y, x] = self.stacks[scan].geometry.steps_lps_mm();
        dot(z, normalised(cross(x, y))).abs()
    }

    /// Whether the slices of a scan are evenly spaced.
    pub(super) fn is_even(&self, scan: usize) -> bool {
        self.stacks[scan].uneven.is_none()
    }
}
