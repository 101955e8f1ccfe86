//! From class probabilities, slice by slice, to the scores of an image.

use std::ops::ControlFlow;

use super::places::Places;
use super::scores::{ClassScores, ImageScores, Uncertainty};
use super::top::Top;
use crate::imaging::{Geometry, Volume};
use crate::model::{Explorer, ModelError, ProbabilitySlice};
use crate::rounds::strategy::{bald, clasp, entropy, margin};

/// Share of the voxels of a scan, air left out, over which a score is averaged: the largest values. A structure of a few
/// thousand voxels fills it; a mean over all voxels would tell how much background there is.
pub const TOP_SHARE: f64 = 0.01;

/// Asks a model about a scan in HU. `on_window` hears of each window (done, all) and may stop the work.
///
/// # Errors
/// [`ModelError::Stopped`] when `on_window` breaks; an image that cannot be resampled.
pub fn measure(
    explorer: &Explorer,
    scan: &Volume<f32>,
    seed: u64,
    on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<ImageScores, ModelError> {
    let prepared = explorer.prepare(scan)?;
    let features = explorer.features(&prepared, on_window)?;
    let manifest = explorer.manifest();
    if !manifest.trained {
        return Ok(ImageScores {
            features,
            uncertainty: None,
        });
    }
    let mut gathered = Gathered::new(manifest.network.class_num, prepared.grid());
    explorer.probabilities(&prepared, seed, on_window, &mut |slice| {
        gathered.add(&slice)
    })?;
    let mut uncertainty = gathered.finish(&scan.geometry);
    uncertainty.passes = explorer.passes();
    uncertainty.answers = explorer.answers();
    Ok(ImageScores {
        features,
        uncertainty: Some(uncertainty),
    })
}

/// Scores of the voxels so far.
struct Gathered {
    entropy: Top,
    margin: Top,
    bald: Top,
    /// Per structure.
    classes: Vec<Top>,
    /// Sum of probabilities, per structure.
    volumes: Vec<f64>,
    voxel_ml: f64,
    places: Places,
}

impl Gathered {
    fn new(classes: usize, grid: &Geometry) -> Self {
        let most = (classes as f32).ln();
        let voxel_mm3: f64 = grid.spacing_mm().iter().product();
        Self {
            entropy: Top::new(most),
            margin: Top::new(1.0),
            bald: Top::new(most),
            classes: (1..classes).map(|_| Top::new(most)).collect(),
            volumes: vec![0.0; classes - 1],
            voxel_ml: voxel_mm3 / 1000.0,
            places: Places::new(grid),
        }
    }

    fn add(&mut self, slice: &ProbabilitySlice) {
        let [height, width] = slice.size;
        let (plane, classes) = (height * width, self.classes.len() + 1);
        let mut p = vec![0f32; classes];
        for voxel in (0..plane).filter(|voxel| slice.covered[*voxel]) {
            for (class, p) in p.iter_mut().enumerate() {
                *p = slice.mean[class * plane + voxel];
            }
            let uncertain = entropy::voxel(&p);
            self.entropy.add(uncertain);
            self.margin.add(margin::voxel(&p));
            self.bald
                .add(bald::voxel(&p, slice.expected_entropy[voxel]));
            let structures = self.classes.iter_mut().zip(&mut self.volumes);
            for ((top, volume), p) in structures.zip(&p[1..]) {
                top.add(clasp::voxel(uncertain, *p));
                *volume += f64::from(*p);
            }
            self.places
                .add([slice.z, voxel / width, voxel % width], uncertain);
        }
    }

    /// The scores; `file` is the grid of the scan as it is stored.
    fn finish(self, file: &Geometry) -> Uncertainty {
        let classes = self.classes.iter().zip(&self.volumes);
        let (slices, region) = self.places.find(file);
        Uncertainty {
            passes: Default::default(),
            answers: 1,
            entropy: self.entropy.mean(TOP_SHARE),
            margin: self.margin.mean(TOP_SHARE),
            bald: self.bald.mean(TOP_SHARE),
            classes: classes
                .map(|(top, voxels)| ClassScores {
                    volume_ml: voxels * self.voxel_ml,
                    entropy: top.mean(TOP_SHARE),
                })
                .collect(),
            slices,
            region,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grid of 10 x 10 x 10 voxels of 10 mm.
    fn grid() -> Geometry {
        Geometry::new(
            [10; 3],
            [0.0; 3],
            [[0.0, 0.0, 10.0], [0.0, 10.0, 0.0], [10.0, 0.0, 0.0]],
        )
        .unwrap()
    }

    /// Scores of a hand-made map of two structures: `p` of a voxel `[z, y, x]`, each the answer of one sure member.
    fn scores(p: impl Fn([usize; 3]) -> [f32; 3], expected: f32) -> Uncertainty {
        let mut gathered = Gathered::new(3, &grid());
        for z in 0..10 {
            let mut mean = vec![0.0; 300];
            for voxel in 0..100 {
                for (class, p) in p([z, voxel / 10, voxel % 10]).into_iter().enumerate() {
                    mean[class * 100 + voxel] = p;
                }
            }
            gathered.add(&ProbabilitySlice {
                z,
                size: [10, 10],
                mean: &mean,
                expected_entropy: &[expected; 100],
                covered: &[true; 100],
            });
        }
        gathered.finish(&grid())
    }

    #[test]
    fn background_does_not_dilute() {
        let ln2 = f64::from(2f32.ln());
        let sure = [1.0, 0.0, 0.0];
        // Ten voxels, a hundredth, are a tie of the background and the first structure.
        let tie = |[z, y, _]: [usize; 3]| match (z, y) {
            (4, 5) => [0.5, 0.5, 0.0],
            _ => sure,
        };
        let few = scores(tie, 0.0);
        assert!((few.entropy - ln2).abs() < 1e-4, "{}", few.entropy);
        assert!((few.margin - 1.0).abs() < 1e-4);
        assert!((few.bald - ln2).abs() < 1e-4, "the answers were sure each");
        assert!((few.classes[0].entropy - ln2 / 2.0).abs() < 1e-3);
        assert_eq!(few.classes[1].entropy, 0.0);
        // 10 voxels of 1 ml, half of each.
        assert!((few.classes[0].volume_ml - 5.0).abs() < 1e-6);
        assert_eq!(few.slices[0].index, 4);
        // The same voxels when every answer was unsure: nothing to learn from their disagreement.
        let noise = scores(tie, 2f32.ln());
        assert!(noise.bald < 1e-6 && noise.entropy == few.entropy);
        let nothing = scores(|_| sure, 0.0);
        assert_eq!((nothing.entropy, nothing.region), (0.0, None));
    }
}
