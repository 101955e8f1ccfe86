//! Samples from two scans, made by the host or left to the device.

use super::{FusionOptions, Sample, crop, fuse, intensity};
use crate::imaging::Volume;
use crate::model::kernels::{Cut, FusionJob};
use crate::rng::Rng;

/// One of the two patches of a sample.
#[derive(Debug)]
pub enum Piece {
    /// In [0, 1].
    Made(Vec<f32>),
    /// Left to the device.
    Cut(Cut),
}

/// A sample as it leaves the host.
#[derive(Debug)]
pub enum Fused {
    /// Complete.
    Made(Sample),
    /// The device makes its input.
    Drawn(Box<FusionJob>),
}

impl Fused {
    /// Class of each voxel, 0 to K.
    pub fn label(&self) -> &[u8] {
        match self {
            Self::Made(sample) => &sample.label,
            Self::Drawn(job) => &job.classes,
        }
    }
}

/// Makes samples.
#[derive(Debug, Clone)]
pub struct Generator {
    options: FusionOptions,
    pub(super) rng: Rng,
}

impl Generator {
    /// A generator whose samples depend on `seed` and their index alone.
    pub fn new(options: FusionOptions, seed: u64) -> Self {
        Self {
            options,
            rng: Rng::new(seed).named("volume fusion"),
        }
    }

    /// Patch `P1` of sample `index`, in [0, 1]. `scan` is in [-1, 1]; what is not a number counts as -1.
    pub fn foreground(&self, scan: &Volume<f32>, index: u64) -> Vec<f32> {
        self.cut(scan, self.rng.stream(index).named("foreground"))
    }

    /// Patch `P2` of sample `index`, in [0, 1].
    pub fn background(&self, scan: &Volume<f32>, index: u64) -> Vec<f32> {
        self.cut(scan, self.rng.stream(index).named("background"))
    }

    fn cut(&self, scan: &Volume<f32>, mut rng: Rng) -> Vec<f32> {
        let place = crop::draw(scan.geometry.shape(), self.options.patch, &mut rng);
        let mut patch = crop::cut(scan, &place);
        intensity::contrast(&mut patch, &mut rng);
        intensity::gamma(&mut patch, &mut rng);
        patch
    }

    /// One of the patches of sample `index`; with `on_device` it is only drawn.
    pub fn piece(
        &self,
        scan: &Volume<f32>,
        index: u64,
        foreground: bool,
        on_device: bool,
    ) -> Piece {
        match (foreground, on_device) {
            (true, false) => return Piece::Made(self.foreground(scan, index)),
            (false, false) => return Piece::Made(self.background(scan, index)),
            _ => {}
        }
        let name = if foreground {
            "foreground"
        } else {
            "background"
        };
        let rng = &mut self.rng.stream(index).named(name);
        let place = crop::draw(scan.geometry.shape(), self.options.patch, rng);
        let (shape, values, taps) = crop::take(scan, place);
        Piece::Cut(Cut {
            shape,
            values,
            taps,
            percents: intensity::draw_percents(rng),
            gamma: intensity::draw_gamma(rng),
        })
    }

    /// Sample `index` from its two pieces, both of which were made or both of which were cut.
    pub fn join(&self, index: u64, foreground: Piece, background: Piece) -> Option<Fused> {
        match (foreground, background) {
            (Piece::Made(p1), Piece::Made(p2)) => Some(Fused::Made(self.fuse(index, p1, p2))),
            (Piece::Cut(p1), Piece::Cut(p2)) => {
                let stream = self.rng.stream(index);
                Some(Fused::Drawn(Box::new(FusionJob {
                    size: self.options.patch,
                    cuts: [p1, p2],
                    inverted: intensity::draw_inversion(&mut stream.named("inversion")),
                    classes: fuse::classes(&self.options, &mut stream.named("fusion")),
                    highest: self.options.classes - 1,
                })))
            }
            _ => None,
        }
    }

    /// Sample `index` from its two patches.
    pub fn fuse(&self, index: u64, mut foreground: Vec<f32>, mut background: Vec<f32>) -> Sample {
        let stream = self.rng.stream(index);
        let inverted = intensity::draw_inversion(&mut stream.named("inversion"));
        for patch in [&mut foreground, &mut background] {
            intensity::to_network_range(patch, inverted);
        }
        let label = fuse::classes(&self.options, &mut stream.named("fusion"));
        let input = fuse::blend(&foreground, &background, &label, self.options.classes - 1);
        Sample { input, label }
    }
}
