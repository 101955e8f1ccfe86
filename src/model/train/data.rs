//! Labelled cases as training sees them: prepared once, cut into patches many times.

use std::path::PathBuf;

use rayon::prelude::*;

use crate::imaging::{Budget, ImagingError, Volume, orientation, read_label, read_scan, resample};
use crate::model::error::ModelError;
use crate::model::manifest::Preprocessing;
use crate::rng::Rng;

/// A labelled scan on disk.
#[derive(Debug, Clone)]
pub struct TrainCase {
    /// Name for messages.
    pub name: String,
    /// The scan.
    pub image: PathBuf,
    /// Its label map, values of the schema, on the scan's grid.
    pub label: PathBuf,
    /// Label values that were annotated; the others are unknown in this case.
    pub annotated: Vec<u16>,
}

/// A case in memory on the model's grid, three bytes a voxel.
pub struct PreparedCase {
    /// Voxels `[z, y, x]` of the model's grid.
    pub shape: [usize; 3],
    /// HU, rounded, clipped to the model's window.
    hu: Vec<i16>,
    labels: Vec<u8>,
    /// Per class (background first) whether it was annotated.
    pub annotated: Vec<bool>,
    /// Up to [`PLACES`] voxels of each class that is there.
    places: Vec<Vec<u32>>,
}

/// A scan with its reference label on their own grid, for validation.
pub struct ValidationCase {
    /// Name for messages.
    pub name: String,
    /// HU.
    pub scan: Volume<f32>,
    /// Schema values.
    pub labels: Volume<u16>,
    /// Per class whether it was annotated.
    pub annotated: Vec<bool>,
}

/// Voxels remembered per class as centres of patches.
const PLACES: usize = 4096;
/// Most training cases that a 32-bit index and memory allow are far above this; a patch draw only needs `usize`.
const MAX_VOXELS: usize = u32::MAX as usize;

/// Reads a scan and its label; both must be on one grid.
pub fn load(case: &TrainCase, classes: usize) -> Result<ValidationCase, ModelError> {
    let fail = |reason: String| ModelError::Data(format!("case {}: {reason}", case.name));
    let budget = Budget::default();
    let scan = read_scan(&case.image, &budget)
        .map_err(|e| fail(format!("image: {e}")))?
        .volume;
    let label = read_label(&case.label, &budget).map_err(|e| fail(format!("label: {e}")))?;
    let tolerance_mm = 0.01 * scan.geometry.spacing_mm().into_iter().fold(1.0, f64::max);
    if !scan.geometry.same_grid(&label.geometry, tolerance_mm) {
        return Err(fail(format!(
            "the label's grid {:?} (z, y, x) is not the image's {:?}; export it with the image as reference",
            label.geometry.shape(),
            scan.geometry.shape()
        )));
    }
    let [labels] = <[Vec<u16>; 1]>::try_from(label.layers).map_err(|layers| {
        fail(format!(
            "the label has {} layers; training needs one",
            layers.len()
        ))
    })?;
    if let Some(value) = labels.iter().find(|&&v| usize::from(v) >= classes) {
        return Err(fail(format!(
            "label value {value} is not in the schema of {} structures",
            classes - 1
        )));
    }
    let annotated = (0..classes as u16)
        .map(|c| c == 0 || case.annotated.contains(&c))
        .collect();
    let labels = Volume {
        geometry: scan.geometry,
        voxels: labels,
    };
    Ok(ValidationCase {
        name: case.name.clone(),
        scan,
        labels,
        annotated,
    })
}

impl PreparedCase {
    /// Brings a case to LPS order and the model's spacing.
    pub fn new(
        case: ValidationCase,
        preprocessing: &Preprocessing,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let turn = orientation::to_lps(&case.scan.geometry);
        let mut scan = turn.apply(&case.scan);
        let mut labels = turn.apply(&case.labels);
        let [low, high] = preprocessing.hu_window;
        if let Some(spacing_mm) = preprocessing.spacing_mm {
            let grid = resample::grid_with_spacing(&scan.geometry, spacing_mm)
                .map_err(ImagingError::from)?;
            scan = resample::linear(&scan, &grid, low);
            labels = resample::nearest(&labels, &grid, 0);
        }
        if scan.voxels.len() > MAX_VOXELS {
            return Err(ModelError::Data(format!(
                "case {} has more than 2^32 voxels",
                case.name
            )));
        }
        let classes = case.annotated.len();
        let mut places = vec![Vec::new(); classes];
        let mut seen = vec![0usize; classes];
        let mut rng = Rng::new(seed).named("places");
        for (i, &label) in labels.voxels.iter().enumerate() {
            let class = usize::from(label);
            seen[class] += 1;
            // Reservoir sampling: each voxel of the class is kept with the same probability.
            if places[class].len() < PLACES {
                places[class].push(i as u32);
            } else {
                let slot = rng.below(seen[class]);
                if slot < PLACES {
                    places[class][slot] = i as u32;
                }
            }
        }
        Ok(Self {
            shape: scan.geometry.shape(),
            hu: scan
                .voxels
                .iter()
                .map(|v| v.clamp(low, high).round() as i16)
                .collect(),
            labels: labels.voxels.iter().map(|&v| v as u8).collect(),
            annotated: case.annotated,
            places,
        })
    }

    /// Where a patch of `size` starts: around a voxel of a random annotated class with probability `focus`, anywhere
    /// otherwise. May reach over the edge when the case is smaller than the patch.
    pub fn draw_start(&self, size: [usize; 3], focus: f64, rng: &mut Rng) -> [isize; 3] {
        let there: Vec<&Vec<u32>> = (1..self.places.len())
            .filter(|&class| self.annotated[class] && !self.places[class].is_empty())
            .map(|class| &self.places[class])
            .collect();
        let centre = (!there.is_empty() && rng.chance(focus)).then(|| {
            let class = there[rng.below(there.len())];
            let voxel = class[rng.below(class.len())] as usize;
            let [_, h, w] = self.shape;
            [voxel / (h * w), voxel / w % h, voxel % w]
        });
        [0, 1, 2].map(|axis| {
            let (side, window) = (self.shape[axis] as isize, size[axis] as isize);
            if side <= window {
                return -((window - side) / 2);
            }
            match centre {
                None => rng.below((side - window + 1) as usize) as isize,
                Some(centre) => {
                    // The voxel lands anywhere in the middle half of the patch.
                    let offset = window / 4 + rng.below((window / 2) as usize + 1) as isize;
                    (centre[axis] as isize - offset).clamp(0, side - window)
                }
            }
        })
    }

    /// Network input and class indices of a patch, `[z, y, x]`; outside the case there is air.
    pub fn cut(
        &self,
        start: [isize; 3],
        size: [usize; 3],
        hu_window: [f32; 2],
    ) -> (Vec<f32>, Vec<u8>) {
        let [d, h, w] = size;
        let [low, high] = hu_window;
        let scale = 2.0 / (high - low);
        let mut input = vec![-1f32; d * h * w];
        let mut labels = vec![0u8; d * h * w];
        let x_from = (-start[2]).max(0) as usize;
        let x_to = (self.shape[2] as isize - start[2]).clamp(0, w as isize) as usize;
        for z in 0..d {
            for y in 0..h {
                let (sz, sy) = (start[0] + z as isize, start[1] + y as isize);
                let inside = (0..self.shape[0] as isize).contains(&sz)
                    && (0..self.shape[1] as isize).contains(&sy)
                    && x_from < x_to;
                if !inside {
                    continue;
                }
                let from = (sz as usize * self.shape[1] + sy as usize) * self.shape[2]
                    + (start[2] + x_from as isize) as usize;
                let (to, len) = ((z * h + y) * w + x_from, x_to - x_from);
                for (value, &hu) in input[to..to + len].iter_mut().zip(&self.hu[from..]) {
                    *value = (f32::from(hu) - low) * scale - 1.0;
                }
                labels[to..to + len].copy_from_slice(&self.labels[from..from + len]);
            }
        }
        (input, labels)
    }
}

/// Loads and prepares all cases, two at a time or more.
pub fn prepare_all(
    cases: &[TrainCase],
    classes: usize,
    preprocessing: &Preprocessing,
    seed: u64,
) -> Result<Vec<PreparedCase>, ModelError> {
    cases
        .par_iter()
        .map(|case| PreparedCase::new(load(case, classes)?, preprocessing, seed))
        .collect()
}
