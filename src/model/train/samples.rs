//! Training samples: which patch of which case, and what is done to it. Sample number i is a pure function of (cases, seed, i).

use std::io;

use super::augment::{Augment, Spatial, change, exchange};
use super::store::{CaseStore, Region};
use crate::model::background::Work;
use crate::model::kernels::{PatchJob, ValueChanges};
use crate::rng::Rng;

/// A patch to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Network input, `[z, y, x]`.
    pub input: Vec<f32>,
    /// Classes, `[z, y, x]`.
    pub labels: Vec<u8>,
    /// Which classes were annotated here; in a mirrored patch those of the other side.
    pub annotated: Vec<bool>,
    /// Number of the case in the store.
    pub case: usize,
}

/// What a patch will be: everything that was drawn for it, and the voxels that it reads.
pub struct Drawn {
    /// Number of the case in the store.
    case: usize,
    /// As [`Sample::annotated`].
    annotated: Vec<bool>,
    region: Region,
    spatial: Spatial,
    centre: [f64; 3],
    size: [usize; 3],
    hu_window: [f32; 2],
    changes: ValueChanges,
    mirror: Option<Vec<u8>>,
}

/// What a training step takes.
pub enum Patch {
    /// Made by the host.
    Made(Sample),
    /// To be made by the device.
    Drawn(Box<Drawn>),
}

impl Patch {
    /// Number of the case in the store.
    pub fn case(&self) -> usize {
        match self {
            Self::Made(sample) => sample.case,
            Self::Drawn(drawn) => drawn.case,
        }
    }

    /// As [`Sample::annotated`].
    pub fn annotated(&self) -> &[bool] {
        match self {
            Self::Made(sample) => &sample.annotated,
            Self::Drawn(drawn) => &drawn.annotated,
        }
    }
}

/// Draws samples.
pub struct Sampler {
    /// Where patches come from.
    pub store: CaseStore,
    /// `[z, y, x]`.
    pub size: [usize; 3],
    /// HU range that becomes [-1, 1].
    pub hu_window: [f32; 2],
    /// Share of patches around a structure.
    pub focus: f64,
    /// How patches are changed.
    pub augment: Augment,
    /// Label of the structure on the other side, where all have one.
    pub mirror: Option<Vec<u8>>,
    /// Of everything random.
    pub seed: u64,
    /// The device makes the patches.
    pub on_device: bool,
}

impl Sampler {
    /// Draws sample number `index`.
    fn draw(&self, index: u64) -> io::Result<Drawn> {
        let rng = Rng::new(self.seed).named("patches").stream(index);
        let (number, centre) = self
            .store
            .draw(self.size, self.focus, &mut rng.named("place"))?;
        let case = &self.store.cases()[number];
        let spatial = self.augment.spatial(self.size, case.spacing_mm, &rng);
        let mirror = self.augment.exchanged(self.mirror.as_deref(), &rng);
        // A left structure that nobody drew is a right one that nobody drew after mirroring.
        let annotated = match mirror {
            Some(mirror) => {
                let other_side = mirror.iter().map(|class| usize::from(*class));
                other_side.map(|class| case.annotated[class]).collect()
            }
            None => case.annotated.clone(),
        };
        Ok(Drawn {
            case: number,
            annotated,
            region: case.region(spatial.bounds(centre))?,
            spatial,
            centre,
            size: self.size,
            hu_window: self.hu_window,
            changes: self.augment.values(case.spacing_mm, &rng),
            mirror: mirror.map(<[u8]>::to_vec),
        })
    }
}

impl Drawn {
    /// Makes the patch.
    pub fn make(&self) -> Sample {
        let (mut input, mut labels) = self.interpolate();
        change(&mut input, self.size, &self.changes);
        if let Some(mirror) = &self.mirror {
            exchange(&mut input, &mut labels, self.size[2], mirror);
        }
        Sample {
            input,
            labels,
            annotated: self.annotated.clone(),
            case: self.case,
        }
    }

    /// The same for a device.
    pub fn into_job(self) -> PatchJob {
        PatchJob {
            size: self.size,
            low: self.region.low,
            shape: self.region.shape,
            hu: self.region.hu,
            labels: self.region.labels,
            centre: self.centre,
            matrix: self.spatial.matrix(),
            bend: self.spatial.bend(),
            hu_window: self.hu_window,
            changes: self.changes,
            mirror: self.mirror,
        }
    }

    /// HU linearly between voxels, and the label with the largest linear share; outside of the case there is air.
    fn interpolate(&self) -> (Vec<f32>, Vec<u8>) {
        let [d, h, _] = self.size;
        let count = self.size.iter().product();
        let (mut input, mut labels) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let [low, high] = self.hu_window;
        let scale = 2.0 / (high - low);
        let mut row = Vec::new();
        for z in 0..d {
            for y in 0..h {
                self.spatial.row(self.centre, z, y, &mut row);
                for position in &row {
                    let (hu, label) = self.region.at(*position, low);
                    input.push((hu - low) * scale - 1.0);
                    labels.push(label);
                }
            }
        }
        (input, labels)
    }
}

impl Work for Sampler {
    type Product = Patch;

    fn make(&self, index: u64, _stopped: &dyn Fn() -> bool) -> Result<Option<Patch>, String> {
        let drawn = self.draw(index).map_err(|error| {
            format!("a prepared case cannot be read back ({error}); is the disk full or was its folder removed?")
        })?;
        Ok(Some(match self.on_device {
            true => Patch::Drawn(Box::new(drawn)),
            false => Patch::Made(drawn.make()),
        }))
    }
}

impl Region {
    /// HU and class at a position `[z, y, x]` of the case, in voxels; `outside` HU and background beyond.
    fn at(&self, position: [f64; 3], outside: f32) -> (f32, u8) {
        let floor = position.map(f64::floor);
        let share: [f64; 3] = std::array::from_fn(|a| position[a] - floor[a]);
        let first: [isize; 3] = std::array::from_fn(|a| floor[a] as isize - self.low[a]);
        // A share of zero needs no second neighbour, which keeps whole positions exact.
        let taps: [usize; 3] = std::array::from_fn(|a| 1 + usize::from(share[a] > 0.0));
        let [_, h, w] = self.shape;
        let mut value = 0.0f64;
        let (mut votes, mut voted) = ([(0u8, 0.0f64); 8], 0);
        for dz in 0..taps[0] {
            for dy in 0..taps[1] {
                for dx in 0..taps[2] {
                    let step = [dz, dy, dx];
                    let weight: f64 = (0..3)
                        .map(|a| {
                            if step[a] == 1 {
                                share[a]
                            } else {
                                1.0 - share[a]
                            }
                        })
                        .product();
                    let at: [isize; 3] = std::array::from_fn(|a| first[a] + step[a] as isize);
                    let inside = (0..3).all(|a| at[a] >= 0 && at[a] < self.shape[a] as isize);
                    let (hu, label) = if inside {
                        let at = (at[0] as usize * h + at[1] as usize) * w + at[2] as usize;
                        (f32::from(self.hu[at]), self.labels[at])
                    } else {
                        (outside, 0)
                    };
                    value += f64::from(hu) * weight;
                    match votes[..voted].iter_mut().find(|vote| vote.0 == label) {
                        Some(vote) => vote.1 += weight,
                        None => {
                            votes[voted] = (label, weight);
                            voted += 1;
                        }
                    }
                }
            }
        }
        let most = votes[..voted].iter().fold(
            (0, 0.0),
            |best, vote| if vote.1 > best.1 { *vote } else { best },
        );
        (value as f32, most.0)
    }
}

#[cfg(test)]
mod tests;
