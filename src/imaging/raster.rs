//! A decoded file before it is taken as a scan or as a label.
//!
//! Readers produce a [`Raster`]: the voxels in the file's own type and order with the grid, so that
//! every later question (Hounsfield units, label values, hashes) is answered from one place and
//! 64-bit types lose nothing on the way.

use super::error::ImagingError;
use super::geometry::Geometry;
use super::label::{LabelFile, Segment};
use super::sample::Sample;
use super::volume::{Scan, Volume};

/// Hounsfield units in place of voxels that were not measured.
pub(crate) const AIR_HU: f32 = -1024.0;

/// The warning about a sheared grid.
pub(crate) const SHEARED: &str =
    "the voxel axes are not at right angles (sheared or tilted); kept as they are";

/// How the layers of a segmentation lie among the voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layers {
    /// Number of values per voxel position.
    pub count: usize,
    /// Whether the layers of a voxel are neighbours in the file (list axis first).
    pub interleaved: bool,
}

impl Layers {
    pub(crate) const ONE: Self = Self {
        count: 1,
        interleaved: false,
    };
}

/// An image as stored: values in file order, i (array axis x) fastest.
#[derive(Debug, Clone)]
pub struct Raster {
    pub(crate) format: &'static str,
    pub(crate) geometry: Geometry,
    pub(crate) sample: Sample,
    /// Slope and intercept where the file asks for rescaling.
    pub(crate) rescale: Option<(f64, f64)>,
    pub(crate) layers: Layers,
    /// Stored values that stand for no measurement, first and last; a scan has air there.
    pub(crate) padding: Option<[f64; 2]>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) warnings: Vec<String>,
    /// Little-endian values.
    pub(crate) bytes: Vec<u8>,
}

impl Raster {
    /// Short name of the file format.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The grid.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Type of a value in the file.
    pub fn sample(&self) -> Sample {
        self.sample
    }

    /// Values per voxel: 1, or the layers of a segmentation.
    pub fn layer_count(&self) -> usize {
        self.layers.count
    }

    /// What was assumed or repaired while reading.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Warns of a sheared grid.
    pub(crate) fn note_shear(&mut self) {
        if self.geometry.is_sheared() {
            self.warnings.push(SHEARED.to_owned());
        }
    }

    /// All values in file order after rescaling, in chunks; NaN and infinities as they are stored.
    pub fn values(&self) -> impl Iterator<Item = f64> + '_ {
        let (sample, rescale) = (self.sample, self.rescale);
        self.bytes
            .chunks_exact(sample.size_bytes())
            .map(move |raw| rescaled(rescale, sample.decode(raw)))
    }

    /// The value at file position (i, j, k) of the first layer after rescaling; `None` outside.
    pub fn value_at(&self, ijk: [usize; 3]) -> Option<f64> {
        let [nk, nj, ni] = self.geometry.shape();
        let [i, j, k] = ijk;
        if i >= ni || j >= nj || k >= nk {
            return None;
        }
        let voxel = (k * nj + j) * ni + i;
        let at = if self.layers.interleaved {
            voxel * self.layers.count
        } else {
            voxel
        };
        let size = self.sample.size_bytes();
        let raw = self.bytes.get(at * size..(at + 1) * size)?;
        Some(rescaled(self.rescale, self.sample.decode(raw)))
    }

    /// The image as a scan in `f32`.
    ///
    /// Voxels that are not finite are replaced, with a warning.
    ///
    /// # Errors
    /// More than one layer, or no finite voxel at all.
    pub fn into_scan(mut self) -> Result<Scan, ImagingError> {
        if self.layers.count != 1 {
            return Err(ImagingError::Unsupported(format!(
                "a segmentation of {} layers is no scan; read it as a label",
                self.layers.count
            )));
        }
        let (rescale, padding) = (self.rescale, self.padding);
        let is_padding =
            |raw: f64| padding.is_some_and(|[first, last]| (first..=last).contains(&raw));
        let voxels = self.sample.map(&self.bytes, |raw| match is_padding(raw) {
            true => AIR_HU,
            false => rescaled(rescale, raw) as f32,
        });
        self.bytes = Vec::new();
        let volume = Volume::new(self.geometry, voxels)?;
        Scan::of_values(volume, self.format, self.sample, self.warnings)
    }

    /// The image as label values, one array per layer.
    ///
    /// # Errors
    /// [`ImagingError::LabelValues`] at the first negative, fractional or too large value.
    pub fn into_label(self) -> Result<LabelFile, ImagingError> {
        let rescale = self.rescale;
        // The conversion saturates, so what comes back unchanged was a whole number in range.
        let is_label = |value: f64| f64::from(value as u16) == value;
        if let Some(raw) = self
            .sample
            .find(&self.bytes, |raw| !is_label(rescaled(rescale, raw)))
        {
            return Err(ImagingError::LabelValues(format!(
                "it holds the value {}",
                rescaled(rescale, raw)
            )));
        }
        let values = self
            .sample
            .map(&self.bytes, |raw| rescaled(rescale, raw) as u16);
        let (count, voxel_count) = (self.layers.count, self.geometry.voxel_count());
        let layers = if count == 1 {
            vec![values]
        } else {
            (0..count)
                .map(|layer| {
                    let (first, step) = if self.layers.interleaved {
                        (layer, count)
                    } else {
                        (layer * voxel_count, 1)
                    };
                    values[first..]
                        .iter()
                        .step_by(step)
                        .take(voxel_count)
                        .copied()
                        .collect()
                })
                .collect()
        };
        Ok(LabelFile {
            geometry: self.geometry,
            layers,
            segments: self.segments,
            warnings: self.warnings,
        })
    }
}

fn rescaled(rescale: Option<(f64, f64)>, raw: f64) -> f64 {
    match rescale {
        None => raw,
        // Adding 0 would turn -0 into 0, and hashes differ from those of other readers.
        Some((slope, 0.0)) => raw * slope,
        Some((slope, intercept)) => raw * slope + intercept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raster(values: &[f64], layers: Layers) -> Raster {
        let shape = [1, 1, values.len() / layers.count];
        let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        Raster {
            format: "test",
            geometry: Geometry::new(shape, [0.0; 3], steps).unwrap(),
            sample: Sample::F64,
            rescale: None,
            layers,
            padding: None,
            segments: Vec::new(),
            warnings: Vec::new(),
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    #[test]
    fn scans_are_finite() {
        let scan = raster(
            &[5.0, f64::NAN, -3.0, f64::NEG_INFINITY, 1e300],
            Layers::ONE,
        )
        .into_scan()
        .unwrap();
        assert_eq!(scan.volume.voxels, [5.0, -3.0, -3.0, -3.0, -3.0]);
        assert_eq!(scan.warnings.len(), 1);
        assert!(
            raster(&[f64::NAN, f64::INFINITY], Layers::ONE)
                .into_scan()
                .is_err()
        );
    }

    #[test]
    fn labels_are_whole_numbers() {
        assert_eq!(
            raster(&[0.0, 65535.0], Layers::ONE)
                .into_label()
                .unwrap()
                .layers,
            [[0, 65535]]
        );
        for bad in [-1.0, 0.5, 65536.0, f64::NAN, f64::INFINITY] {
            let error = raster(&[0.0, bad], Layers::ONE).into_label().unwrap_err();
            assert!(
                matches!(error, ImagingError::LabelValues(_)),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn rescaling_applies_to_labels_too() {
        let mut raster = raster(&[10.0, 12.0], Layers::ONE);
        raster.rescale = Some((0.5, -5.0));
        assert_eq!(raster.value_at([1, 0, 0]), Some(1.0));
        assert_eq!(raster.value_at([2, 0, 0]), None);
        assert_eq!(raster.into_label().unwrap().layers, [[0, 1]]);
    }

    #[test]
    fn layers_in_either_order() {
        let values = [1.0, 2.0, 3.0, 4.0];
        let interleaved = raster(
            &values,
            Layers {
                count: 2,
                interleaved: true,
            },
        )
        .into_label()
        .unwrap();
        assert_eq!(interleaved.layers, [[1, 3], [2, 4]]);
        let planar = raster(
            &values,
            Layers {
                count: 2,
                interleaved: false,
            },
        )
        .into_label()
        .unwrap();
        assert_eq!(planar.layers, [[1, 2], [3, 4]]);
        assert!(
            raster(
                &values,
                Layers {
                    count: 2,
                    interleaved: false
                }
            )
            .into_scan()
            .is_err()
        );
    }
}
