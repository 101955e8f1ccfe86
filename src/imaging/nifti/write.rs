//! NIfTI-1 in one file, little endian.

use std::path::Path;

use super::header::{NIFTI1_BYTES, bad};
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::{Geometry, cross, dot, normalised};
use crate::imaging::sample::Sample;
use crate::imaging::whole_file;

/// Voxels begin here: the header and an empty list of extensions.
const VOX_OFFSET: usize = 352;
/// `NIFTI_XFORM_SCANNER_ANAT`.
const SCANNER: i16 = 1;
/// `NIFTI_UNITS_MM`.
const MILLIMETRE: u8 = 2;

/// Writes little-endian voxels in file order. sform and qform hold the same affine with code 1; a
/// sheared grid, which a qform cannot hold, has qform code 0.
pub(in crate::imaging) fn write(
    path: &Path,
    geometry: &Geometry,
    sample: Sample,
    bytes: &[u8],
    compress: bool,
) -> Result<(), ImagingError> {
    let header = header(geometry, sample)?;
    whole_file::write(path, |out| {
        if compress {
            whole_file::gzip(out, &[&header, bytes])
        } else {
            out.write_all(&header)?;
            out.write_all(bytes)
        }
    })?;
    Ok(())
}

fn header(geometry: &Geometry, sample: Sample) -> Result<[u8; VOX_OFFSET], ImagingError> {
    let datatype: i16 = match sample {
        Sample::U8 => 2,
        Sample::I16 => 4,
        Sample::U16 => 512,
        Sample::I32 => 8,
        Sample::F32 => 16,
        other => {
            return Err(ImagingError::Unsupported(format!(
                "{} is not written as NIfTI",
                other.name()
            )));
        }
    };
    let [nk, nj, ni] = geometry.shape();
    let mut dim = [3, 0, 0, 0, 1, 1, 1, 1i16];
    for (to, size) in dim[1..4].iter_mut().zip([ni, nj, nk]) {
        *to = i16::try_from(size).map_err(|_| {
            ImagingError::Unsupported(format!(
                "{size} voxels along one axis do not fit NIfTI-1 (at most 32767); write NRRD"
            ))
        })?;
    }
    let affine = geometry.affine_ras();
    let [dz, dy, dx] = geometry.spacing_mm();
    let (quatern, qfac) = quaternion(&affine);

    let mut out = [0u8; VOX_OFFSET];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(NIFTI1_BYTES as i32).to_le_bytes());
    put(38, b"r");
    for (n, size) in dim.iter().enumerate() {
        put(40 + 2 * n, &size.to_le_bytes());
    }
    put(70, &datatype.to_le_bytes());
    put(72, &(8 * sample.size_bytes() as i16).to_le_bytes());
    for (n, value) in [qfac, dx, dy, dz, 1.0, 1.0, 1.0, 1.0].iter().enumerate() {
        put(76 + 4 * n, &single(*value)?);
    }
    put(108, &single(VOX_OFFSET as f64)?);
    put(112, &single(1.0)?);
    put(123, &[MILLIMETRE]);
    put(
        252,
        &(if geometry.is_sheared() { 0 } else { SCANNER }).to_le_bytes(),
    );
    put(254, &SCANNER.to_le_bytes());
    for (n, row) in affine.iter().take(3).enumerate() {
        put(256 + 4 * n, &single(quatern[n])?);
        put(268 + 4 * n, &single(row[3])?);
        for (c, value) in row.iter().enumerate() {
            put(280 + 16 * n + 4 * c, &single(*value)?);
        }
    }
    put(344, b"n+1\0");
    Ok(out)
}

fn single(value: f64) -> Result<[u8; 4], ImagingError> {
    let narrow = value as f32;
    if !narrow.is_finite() {
        return Err(bad(format!("{value} does not fit single precision")));
    }
    Ok(narrow.to_le_bytes())
}

/// Quaternion (b, c, d) with a >= 0 and qfac of the rotation nearest to the affine's directions.
fn quaternion(affine: &[[f64; 4]; 4]) -> ([f64; 3], f64) {
    let column = |c: usize| [affine[0][c], affine[1][c], affine[2][c]];
    // The axes are orthogonal within 1e-3 where this is used; make them exactly so.
    let x = normalised(column(0));
    let along = dot(x, column(1));
    let y = normalised(std::array::from_fn(|r| column(1)[r] - along * x[r]));
    let z = cross(x, y);
    let qfac = if dot(z, column(2)) < 0.0 { -1.0 } else { 1.0 };
    let m = |r: usize, c: usize| [x, y, z][c][r];
    // The largest of the four squares is at least 1/4: no division by a small number.
    let squares = [
        1.0 + m(0, 0) + m(1, 1) + m(2, 2),
        1.0 + m(0, 0) - m(1, 1) - m(2, 2),
        1.0 - m(0, 0) + m(1, 1) - m(2, 2),
        1.0 - m(0, 0) - m(1, 1) + m(2, 2),
    ];
    let largest = (0..4)
        .max_by(|&p, &q| squares[p].total_cmp(&squares[q]))
        .unwrap_or(0);
    let root = squares[largest].max(1.0).sqrt() * 2.0;
    let mut q = match largest {
        0 => [
            root / 4.0,
            (m(2, 1) - m(1, 2)) / root,
            (m(0, 2) - m(2, 0)) / root,
            (m(1, 0) - m(0, 1)) / root,
        ],
        1 => [
            (m(2, 1) - m(1, 2)) / root,
            root / 4.0,
            (m(0, 1) + m(1, 0)) / root,
            (m(0, 2) + m(2, 0)) / root,
        ],
        2 => [
            (m(0, 2) - m(2, 0)) / root,
            (m(0, 1) + m(1, 0)) / root,
            root / 4.0,
            (m(1, 2) + m(2, 1)) / root,
        ],
        _ => [
            (m(1, 0) - m(0, 1)) / root,
            (m(0, 2) + m(2, 0)) / root,
            (m(1, 2) + m(2, 1)) / root,
            root / 4.0,
        ],
    };
    if q[0] < 0.0 {
        q = q.map(|v| -v);
    }
    ([q[1], q[2], q[3]], qfac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::geometry::tests::any_straight_geometry;
    use crate::imaging::{Budget, read_raster};
    use proptest::prelude::*;

    proptest! {
        /// With the sform code cleared the reader must find the same grid in the qform.
        #[test]
        fn qform_equals_sform(geometry in any_straight_geometry(6)) {
            check(&geometry)?;
        }

        #[test]
        fn qform_equals_sform_at_right_angles(
            order in 0..6usize, flips in 0..8u8, spacing in prop::array::uniform3(0.5..5.0f64),
        ) {
            let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
            let mut steps = [[0.0; 3]; 3];
            for a in 0..3 {
                steps[a][orders[order][a]] = if flips >> a & 1 == 1 { -spacing[a] } else { spacing[a] };
            }
            check(&Geometry::new([3, 4, 5], [10.0, -20.0, 30.0], steps).unwrap())?;
        }
    }

    fn check(geometry: &Geometry) -> Result<(), TestCaseError> {
        let mut file = header(geometry, Sample::U8).unwrap().to_vec();
        file[254] = 0;
        file.resize(VOX_OFFSET + geometry.voxel_count(), 0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("q.nii");
        std::fs::write(&path, file).unwrap();
        let back = read_raster(&path, &Budget::default()).unwrap();
        prop_assert!(
            back.geometry()
                .same_grid(geometry, 2e-3 * geometry.spacing_mm().iter().sum::<f64>()),
            "{:?} came back as {:?}",
            geometry,
            back.geometry()
        );
        Ok(())
    }
}
