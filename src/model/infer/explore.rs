//! How sure a network is, voxel by voxel, and what a scan looks like to it; slice by slice, in bounded memory.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::band::Band;
use super::network::by_patches;
use super::passes::{BothSides, Dropped, Member, Once, Passes};
use super::prepared::{AIR_HU, cut, normalise, prepare};
use super::windows;
use crate::imaging::{Geometry, Volume, orientation};
use crate::model::engine::{DeviceChoice, Engine, on_engine};
use crate::model::error::ModelError;
use crate::model::kernels::{Kernels, pages::give_back};
use crate::model::manifest::{Manifest, ModelDescription};
use crate::model::pct_net::PctNet;
use crate::model::precision::PrecisionChoice;
use crate::model::weights::{import, to_f32};
use crate::rng::Rng;

/// Class probabilities of one slice of the network's grid.
#[derive(Debug, Clone, Copy)]
pub struct ProbabilitySlice<'a> {
    /// Which slice, from the feet's side (the grid is in LPS order).
    pub z: usize,
    /// Voxels `[y, x]`.
    pub size: [usize; 2],
    /// `[class][y][x]`, background first: mean over all answers to all windows that cover the voxel; sums to 1.
    pub mean: &'a [f32],
    /// `[y][x]` in nats: mean over the same answers of the entropy of each.
    pub expected_entropy: &'a [f32],
    /// `[y][x]`: whether any window was asked; elsewhere there is only air, and the background is certain.
    pub covered: &'a [bool],
}

/// A scan on the grid that a network works on.
pub struct Explored {
    scan: Volume<f32>,
}

impl Explored {
    /// The network's grid, in LPS order.
    pub fn grid(&self) -> &Geometry {
        &self.scan.geometry
    }
}

/// One or more versions of a model, ready to be asked how sure they are.
pub struct Explorer {
    manifest: Manifest,
    engine: Engine,
    passes: Passes,
    members: Vec<Box<dyn Member>>,
    describer: Box<dyn Describe>,
}

impl Explorer {
    /// Loads model directories of the same labels, network and preprocessing: the first is the model that is asked about,
    /// the others join it as an ensemble.
    ///
    /// # Errors
    /// No directory, one that is no model or of another kind, a device that is not there, passes that the model cannot do.
    #[allow(clippy::clone_on_copy)] // devices of other backends are not
    pub fn load(
        dirs: &[PathBuf],
        passes: Passes,
        device: DeviceChoice,
        precision: PrecisionChoice,
    ) -> Result<Self, ModelError> {
        let Some(first) = dirs.first() else {
            return Err(ModelError::Request("no model was named".to_owned()));
        };
        let manifest = Manifest::read(first)?;
        let passes = passes.of(&manifest)?;
        let engine = Engine::open(device)?;
        let (mut members, mut describer) = (Vec::with_capacity(dirs.len()), None);
        for dir in dirs {
            let other = Manifest::read(dir)?;
            if other.labels != manifest.labels
                || other.network != manifest.network
                || other.preprocessing != manifest.preprocessing
                || other.patch != manifest.patch
            {
                let reason = format!(
                    "it has other labels, network or preprocessing than {}; an ensemble needs versions of one model",
                    first.display()
                );
                return Err(ModelError::bad(dir, reason));
            }
            engine.guarded(|| {
                on_engine!(engine, |B, device| {
                    let net = network::<B>(dir, &other, &device)?;
                    if describer.is_none() {
                        let (net, device, patch) = (net.clone(), device.clone(), manifest.patch);
                        describer =
                            Some(Box::new(Describer { net, device, patch }) as Box<dyn Describe>);
                    }
                    members.push(member(engine, net, &manifest, passes, precision, device)?);
                });
                Ok(())
            })?;
            give_back();
        }
        let Some(describer) = describer else {
            return Err(ModelError::Request("no model was named".to_owned()));
        };
        Ok(Self {
            manifest,
            engine,
            passes,
            members,
            describer,
        })
    }

    /// The model that is asked about.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How each version is asked.
    pub fn passes(&self) -> Passes {
        self.passes
    }

    /// Answers to each window.
    pub fn answers(&self) -> usize {
        self.members.iter().map(|member| member.answers()).sum()
    }

    /// A scan in HU, brought to LPS order, the model's spacing and HU window.
    ///
    /// # Errors
    /// An image that cannot be resampled.
    pub fn prepare(&self, scan: &Volume<f32>) -> Result<Explored, ModelError> {
        let turned = orientation::to_lps(&scan.geometry).apply(scan);
        let scan = prepare(turned, &self.manifest.preprocessing)?;
        Ok(Explored { scan })
    }

    /// What the scan looks like to the network: mean, then standard deviation, of each channel of its coarse decoded
    /// features over the whole scan, `2 * feature_chns[3]` values. Windows do not overlap, so it costs a fraction of a
    /// segmentation. `on_window` hears of each window (done, all) and may stop the work.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] when `on_window` breaks.
    pub fn features(
        &self,
        explored: &Explored,
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Vec<f32>, ModelError> {
        let channels = self.manifest.network.feature_chns[3];
        let (mut sums, mut squares, mut count) = (vec![0f64; channels], vec![0f64; channels], 0);
        self.windows(
            explored,
            windows::tiles,
            on_window,
            &mut |_, _| {},
            &mut |_, patch| {
                let map = self.describer.features(patch);
                let voxels = map.len() / channels;
                for (channel, values) in map.chunks_exact(voxels).enumerate() {
                    for value in values {
                        sums[channel] += f64::from(*value);
                        squares[channel] += f64::from(*value).powi(2);
                    }
                }
                count += voxels;
            },
        )?;
        let mean = |sum: &f64| sum / count.max(1) as f64;
        let means: Vec<f64> = sums.iter().map(mean).collect();
        let deviations = squares
            .iter()
            .zip(&means)
            .map(|(square, m)| (mean(square) - m * m).max(0.0).sqrt());
        Ok(means
            .iter()
            .copied()
            .chain(deviations)
            .map(|v| v as f32)
            .collect())
    }

    /// Hands over the class probabilities slice by slice, from the first to the last. In memory are the slices that the
    /// windows still reach, `(classes + 1) * (patch depth + 1) * height * width` floats, whatever the number of answers.
    /// What is random depends on `seed` and the place of the window alone.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] when `on_window` breaks.
    pub fn probabilities(
        &self,
        explored: &Explored,
        seed: u64,
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
        visit: &mut dyn FnMut(ProbabilitySlice),
    ) -> Result<(), ModelError> {
        let classes = self.manifest.network.class_num;
        let (grid, patch) = (explored.grid().shape(), self.manifest.patch);
        let weights = windows::gaussian(patch);
        let (seeds, answers) = (Rng::new(seed).named("explore"), self.answers());
        // Two closures fill and empty the band, never at the same time.
        let band = std::cell::RefCell::new(Probabilities::new(classes, grid));
        self.windows(
            explored,
            windows::starts,
            on_window,
            &mut |_, z| band.borrow_mut().finish_below(z, visit),
            &mut |(number, start), voxels| {
                let mut found = Answers::new(classes, weights.len());
                for member in &self.members {
                    let seed = seeds.at(number as u64);
                    member.ask(&voxels, seed, &mut |logits| found.add(logits, answers));
                }
                band.borrow_mut()
                    .band
                    .add(start, patch, &found.values, &weights);
            },
        )?;
        band.borrow_mut().finish_below(grid[0], visit);
        Ok(())
    }

    /// Goes through the windows that hold more than air: `row` hears of each first slice before its windows.
    fn windows(
        &self,
        explored: &Explored,
        starts: fn(usize, usize) -> Vec<isize>,
        on_window: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
        row: &mut dyn FnMut(usize, usize),
        each: &mut dyn FnMut((usize, [isize; 3]), Vec<f32>),
    ) -> Result<(), ModelError> {
        let (grid, patch) = (explored.grid().shape(), self.manifest.patch);
        let air = normalise(AIR_HU, self.manifest.preprocessing.hu_window);
        let [zs, ys, xs] = [0, 1, 2].map(|axis| starts(grid[axis], patch[axis]));
        let (mut done, total) = (0, zs.len() * ys.len() * xs.len());
        self.engine.guarded(|| {
            for &z in &zs {
                row(done, z.max(0) as usize);
                for (&y, &x) in ys.iter().flat_map(|y| xs.iter().map(move |x| (y, x))) {
                    if let Some(mut voxels) = cut(&explored.scan, [z, y, x], patch, air) {
                        // Nobody has clicked.
                        voxels.resize(voxels.len() * self.manifest.network.in_chns, 0.0);
                        each((done, [z, y, x]), voxels);
                    }
                    done += 1;
                    if on_window(done, total).is_break() {
                        return Err(ModelError::Stopped);
                    }
                }
            }
            Ok(())
        })
    }
}

/// Mean probabilities and mean entropy of the answers to one window.
struct Answers {
    classes: usize,
    /// `[classes + 1][voxels]`: probabilities, then the entropy of each answer.
    values: Vec<f32>,
}

impl Answers {
    fn new(classes: usize, voxels: usize) -> Self {
        Self {
            classes,
            values: vec![0.0; (classes + 1) * voxels],
        }
    }

    /// Takes one of `answers` answers in: logits `[classes][voxels]`.
    fn add(&mut self, mut logits: Vec<f32>, answers: usize) {
        let voxels = logits.len() / self.classes;
        let share = 1.0 / answers as f32;
        let mut largest = logits[..voxels].to_vec();
        for class in logits.chunks_exact(voxels).skip(1) {
            for (largest, logit) in largest.iter_mut().zip(class) {
                *largest = largest.max(*logit);
            }
        }
        // ln of the sum of exponentials; then entropy = ln sum - sum of p * (logit - largest).
        let mut sums = vec![0f32; voxels];
        for class in logits.chunks_exact_mut(voxels) {
            for ((logit, largest), sum) in class.iter_mut().zip(&largest).zip(&mut sums) {
                *logit -= largest;
                *sum += logit.exp();
            }
        }
        let (means, entropy) = self.values.split_at_mut(self.classes * voxels);
        for (entropy, sum) in entropy.iter_mut().zip(&sums) {
            *entropy += share * sum.ln();
        }
        for (class, mean) in logits
            .chunks_exact(voxels)
            .zip(means.chunks_exact_mut(voxels))
        {
            for (((logit, mean), sum), entropy) in
                class.iter().zip(mean).zip(&sums).zip(entropy.iter_mut())
            {
                let p = logit.exp() / sum;
                *mean += share * p;
                *entropy -= share * p * logit;
            }
        }
    }
}

/// Probabilities of the slices that windows still reach.
struct Probabilities {
    classes: usize,
    band: Band,
    /// Slices handed over.
    done: usize,
    mean: Vec<f32>,
    expected_entropy: Vec<f32>,
    covered: Vec<bool>,
}

impl Probabilities {
    fn new(classes: usize, grid: [usize; 3]) -> Self {
        let plane = grid[1] * grid[2];
        Self {
            classes,
            band: Band::new(classes + 1, grid),
            done: 0,
            mean: vec![0.0; classes * plane],
            expected_entropy: vec![0.0; plane],
            covered: vec![false; plane],
        }
    }

    /// No later window reaches slices below `z`: hands them over and forgets them.
    fn finish_below(&mut self, z: usize, visit: &mut dyn FnMut(ProbabilitySlice)) {
        let [_, height, width] = self.band.grid();
        let plane = height * width;
        while self.done < z {
            self.mean.fill(0.0);
            self.mean[..plane].fill(1.0);
            self.expected_entropy.fill(0.0);
            self.covered.fill(false);
            if let Some((sums, weights)) = self.band.slice(self.done) {
                let (means, entropies) = sums.split_at(self.classes * plane);
                for (i, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                    self.covered[i] = true;
                    self.expected_entropy[i] = entropies[i] / weight;
                    for class in 0..self.classes {
                        self.mean[class * plane + i] = means[class * plane + i] / weight;
                    }
                }
            }
            visit(ProbabilitySlice {
                z: self.done,
                size: [height, width],
                mean: &self.mean,
                expected_entropy: &self.expected_entropy,
                covered: &self.covered,
            });
            self.done += 1;
        }
        self.band.forget_below(z);
    }
}

/// The features of a patch, on some device.
trait Describe: Send {
    /// `[channels, d, h, w]` of the coarse decoded features of a patch `[channels, d, h, w]`.
    fn features(&self, patch: Vec<f32>) -> Vec<f32>;
}

struct Describer<B: Backend> {
    net: PctNet<B>,
    device: B::Device,
    patch: [usize; 3],
}

impl<B: Kernels> Describe for Describer<B> {
    fn features(&self, patch: Vec<f32>) -> Vec<f32> {
        let [d, h, w] = self.patch;
        let channels = patch.len() / (d * h * w);
        let data = TensorData::new(patch, [1, channels, d, h, w]);
        let input = Tensor::<B, 5>::from_data(data, &self.device);
        to_f32(self.net.coarse_features(input).into_data())
    }
}

/// The network of a model directory, every parameter there.
fn network<B: Kernels>(
    dir: &Path,
    manifest: &Manifest,
    device: &B::Device,
) -> Result<PctNet<B>, ModelError> {
    let state = manifest.read_weights(dir)?;
    let net = PctNet::<B>::new(&manifest.network, 0, device)?;
    let (net, report) = import(net, &state, manifest.network.resolution_mode);
    match report
        .missing
        .first()
        .or(report.reshaped.first().map(|r| &r.name))
    {
        Some(name) => {
            let reason = format!(
                "the weights do not fit the manifest, for example {name}; convert the model again"
            );
            Err(ModelError::bad(dir, reason))
        }
        None => Ok(net),
    }
}

fn member<B: Kernels + 'static>(
    engine: Engine,
    net: PctNet<B>,
    model: &ModelDescription,
    passes: Passes,
    precision: PrecisionChoice,
    device: B::Device,
) -> Result<Box<dyn Member>, ModelError> {
    let patch = model.patch;
    if let Passes::Dropout(draws) = passes {
        return Ok(Box::new(Dropped {
            net,
            device,
            patch,
            draws,
        }));
    }
    let net = by_patches(engine, net, &model.network, patch, precision, device)?;
    let mirror = model.labels.mirrored().filter(|_| passes == Passes::Flips);
    Ok(match mirror {
        Some(mirror) => Box::new(BothSides { net, mirror, patch }),
        None => Box::new(Once(net)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_averaged_as_probabilities() {
        let mut answers = Answers::new(2, 1);
        // Two sure answers that contradict each other.
        answers.add(vec![20.0, 0.0], 2);
        answers.add(vec![0.0, 20.0], 2);
        let [background, class, expected] = answers.values[..] else {
            panic!("two classes and an entropy");
        };
        assert!((background - 0.5).abs() < 1e-6 && (class - 0.5).abs() < 1e-6);
        assert!(expected.abs() < 1e-6, "each answer was sure: {expected}");
        // One answer that knows nothing.
        let mut answers = Answers::new(4, 1);
        answers.add(vec![3.0; 4], 1);
        assert!((answers.values[4] - 4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn slices_come_in_order_and_air_is_background() {
        let mut band = Probabilities::new(2, [6, 1, 2]);
        let weights = [1.0; 4];
        // One window over slices 1 and 2: class 1 everywhere, entropy 0.5.
        let values = [[0.0; 4], [1.0; 4], [0.5; 4]].concat();
        band.band.add([1, 0, 0], [2, 1, 2], &values, &weights);
        let mut seen = Vec::new();
        let mut visit = |slice: ProbabilitySlice| {
            seen.push((
                slice.z,
                slice.covered[0],
                slice.mean[0],
                slice.expected_entropy[1],
            ));
        };
        band.finish_below(2, &mut visit);
        band.finish_below(6, &mut visit);
        let air = |z| (z, false, 1.0, 0.0);
        let inside = |z| (z, true, 0.0, 0.5);
        assert_eq!(seen, [air(0), inside(1), inside(2), air(3), air(4), air(5)]);
    }
}
