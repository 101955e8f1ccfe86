//! Label maps and segmentations as files.

use std::path::Path;

use super::Sample;
use super::error::ImagingError;
use super::geometry::Geometry;
use super::volume::Volume;
use super::{Budget, dicom, nifti, nrrd, read_raster};

/// One named segment of a `.seg.nrrd` file.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Identifier, unique in the file.
    pub id: String,
    /// Name shown to the reader.
    pub name: String,
    /// Value of its voxels in its layer, at least 1.
    pub value: u16,
    /// Index of its layer.
    pub layer: usize,
    /// Red, green and blue from 0 to 1.
    pub color: Option<[f32; 3]>,
}

/// A label map as read; a `.seg.nrrd` may hold several layers with overlapping segments.
#[derive(Debug, Clone)]
pub struct LabelFile {
    /// The grid of every layer. A segmentation cropped by its writer has the cropped grid, placed
    /// where it belongs in the patient; resample it (nearest) to the grid of the image.
    pub geometry: Geometry,
    /// Label values in C order `[z, y, x]` per layer, at least one layer.
    pub layers: Vec<Vec<u16>>,
    /// Names and values; empty unless the file is a `.seg.nrrd`.
    pub segments: Vec<Segment>,
    /// What was assumed or repaired while reading.
    pub warnings: Vec<String>,
}

/// Reads a label map or segmentation: NIfTI, NRRD, `.seg.nrrd` or DICOM Segmentation, decided by content.
///
/// # Errors
/// As [`super::read_scan`], and values that are negative, fractional or above 65535.
pub fn read_label(path: &Path, budget: &Budget) -> Result<LabelFile, ImagingError> {
    read(path, None, budget)
}

/// As [`read_label`], and the contours of an RT Structure Set on the grid of their image.
///
/// # Errors
/// As [`read_label`], and contours that lie on no slice of the grid.
pub fn read_label_of(
    path: &Path,
    grid: &Geometry,
    budget: &Budget,
) -> Result<LabelFile, ImagingError> {
    read(path, Some(grid), budget)
}

fn read(path: &Path, grid: Option<&Geometry>, budget: &Budget) -> Result<LabelFile, ImagingError> {
    match dicom::is_file(path) {
        true => dicom::read_labels(path, grid, budget),
        false => read_raster(path, budget)?.into_label(),
    }
}

/// The file formats that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelFormat {
    /// NIfTI-1, one file.
    Nifti,
    /// NIfTI-1, gzip.
    NiftiGz,
    /// NRRD, raw.
    Nrrd,
    /// NRRD, gzip encoding.
    NrrdGz,
    /// 3D Slicer segmentation, raw.
    SegNrrd,
    /// 3D Slicer segmentation, gzip encoding.
    SegNrrdGz,
}

impl LabelFormat {
    /// The format a file name asks for by its suffix; NRRD without compression.
    pub fn from_suffix(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        [
            (".nii.gz", Self::NiftiGz),
            (".nii", Self::Nifti),
            (".seg.nrrd", Self::SegNrrd),
            (".nrrd", Self::Nrrd),
        ]
        .into_iter()
        .find_map(|(suffix, format)| name.ends_with(suffix).then_some(format))
    }

    /// File name suffix with its dot.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Nifti => ".nii",
            Self::NiftiGz => ".nii.gz",
            Self::Nrrd | Self::NrrdGz => ".nrrd",
            Self::SegNrrd | Self::SegNrrdGz => ".seg.nrrd",
        }
    }

    /// The same kind of file with compression on or off.
    pub fn with_compression(self, compress: bool) -> Self {
        match (self, compress) {
            (Self::Nifti | Self::NiftiGz, false) => Self::Nifti,
            (Self::Nifti | Self::NiftiGz, true) => Self::NiftiGz,
            (Self::Nrrd | Self::NrrdGz, false) => Self::Nrrd,
            (Self::Nrrd | Self::NrrdGz, true) => Self::NrrdGz,
            (Self::SegNrrd | Self::SegNrrdGz, false) => Self::SegNrrd,
            (Self::SegNrrd | Self::SegNrrdGz, true) => Self::SegNrrdGz,
        }
    }

    fn compressed(self) -> bool {
        matches!(self, Self::NiftiGz | Self::NrrdGz | Self::SegNrrdGz)
    }
}

/// Writes a label map: `uint8` when every value is at most 255, else `uint16`. `names` are the
/// segments of a `.seg.nrrd` as (value, name); other formats have no place for them.
///
/// The file appears complete under its name or not at all.
///
/// # Errors
/// A grid that the format cannot hold, or a disk that does not take the file.
pub fn write_label(
    path: &Path,
    label: &Volume<u16>,
    names: &[(u16, String)],
    format: LabelFormat,
) -> Result<(), ImagingError> {
    let narrow = label.voxels.iter().all(|&value| value <= 255);
    let sample = if narrow { Sample::U8 } else { Sample::U16 };
    write_label_as(path, label, names, format, sample)
}

/// As [`write_label`], with voxels of the type `sample`: `uint8`, `uint16`, `int16`, `int32` or `float32`.
///
/// # Errors
/// Also for another type, and for a value that the type cannot hold.
pub fn write_label_as(
    path: &Path,
    label: &Volume<u16>,
    names: &[(u16, String)],
    format: LabelFormat,
    sample: Sample,
) -> Result<(), ImagingError> {
    let voxels = label.voxels.iter().copied();
    let highest = match sample {
        Sample::U8 => u16::from(u8::MAX),
        Sample::I16 => i16::MAX.unsigned_abs(),
        _ => u16::MAX,
    };
    if let Some(value) = voxels.clone().find(|&value| value > highest) {
        return Err(ImagingError::Unsupported(format!(
            "the label value {value} does not fit {}",
            sample.name()
        )));
    }
    let bytes: Vec<u8> = match sample {
        Sample::U8 => voxels.map(|value| value as u8).collect(),
        // The same bits as unsigned, which the check above leaves in range.
        Sample::U16 | Sample::I16 => voxels.flat_map(u16::to_le_bytes).collect(),
        Sample::I32 => voxels
            .flat_map(|value| i32::from(value).to_le_bytes())
            .collect(),
        Sample::F32 => voxels
            .flat_map(|value| f32::from(value).to_le_bytes())
            .collect(),
        other => {
            return Err(ImagingError::Unsupported(format!(
                "a label is not written as {}",
                other.name()
            )));
        }
    };
    let compress = format.compressed();
    match format {
        LabelFormat::Nifti | LabelFormat::NiftiGz => {
            nifti::write(path, &label.geometry, sample, &bytes, compress)
        }
        LabelFormat::Nrrd | LabelFormat::NrrdGz => {
            nrrd::write(path, &label.geometry, sample, &bytes, "", compress)
        }
        LabelFormat::SegNrrd | LabelFormat::SegNrrdGz => {
            let fields = nrrd::segment_fields(label, names);
            nrrd::write(path, &label.geometry, sample, &bytes, &fields, compress)
        }
    }
}

/// Writes a scan as `int16` Hounsfield units, rounded and clamped to the type's range.
///
/// The file appears complete under its name or not at all.
///
/// # Errors
/// A segmentation format, a grid that the format cannot hold, or a disk that does not take it.
pub fn write_scan(
    path: &Path,
    scan: &Volume<f32>,
    format: LabelFormat,
) -> Result<(), ImagingError> {
    // A saturating cast: out of range becomes the nearest limit and NaN becomes 0.
    let bytes: Vec<u8> = scan
        .voxels
        .iter()
        .flat_map(|&hu| (hu.round() as i16).to_le_bytes())
        .collect();
    let (geometry, sample, compress) = (&scan.geometry, Sample::I16, format.compressed());
    match format {
        LabelFormat::Nifti | LabelFormat::NiftiGz => {
            nifti::write(path, geometry, sample, &bytes, compress)
        }
        LabelFormat::Nrrd | LabelFormat::NrrdGz => {
            nrrd::write(path, geometry, sample, &bytes, "", compress)
        }
        LabelFormat::SegNrrd | LabelFormat::SegNrrdGz => Err(ImagingError::Unsupported(
            "a scan is not written as .seg.nrrd; use .nrrd or .nii.gz".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes() {
        for format in [
            LabelFormat::Nifti,
            LabelFormat::NiftiGz,
            LabelFormat::Nrrd,
            LabelFormat::SegNrrd,
        ] {
            assert_eq!(
                LabelFormat::from_suffix(&format!("a.b{}", format.suffix())),
                Some(format)
            );
            assert!(format.with_compression(true).compressed());
            assert!(!format.with_compression(false).compressed());
        }
        assert_eq!(
            LabelFormat::from_suffix("CASE.NII.GZ"),
            Some(LabelFormat::NiftiGz)
        );
        assert_eq!(LabelFormat::from_suffix("case.mha"), None);
    }

    #[test]
    fn the_type_that_was_asked_for_is_written_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let steps = [[0.0, 0.0, 2.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        let geometry = Geometry::new([1, 2, 2], [0.0; 3], steps).unwrap();
        let label = |value| Volume::new(geometry, vec![0, 1, 2, value]).unwrap();
        for format in [LabelFormat::NiftiGz, LabelFormat::Nrrd] {
            for (sample, value) in [
                (Sample::U8, 200),
                (Sample::U16, 60_000),
                (Sample::I16, 300),
                (Sample::I32, 60_000),
                (Sample::F32, 300),
            ] {
                let path = folder.path().join(format!("a{}", format.suffix()));
                write_label_as(&path, &label(value), &[], format, sample).unwrap();
                let read = crate::imaging::read_label(&path, &Default::default()).unwrap();
                assert_eq!(read.layers, [[0, 1, 2, value]], "{format:?} {sample:?}");
            }
        }
        for (sample, value) in [(Sample::U8, 256), (Sample::I16, 40_000), (Sample::F64, 1)] {
            let path = folder.path().join("b.nrrd");
            let written = write_label_as(&path, &label(value), &[], LabelFormat::Nrrd, sample);
            assert!(written.is_err() && !path.exists(), "{sample:?}");
        }
    }
}
