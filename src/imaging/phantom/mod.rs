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

use rayon::prelude::*;

use super::geometry::Geometry;
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

/// Field of view that holds the whole torso, `[z, y, x]`.
const FIELD_OF_VIEW_MM: [f64; 3] = [300.0, 270.0, 380.0];

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
    let canonical = grid(&mut rng.named("grid"), options);
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
    add_noise(
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

/// A canonical grid around the body with random field of view and tilt.
fn grid(rng: &mut Rng, options: &PhantomOptions) -> Geometry {
    let zoom = rng.range(0.94, 1.08);
    let field_mm = FIELD_OF_VIEW_MM.map(|mm| mm * zoom);
    let in_plane_mm = rng.range(1.6, 2.6);
    let slice_mm = rng.range(2.0, 5.0);
    let (shape, spacing) = match options.shape {
        Some(shape) => {
            let shape = shape.map(|n| n.clamp(1, 1024));
            (
                shape,
                std::array::from_fn(|a| field_mm[a] / shape[a] as f64),
            )
        }
        None => {
            let spacing = [slice_mm, in_plane_mm, in_plane_mm];
            (
                std::array::from_fn(|a| (field_mm[a] / spacing[a]).round() as usize),
                spacing,
            )
        }
    };
    let tilt =
        std::array::from_fn(|_| rng.range(-1.0, 1.0) * options.max_tilt_degrees.to_radians());
    let turn = anatomy::rotation(tilt);
    let step = |axis: usize, mm: f64| turn.map(|row| row[axis] * mm);
    let steps = [
        step(2, spacing[0]),
        step(1, spacing[1]),
        step(0, spacing[2]),
    ];
    // The body frame has its origin near the middle of the field; scanners put theirs anywhere,
    // which does not matter to anything here.
    let centre: [f64; 3] = std::array::from_fn(|_| rng.range(-8.0, 8.0));
    let half: [f64; 3] = std::array::from_fn(|a| (shape[a] as f64 - 1.0) / 2.0);
    let origin =
        std::array::from_fn(|w| centre[w] - (0..3).map(|a| steps[a][w] * half[a]).sum::<f64>());
    Geometry::from_valid(shape, origin, steps)
}

/// Noise with the short correlation that reconstruction kernels leave, then whole HU.
fn add_noise(hu: &mut [f32], shape: [usize; 3], rng: &Rng, deviation: f32) {
    let mut noise: Vec<f32> = (0..hu.len())
        .into_par_iter()
        .map(|n| rng.normal_at(n as u64) as f32)
        .collect();
    field::blur(&mut noise, shape, [0.0, 0.6, 0.6]);
    let square = noise
        .iter()
        .map(|v| f64::from(*v) * f64::from(*v))
        .sum::<f64>()
        / noise.len().max(1) as f64;
    let scale = deviation / (square.sqrt() as f32).max(f32::MIN_POSITIVE);
    for (value, noise) in hu.iter_mut().zip(&noise) {
        *value = (*value + noise * scale).round().clamp(-1024.0, 3071.0);
    }
}

#[cfg(test)]
mod tests;
