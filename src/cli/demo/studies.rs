//! The synthetic studies: images for the server, truth for the annotator and the judge.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rayon::prelude::*;

use crate::imaging::phantom::{ORGANS, PhantomOptions, torso};
use crate::imaging::{LabelFormat, Volume, write_label, write_scan};
use crate::model::LabelSchema;
use crate::rng::Rng;

/// Studies that the annotator labels.
const TO_LABEL: usize = 6;
/// Studies that nobody labels; their ids come last, so that the server offers the others first.
const HELD_OUT: usize = 4;
/// Voxels `[z, y, x]`: coarse, so that one window of the small network sees the whole torso.
const SHAPE: [usize; 3] = [32, 64, 64];
const FORMAT: LabelFormat = LabelFormat::NiftiGz;

/// One study.
pub struct Study {
    /// Its id on the server.
    pub id: String,
    /// The scan in HU.
    pub scan: Volume<f32>,
    /// The true label map; value `n + 1` is `ORGANS[n]`.
    pub truth: Volume<u16>,
    /// File with the truth.
    pub truth_file: PathBuf,
}

/// All studies of a demonstration.
pub struct Studies {
    /// Folder with the images.
    pub folder: PathBuf,
    /// Those that are labelled and learned from.
    pub to_label: Vec<Study>,
    /// Those to judge the models by.
    pub held_out: Vec<Study>,
}

impl Studies {
    /// Writes `studies/` (images and label schema) and `reference/` (truth) into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn make(dir: &Path, seed: u64) -> anyhow::Result<Self> {
        let (folder, reference) = (dir.join("studies"), dir.join("reference"));
        for made in [&folder, &reference] {
            std::fs::create_dir_all(made)
                .with_context(|| format!("cannot make {}", made.display()))?;
        }
        let labels: serde_json::Map<_, _> = (1..)
            .zip(ORGANS)
            .map(|(value, name)| (value.to_string(), (*name).into()))
            .collect();
        let schema = serde_json::json!({ "name": "Fewlabel demo", "labels": labels });
        std::fs::write(
            folder.join("dataset.json"),
            serde_json::to_vec_pretty(&schema)?,
        )?;
        let seeds = Rng::new(seed).named("demo");
        let options = PhantomOptions {
            shape: Some(SHAPE),
            ..PhantomOptions::small()
        };
        let mut to_label = (0..TO_LABEL + HELD_OUT)
            .into_par_iter()
            .map(|n| {
                let id = format!("torso_{:02}", n + 1);
                let case = torso(seeds.stream(n as u64).next_u64(), &options);
                let file = format!("{id}{}", FORMAT.suffix());
                let truth_file = reference.join(&file);
                write_scan(&folder.join(&file), &case.scan, FORMAT)?;
                write_label(&truth_file, &case.label, &names()?, FORMAT)?;
                Ok(Study {
                    id,
                    scan: case.scan,
                    truth: case.label,
                    truth_file,
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let held_out = to_label.split_off(TO_LABEL);
        Ok(Self {
            folder,
            to_label,
            held_out,
        })
    }
}

/// `(value, name)` of every organ.
pub fn names() -> anyhow::Result<Vec<(u16, String)>> {
    Ok(LabelSchema::new(ORGANS.iter().map(|&name| name.to_owned()).collect())?.values())
}
