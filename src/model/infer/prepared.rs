//! A scan as the network sees it, window by window, and the way back.

use super::blend::Blend;
use super::segment::Forward;
use super::windows;
use crate::imaging::orientation::{self, Reorientation};
use crate::imaging::{Geometry, ImagingError, Volume, resample};
use crate::model::clicks::{Click, GridClicks};
use crate::model::error::ModelError;
use crate::model::manifest::{ModelDescription, Preprocessing};

/// A window whose every voxel is below this holds only air; it is background without asking the network.
pub(super) const AIR_HU: f32 = -900.0;

/// A scan in LPS order, on the grid and in the values of the network's input.
pub(super) struct Prepared {
    /// The grid of the scan as it is stored.
    source: Geometry,
    /// For a scan whose slices are tilted against each other, the grid that it is shown to the network on.
    upright: Option<Geometry>,
    turn: Reorientation,
    /// The grid of the (upright) scan in LPS order.
    output: Geometry,
    scan: Volume<f32>,
    /// The value of air.
    air: f32,
    patch: [usize; 3],
}

impl Prepared {
    /// Turns, resamples, and maps the HU window to [-1, 1]. A tilted scan is set upright first, as the patient is.
    ///
    /// # Errors
    /// A grid that cannot be resampled.
    pub fn new(scan: &Volume<f32>, model: &ModelDescription) -> Result<Self, ModelError> {
        let source = scan.geometry;
        let upright = resample::upright(&source).map_err(ImagingError::from)?;
        let straight =
            upright.map(|grid| resample::linear(scan, &grid, model.preprocessing.hu_window[0]));
        let scan = straight.as_ref().unwrap_or(scan);
        let turn = orientation::to_lps(&scan.geometry);
        let turned = turn.apply(scan);
        let output = turned.geometry;
        Ok(Self {
            source,
            upright,
            turn,
            output,
            scan: prepare(turned, &model.preprocessing)?,
            air: normalise(AIR_HU, model.preprocessing.hu_window),
            patch: model.patch,
        })
    }

    /// Where windows stand, along each axis.
    pub fn starts(&self) -> [Vec<isize>; 3] {
        let grid = self.scan.geometry.shape();
        [0, 1, 2].map(|axis| windows::starts(grid[axis], self.patch[axis]))
    }

    /// Where the windows' answers come together.
    pub fn blend(&self, classes: usize) -> Blend {
        let (out_mm, net_mm) = (self.output.spacing_mm(), self.scan.geometry.spacing_mm());
        let scale = [0, 1, 2].map(|axis| out_mm[axis] / net_mm[axis]);
        Blend::new(
            classes,
            self.scan.geometry.shape(),
            self.output.shape(),
            scale,
        )
    }

    /// Clicks on the network's grid, for a model that takes them.
    ///
    /// # Errors
    /// Clicks for a model that takes none, of an unknown class, or outside of the scan.
    pub fn clicks(
        &self,
        model: &ModelDescription,
        clicks: &[Click],
    ) -> Result<Option<GridClicks>, ModelError> {
        let Some(guidance) = model.clicks else {
            return match clicks {
                [] => Ok(None),
                _ => Err(ModelError::Clicks(format!(
                    "the model {:?} was not trained with clicks; train one with: fewlabel train --clicks",
                    model.name
                ))),
            };
        };
        let (classes, shape) = (model.network.class_num, self.source.shape());
        for click in clicks {
            if usize::from(click.class) >= classes {
                return Err(ModelError::Clicks(format!(
                    "the model has no class {}",
                    click.class
                )));
            }
            if (0..3).any(|axis| click.voxel[axis] >= shape[axis]) {
                let [[z, y, x], [nz, ny, nx]] = [click.voxel, shape];
                return Err(ModelError::Clicks(format!(
                    "the point ({x}, {y}, {z}) lies outside of the image, which has {nx} x {ny} x {nz} voxels"
                )));
            }
        }
        let network = &self.scan.geometry;
        Ok(Some(GridClicks::new(
            guidance,
            classes,
            clicks,
            &self.source,
            network,
        )))
    }

    /// The network's input of a window; none when it holds only air.
    fn window(&self, start: [isize; 3], clicks: Option<&GridClicks>) -> Option<Vec<f32>> {
        let mut input = cut(&self.scan, start, self.patch, self.air)?;
        if let Some(clicks) = clicks {
            clicks.append(start, self.patch, &mut input);
        }
        Some(input)
    }

    /// The network's logits of a window; none when it holds only air.
    pub fn logits(
        &self,
        net: &dyn Forward,
        start: [isize; 3],
        clicks: Option<&GridClicks>,
    ) -> Option<Vec<f32>> {
        let mut logits = net.logits(self.window(start, clicks)?);
        if let Some(clicks) = clicks {
            clicks.obey(start, self.patch, &mut logits);
        }
        Some(logits)
    }

    /// Values on the LPS grid as a volume on the grid of the scan.
    pub fn back<T: Copy + Default + Send + Sync>(&self, voxels: Vec<T>) -> Volume<T> {
        let turned = Volume {
            geometry: self.output,
            voxels,
        };
        let grid = self.upright.unwrap_or(self.source);
        let voxels = match self.turn.is_identity() {
            true => turned.voxels,
            false => self.turn.undo(&turned).voxels,
        };
        let straight = Volume {
            geometry: grid,
            voxels,
        };
        match self.upright {
            Some(_) => resample::nearest(&straight, &self.source, T::default()),
            None => straight,
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.scan.voxels.len() * size_of::<f32>()
    }
}

/// A scan in LPS order as network input: resampled to the model's spacing, HU window to [-1, 1].
pub(in crate::model) fn prepare(
    scan: Volume<f32>,
    preprocessing: &Preprocessing,
) -> Result<Volume<f32>, ModelError> {
    let mut scan = match preprocessing.spacing_mm {
        None => scan,
        Some(spacing_mm) => {
            let grid = resample::grid_with_spacing(&scan.geometry, spacing_mm)
                .map_err(ImagingError::from)?;
            let tolerance_mm = 1e-3;
            if grid.same_grid(&scan.geometry, tolerance_mm) {
                scan
            } else {
                resample::linear(&scan, &grid, preprocessing.hu_window[0])
            }
        }
    };
    for value in &mut scan.voxels {
        *value = normalise(*value, preprocessing.hu_window);
    }
    Ok(scan)
}

pub(super) fn normalise(hu: f32, [low, high]: [f32; 2]) -> f32 {
    (hu.clamp(low, high) - low) / (high - low) * 2.0 - 1.0
}

/// The voxels of a window, -1 outside the scan; `None` when nothing in it is above `air`.
pub(super) fn cut(
    scan: &Volume<f32>,
    start: [isize; 3],
    size: [usize; 3],
    air: f32,
) -> Option<Vec<f32>> {
    let [d, h, w] = size;
    let shape = scan.geometry.shape();
    let mut patch = vec![-1f32; d * h * w];
    let x_from = (-start[2]).max(0) as usize;
    let x_to = (shape[2] as isize - start[2]).clamp(0, w as isize) as usize;
    let mut tissue = false;
    for z in 0..d {
        let sz = start[0] + z as isize;
        if sz < 0 || sz >= shape[0] as isize {
            continue;
        }
        for y in 0..h {
            let sy = start[1] + y as isize;
            if sy < 0 || sy >= shape[1] as isize || x_from >= x_to {
                continue;
            }
            let from = (sz as usize * shape[1] + sy as usize) * shape[2]
                + (start[2] + x_from as isize) as usize;
            let row = &scan.voxels[from..from + x_to - x_from];
            patch[(z * h + y) * w + x_from..][..row.len()].copy_from_slice(row);
            tissue |= row.iter().any(|&v| v > air);
        }
    }
    tissue.then_some(patch)
}
