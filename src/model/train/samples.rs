//! Training samples: which patch of which case, and what is done to it. Sample number i is a pure function of (cases, seed, i).

use std::io;

use super::augment::{Augment, Spatial};
use super::store::{CaseStore, Region};
use crate::model::background::Work;
use crate::rng::Rng;

/// A patch to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Network input, `[z, y, x]`.
    pub input: Vec<f32>,
    /// Classes, `[z, y, x]`.
    pub labels: Vec<u8>,
    /// Number of the case in the store.
    pub case: usize,
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
}

impl Sampler {
    /// Sample number `index`.
    pub fn sample(&self, index: u64) -> io::Result<Sample> {
        let rng = Rng::new(self.seed).named("patches").stream(index);
        let (number, centre) = self
            .store
            .draw(self.size, self.focus, &mut rng.named("place"))?;
        let case = &self.store.cases()[number];
        let spatial = self.augment.spatial(self.size, case.spacing_mm, &rng);
        let region = case.region(spatial.bounds(centre))?;
        let (mut input, mut labels) = self.interpolate(&region, &spatial, centre);
        self.augment
            .intensity(&mut input, self.size, case.spacing_mm, &rng);
        let (width, mirror) = (self.size[2], self.mirror.as_deref());
        self.augment
            .sides(&mut input, &mut labels, width, mirror, &rng);
        Ok(Sample {
            input,
            labels,
            case: number,
        })
    }

    /// HU linearly between voxels, and the label with the largest linear share; outside of the case there is air.
    fn interpolate(
        &self,
        region: &Region,
        spatial: &Spatial,
        centre: [f64; 3],
    ) -> (Vec<f32>, Vec<u8>) {
        let [d, h, _] = self.size;
        let count = self.size.iter().product();
        let (mut input, mut labels) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let [low, high] = self.hu_window;
        let scale = 2.0 / (high - low);
        let mut row = Vec::new();
        for z in 0..d {
            for y in 0..h {
                spatial.row(centre, z, y, &mut row);
                for position in &row {
                    let (hu, label) = region.at(*position, low);
                    input.push((hu - low) * scale - 1.0);
                    labels.push(label);
                }
            }
        }
        (input, labels)
    }
}

impl Work for Sampler {
    type Product = Sample;

    fn make(&self, index: u64, _stopped: &dyn Fn() -> bool) -> Result<Option<Sample>, String> {
        self.sample(index).map(Some).map_err(|error| {
            format!("a prepared case cannot be read back ({error}); is the disk full or was its folder removed?")
        })
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
