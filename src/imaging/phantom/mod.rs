//! A synthetic torso: a CT scan with its labels, a pure function of a seed.
//!
//! For demonstrations and tests that must not depend on patient data. The anatomy is a set of smooth
//! shapes in a body frame (LPS, origin in the middle of the abdomen). Each seed moves, turns and
//! scales the organs, bends the whole body by a smooth random deformation, and draws contrast phase,
//! fat, noise, blur, voxel size, field of view and the stored order of axes. Soft-tissue organs
//! overlap in Hounsfield units with each other and with unlabelled neighbours (stomach, bowel,
//! vena cava, muscle; ribs for the vertebrae), so they are told apart by place and shape only.

mod anatomy;
mod field;
mod scanner;

use rayon::prelude::*;

use super::volume::Volume;
use crate::rng::Rng;
use anatomy::Anatomy;

/// The labelled organs; organ `n` has label value `n + 1`.
pub const ORGANS: &[&str] = &[
    "liver",
    "spleen",
    "kidney_right",
    "kidney_left",
    "aorta",
    "vertebrae",
];

/// What is fixed and what is left to the seed.
#[derive(Debug, Clone, PartialEq)]
pub struct PhantomOptions {
    /// Voxels `[z, y, x]` in canonical order before the axes are put in stored order, each from 1 to
    /// 1024; the voxel size then follows from the field of view. `None`: from a random voxel size.
    pub shape: Option<[usize; 3]>,
    /// Whether the stored order and direction of axes is any of the 48, else canonical (LPS).
    pub random_orientation: bool,
    /// Largest random tilt of the patient against the scanner in degrees.
    pub max_tilt_degrees: f64,
    /// Standard deviation of the noise in HU; `None`: drawn from 12 to 30.
    pub noise_hu: Option<f64>,
}

impl Default for PhantomOptions {
    fn default() -> Self {
        Self {
            shape: None,
            random_orientation: true,
            max_tilt_degrees: 4.0,
            noise_hu: None,
        }
    }
}

impl PhantomOptions {
    /// 64 x 96 x 96 voxels in canonical order: made in a fraction of a second.
    pub fn small() -> Self {
        Self {
            shape: Some([64, 96, 96]),
            random_orientation: false,
            max_tilt_degrees: 0.0,
            ..Self::default()
        }
    }
}

/// A synthetic case.
#[derive(Debug, Clone, PartialEq)]
pub struct PhantomCase {
    /// Whole Hounsfield units.
    pub scan: Volume<f32>,
    /// 0 background, else index into [`ORGANS`] plus 1; on the grid of the scan.
    pub label: Volume<u16>,
}

/// The torso of `seed`.
pub fn torso(seed: u64, options: &PhantomOptions) -> PhantomCase {
    let rng = Rng::new(seed).named("phantom");
    let canonical = scanner::grid(&mut rng.named("grid"), options);
    let anatomy = Anatomy::new(&rng.named("anatomy"));
    let [nz, ny, nx] = canonical.shape();

    let samples: Vec<(f32, u16)> = (0..nz)
        .into_par_iter()
        .flat_map_iter(|z| {
            let (anatomy, canonical) = (&anatomy, &canonical);
            (0..ny * nx).map(move |n| {
                anatomy.sample(canonical.to_world([z as f64, (n / nx) as f64, (n % nx) as f64]))
            })
        })
        .collect();
    let (mut hu, label): (Vec<f32>, Vec<u16>) = samples.into_iter().unzip();

    let mut scanner = rng.named("scanner");
    let blur_mm = scanner.range(0.5, 1.4);
    let sigma = canonical.spacing_mm().map(|mm| (blur_mm / mm).min(1.5));
    field::blur(&mut hu, canonical.shape(), sigma);
    let noise_hu = options
        .noise_hu
        .unwrap_or_else(|| scanner.range(12.0, 30.0));
    scanner::add_noise(
        &mut hu,
        canonical.shape(),
        &rng.named("noise"),
        noise_hu as f32,
    );

    let scan = Volume {
        geometry: canonical,
        voxels: hu,
    };
    let label = Volume {
        geometry: canonical,
        voxels: label,
    };
    if !options.random_orientation {
        return PhantomCase { scan, label };
    }
    let turn = super::orientation::any_of_48(&canonical, rng.named("orientation").below(48));
    PhantomCase {
        scan: turn.apply(&scan),
        label: turn.apply(&label),
    }
}

#[cfg(test)]
mod tests;
