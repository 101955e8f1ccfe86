//! A whole scan on the device: windows are cut, blended and labelled there.

use std::ops::Range;

use burn::tensor::{DType, backend::Backend, ops::FloatTensor};

/// The two voxels of an axis that an output voxel lies between, and the share of the second.
pub type Between = (usize, usize, f32);

/// A scan on the device, and what its windows become.
pub struct WindowJob<'a, B: Backend> {
    /// The prepared scan, float32, all voxels of `grid` in one row.
    pub scan: FloatTensor<B>,
    /// `[z, y, x]` of the scan.
    pub grid: [usize; 3],
    /// `[d, h, w]` of a window.
    pub patch: [usize; 3],
    /// How much each voxel of a window counts, float32, all voxels of `patch` in one row.
    pub weights: FloatTensor<B>,
    /// Classes, background included.
    pub classes: usize,
    /// For each voxel of each axis of the label map, where it lies in the scan.
    pub output: &'a [Vec<Between>; 3],
    /// For test-time augmentation: for each class the one on the other side of the body.
    pub mirror: Option<&'a [u8]>,
    /// Input channels of the network: the scan, and clicks if it takes any.
    pub channels: usize,
}

/// Running weighted sums of logits of a band of slices, on the device. Windows come in order of their first slice.
pub trait WindowBlend<B: Backend> {
    /// The voxels of windows at `starts` (which may reach over the grid's edge: -1 there), without clicks,
    /// `[windows, channels, d, h, w]` of type `dtype`; `mirrored` exchanges left and right.
    fn gather(&self, starts: &[[isize; 3]], dtype: DType, mirrored: bool) -> FloatTensor<B>;

    /// Adds the logits `[windows, classes, d, h, w]` of the windows at `starts`; `mirrored` are those of the mirrored windows.
    fn add(
        &mut self,
        starts: &[[isize; 3]],
        logits: FloatTensor<B>,
        mirrored: Option<FloatTensor<B>>,
    );

    /// Labels these slices of the output, for which only slices `below` of the grid count: no later window reaches them.
    fn label(&mut self, slices: Range<usize>, below: usize);

    /// The labels of all slices, `[z, y, x]` of the output.
    ///
    /// # Errors
    /// What the device says.
    fn into_labels(self: Box<Self>) -> Result<Vec<u16>, String>;
}

/// Slices of the grid that are held at once: those that a window reaches, and the one before, which outputs between the two
/// still need.
pub fn band_of(patch: [usize; 3], grid: [usize; 3]) -> usize {
    (patch[0] + 1).min(grid[0])
}

/// Bytes that a job holds on the device, besides the network.
pub fn bytes_of(patch: [usize; 3], grid: [usize; 3], output: [usize; 3], classes: usize) -> u64 {
    let plane = grid[1] * grid[2];
    let sums = band_of(patch, grid) * plane * (classes + 1);
    let floats = grid[0] * plane + patch.iter().product::<usize>() + sums;
    (4 * floats + output.iter().product::<usize>()) as u64
}

/// Memory of a backend's own on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In use, in bytes.
    pub in_use: u64,
    /// Taken from the system so far, in bytes; what is not in use is used again.
    pub reserved: u64,
}
