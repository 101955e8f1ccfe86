//! Voxels with their place in the patient.

use super::error::ImagingError;
use super::geometry::{Geometry, GeometryError};
use super::sample::Sample;

/// Voxels of one image in C order `[z, y, x]` (x fastest), with their grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume<T> {
    /// The grid.
    pub geometry: Geometry,
    /// One value per voxel, `geometry.voxel_count()` of them.
    pub voxels: Vec<T>,
}

impl<T> Volume<T> {
    /// Joins voxels and grid.
    ///
    /// # Errors
    /// [`GeometryError::Length`] when the number of voxels is not the grid's.
    pub fn new(geometry: Geometry, voxels: Vec<T>) -> Result<Self, GeometryError> {
        if voxels.len() != geometry.voxel_count() {
            return Err(GeometryError::Length {
                voxels: voxels.len(),
                shape: geometry.shape(),
            });
        }
        Ok(Self { geometry, voxels })
    }
}

/// A scan as read from a file: Hounsfield units, every voxel finite.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The voxels after the file's own rescaling.
    pub volume: Volume<f32>,
    /// Short name of the file format, such as `nifti1` or `nrrd`.
    pub format: &'static str,
    /// Type of a voxel in the file, as numpy names it.
    pub dtype: String,
    /// What was assumed or repaired while reading.
    pub warnings: Vec<String>,
}

impl Scan {
    /// A scan of values after rescaling. NaN and infinite ones become the smallest finite value, with a warning: one of
    /// them would otherwise spread through a network over the whole patch.
    ///
    /// # Errors
    /// No finite voxel at all.
    pub(crate) fn of_values(
        mut volume: Volume<f32>,
        format: &'static str,
        sample: Sample,
        mut warnings: Vec<String>,
    ) -> Result<Self, ImagingError> {
        warnings.extend(replace_non_finite(&mut volume.voxels)?);
        Ok(Self {
            volume,
            format,
            dtype: sample.name().to_owned(),
            warnings,
        })
    }
}

/// Puts the smallest finite value in place of NaN and infinities; says how many there were.
pub(crate) fn replace_non_finite(voxels: &mut [f32]) -> Result<Option<String>, ImagingError> {
    let count = voxels.iter().filter(|v| !v.is_finite()).count();
    if count == 0 {
        return Ok(None);
    }
    if count == voxels.len() {
        return Err(ImagingError::Data("no voxel is a finite number".to_owned()));
    }
    let lowest = voxels
        .iter()
        .copied()
        .filter(|v| v.is_finite())
        .fold(f32::INFINITY, f32::min);
    for voxel in voxels.iter_mut().filter(|v| !v.is_finite()) {
        *voxel = lowest;
    }
    Ok(Some(format!(
        "{count} voxels are not finite numbers; they were replaced by {lowest}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_must_fit() {
        let geometry = Geometry::new(
            [1, 2, 3],
            [0.0; 3],
            [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
        )
        .unwrap();
        assert!(Volume::new(geometry, vec![0u8; 6]).is_ok());
        assert!(Volume::new(geometry, vec![0u8; 5]).is_err());
    }
}
