//! Pictures of the cases that went worst.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Context;

use crate::cli::agreement::{Evaluation, Files, Measure, Summary};
use crate::imaging::render::{Row, Window, overlay_png_at};
use crate::imaging::{Budget, Volume, read_scan};

/// Most pictures of a page.
const PICTURES: usize = 3;

/// A picture with its caption.
pub struct Picture {
    /// The file.
    pub png: Vec<u8>,
    /// What is seen.
    pub caption: String,
}

/// The cases with the lowest Dice of a structure in the first prediction: every prediction and the reference over the
/// scan, at the slices where that structure differs most. `scans` by case; cases without one have no picture.
///
/// # Errors
/// A scan that cannot be read, a scan on another grid than its labels.
pub fn pictures(
    labels: &Files,
    scans: &HashMap<String, PathBuf>,
    evaluation: &Evaluation,
    summary: &Summary,
) -> anyhow::Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    for (case, structure, dice) in worst(labels, summary) {
        let name = &labels.cases[case];
        let Some(path) = scans.get(name) else {
            if !scans.is_empty() {
                eprintln!("{name}: no scan of this name, so no picture");
            }
            continue;
        };
        let scan =
            read_scan(path, &Budget::default()).with_context(|| path.display().to_string())?;
        let (reference, predictions) = labels.read(name)?;
        let value = evaluation.values[structure];
        let mut differs = vec![0u16; reference.voxels.len()];
        for prediction in &predictions {
            for ((differs, a), b) in differs
                .iter_mut()
                .zip(&reference.voxels)
                .zip(&prediction.voxels)
            {
                *differs |= u16::from((*a == value) != (*b == value));
            }
        }
        let focus = Volume {
            geometry: reference.geometry,
            voxels: differs,
        };
        let mut rows: Vec<Row> = labels
            .predictions
            .iter()
            .zip(&predictions)
            .map(|(title, label)| Row { title, label })
            .collect();
        rows.push(Row {
            title: "reference",
            label: &reference,
        });
        let names: Vec<_> = evaluation
            .values
            .iter()
            .map(|value| (*value, evaluation.structures.name(*value)))
            .collect();
        let png = overlay_png_at(&scan.volume, &rows, &focus, &names, Window::ABDOMEN)
            .with_context(|| format!("{} with its labels", path.display()))?;
        pictures.push(Picture {
            png,
            caption: format!(
                "{name}: {}, Dice {}",
                names[structure].1,
                Measure::Dice.text(dice)
            ),
        });
    }
    Ok(pictures)
}

/// (case, structure, Dice), the lowest Dice first, each case once.
fn worst(labels: &Files, summary: &Summary) -> Vec<(usize, usize, f64)> {
    let first = &summary.predictions[0];
    let mut found: Vec<_> = (0..labels.cases.len())
        .filter_map(|case| {
            let dice = first.structures.iter().enumerate();
            dice.filter_map(|(n, s)| Some((case, n, s.spread(Measure::Dice).values[case]?)))
                .min_by(|a, b| a.2.total_cmp(&b.2))
        })
        .collect();
    found.sort_by(|a, b| a.2.total_cmp(&b.2));
    found.truncate(PICTURES);
    found
}
