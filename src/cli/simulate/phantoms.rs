//! Synthetic cases to simulate on: torsos of which no two are alike, and every third shows only a part of the organs.

use std::path::Path;

use anyhow::Context;
use rayon::prelude::*;

use crate::imaging::phantom::{ORGANS, PhantomOptions, torso};
use crate::imaging::{Geometry, LabelFormat, Volume, write_label, write_scan};
use crate::rng::Rng;

/// Voxels `[z, y, x]`: coarse, so that a few windows of the small network see the whole torso.
const SHAPE: [usize; 3] = [32, 64, 64];
/// Slices of a case that shows only the upper or lower part.
const PART: usize = 16;
/// Noise in HU, from the cleanest to the worst.
const NOISE_HU: [f64; 2] = [8.0, 60.0];

/// Writes `count` cases in the layout of the Medical Segmentation Decathlon; the same every time.
///
/// # Errors
/// When a file cannot be written.
pub fn make(dir: &Path, count: usize) -> anyhow::Result<()> {
    let (images, labels) = (dir.join("imagesTr"), dir.join("labelsTr"));
    for folder in [&images, &labels] {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let names: Vec<(u16, String)> = (1u16..)
        .zip(ORGANS.iter().map(|o| (*o).to_owned()))
        .collect();
    (0..count).into_par_iter().try_for_each(|n| {
        let mut rng = Rng::new(1).named("simulation phantoms").stream(n as u64);
        let options = PhantomOptions {
            shape: Some(SHAPE),
            noise_hu: Some(rng.range(NOISE_HU[0], NOISE_HU[1])),
            ..PhantomOptions::small()
        };
        let case = torso(rng.next_u64(), &options);
        let slices = match n % 3 {
            0 if rng.chance(0.5) => 0..PART,
            0 => SHAPE[0] - PART..SHAPE[0],
            _ => 0..SHAPE[0],
        };
        let file = format!("torso_{n:03}{}", LabelFormat::NiftiGz.suffix());
        let scan = cut(&case.scan, slices.clone())?;
        write_scan(&images.join(&file), &scan, LabelFormat::NiftiGz)?;
        let label = cut(&case.label, slices)?;
        write_label(&labels.join(&file), &label, &names, LabelFormat::NiftiGz)?;
        anyhow::Ok(())
    })?;
    let mut values = serde_json::Map::from_iter([("0".to_owned(), "background".into())]);
    values.extend(
        names
            .into_iter()
            .map(|(value, name)| (value.to_string(), name.into())),
    );
    let index = serde_json::json!({ "name": "Fewlabel phantoms", "labels": values });
    // The index last: with it the folder is complete.
    let path = dir.join("dataset.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&index)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Some slices of a volume, where they are in the patient.
fn cut<T: Copy>(volume: &Volume<T>, slices: std::ops::Range<usize>) -> anyhow::Result<Volume<T>> {
    let grid = &volume.geometry;
    let [_, height, width] = grid.shape();
    let plane = height * width;
    let geometry = Geometry::new(
        [slices.len(), height, width],
        grid.to_world([slices.start as f64, 0.0, 0.0]),
        grid.steps_lps_mm(),
    )?;
    let voxels = volume.voxels[slices.start * plane..slices.end * plane].to_vec();
    Ok(Volume::new(geometry, voxels)?)
}
