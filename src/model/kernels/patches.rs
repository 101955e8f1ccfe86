//! What a device needs to make a patch of training by itself: voxels, and everything that was drawn for them.

use burn::tensor::{backend::Backend, ops::FloatTensor};

/// Values `[d, h, w]` on the device, and classes.
pub type Made<B> = (FloatTensor<B>, Vec<u8>);

/// A backend that makes patches, with the same steps as the host.
pub struct PatchMaker<B: Backend> {
    /// A patch.
    pub make: fn(&PatchJob, &B::Device) -> Made<B>,
    /// Volume Fusion's network input `[d, h, w]`.
    pub fuse: fn(&FusionJob, &B::Device) -> FloatTensor<B>,
}

/// A patch of a labelled case, to be cut, bent and changed in its values.
#[derive(Debug, Clone)]
pub struct PatchJob {
    /// Voxels `[z, y, x]` of the patch.
    pub size: [usize; 3],
    /// The part of the case that the patch reads: its first voxel, `[z, y, x]`.
    pub low: [isize; 3],
    /// Its voxels, `[z, y, x]`.
    pub shape: [usize; 3],
    /// Its HU.
    pub hu: Vec<i16>,
    /// Its classes.
    pub labels: Vec<u8>,
    /// Position of the patch's centre in the case, in voxels.
    pub centre: [f64; 3],
    /// From an offset to the patch's centre to an offset in the case, in voxels.
    pub matrix: [[f64; 3]; 3],
    /// Smooth displacement of the patch's voxels.
    pub bend: Option<Bend>,
    /// HU range that becomes [-1, 1]; beyond the case there is the lower end.
    pub hu_window: [f32; 2],
    /// Changes of the values, made in this order.
    pub changes: ValueChanges,
    /// Left and right are exchanged: the label of each label's structure on the other side.
    pub mirror: Option<Vec<u8>>,
}

/// A displacement: a cubic B-spline of which the slowest axis is still to be interpolated.
#[derive(Debug, Clone)]
pub struct Bend {
    /// Per component, `[control z][y][x]` of the patch, in voxels.
    pub planes: [Vec<f32>; 3],
    /// Voxels of the patch along z, over the distance of the control points.
    pub step_z: f64,
}

/// Changes of a patch's values, which lie in [-1, 1] before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValueChanges {
    /// Exponent of the values clamped to [-1, 1] and seen as 0 to 1.
    pub gamma: Option<f32>,
    /// Factor.
    pub contrast: Option<f32>,
    /// Shift.
    pub brightness: Option<f32>,
    /// Voxels so many times as long, per axis.
    pub low_resolution: Option<[f64; 3]>,
    /// Standard deviations of a Gaussian, in voxels per axis.
    pub blur: Option<[f64; 3]>,
    /// Standard deviation of independent normal noise, and the stream it is drawn from.
    pub noise: Option<(f64, crate::rng::Rng)>,
}

/// Two patches of unlabelled scans, to be resized, changed in contrast and blended.
#[derive(Debug, Clone)]
pub struct FusionJob {
    /// Voxels `[z, y, x]` of the sample.
    pub size: [usize; 3],
    /// Foreground and background.
    pub cuts: [Cut; 2],
    /// Both are inverted.
    pub inverted: bool,
    /// Class of each voxel: the foreground's weight, times `highest`.
    pub classes: Vec<u8>,
    /// The highest class.
    pub highest: usize,
}

/// A patch of a scan before it is resized, and how its values are changed.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Voxels `[z, y, x]`.
    pub shape: [usize; 3],
    /// Their values, in [-1, 1].
    pub values: Vec<f32>,
    /// Per axis, for each voxel of the sample: two voxels of the cut and the weight of the second.
    pub taps: [Vec<Tap>; 3],
    /// Percentiles, in percent, between which the contrast is stretched.
    pub percents: [f64; 2],
    /// Exponent between the smallest and the largest value.
    pub gamma: f32,
}

/// Two voxels and the weight of the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tap {
    /// The first.
    pub low: usize,
    /// The second.
    pub high: usize,
    /// Its weight.
    pub weight: f32,
}
