//! Voxels with their place in the patient.

use super::geometry::{Geometry, GeometryError};

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
