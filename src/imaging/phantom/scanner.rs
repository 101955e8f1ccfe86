//! What the scanner adds: the grid it stores and its noise.

use rayon::prelude::*;

use super::{PhantomOptions, anatomy, field};
use crate::imaging::geometry::Geometry;
use crate::rng::Rng;

/// Field of view that holds the whole torso, `[z, y, x]`.
const FIELD_OF_VIEW_MM: [f64; 3] = [300.0, 270.0, 380.0];

/// A canonical grid around the body with random field of view and tilt.
pub(super) fn grid(rng: &mut Rng, options: &PhantomOptions) -> Geometry {
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
pub(super) fn add_noise(hu: &mut [f32], shape: [usize; 3], rng: &Rng, deviation: f32) {
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
