//! What came of it: Dice before and after, and pictures.

use std::fmt;
use std::path::Path;

use anyhow::Context;

use super::studies::{Study, names};
use crate::imaging::phantom::ORGANS;
use crate::imaging::render::{Row, Window, overlay_png};
use crate::imaging::{Volume, metrics};

/// Dice per organ before and after, mean over the held-out studies.
pub struct Scores {
    rows: Vec<(&'static str, Option<f64>, Option<f64>)>,
}

impl Scores {
    /// Compares proposals (one per study) with the truth.
    pub fn new(studies: &[Study], before: &[Volume<u16>], after: &[Volume<u16>]) -> Self {
        let (before, after) = (per_organ(studies, before), per_organ(studies, after));
        let rows = ORGANS.iter().zip(before.into_iter().zip(after));
        Self {
            rows: rows
                .map(|(&organ, (before, after))| (organ, before, after))
                .collect(),
        }
    }
}

impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell =
            |dice: Option<f64>| dice.map_or_else(|| "-".to_owned(), |dice| format!("{dice:.3}"));
        let mut line = |name: &str, before: String, after: String| {
            writeln!(f, "{name:<16}{before:>8}{after:>8}")
        };
        line("Dice", "before".to_owned(), "after".to_owned())?;
        for (organ, before, after) in &self.rows {
            line(organ, cell(*before), cell(*after))?;
        }
        let before = metrics::mean(self.rows.iter().map(|row| row.1));
        let after = metrics::mean(self.rows.iter().map(|row| row.2));
        line("mean", cell(before), cell(after))
    }
}

fn per_organ(studies: &[Study], proposals: &[Volume<u16>]) -> Vec<Option<f64>> {
    let per_study: Vec<_> = studies
        .iter()
        .zip(proposals)
        .map(|(study, proposal)| dice(study, proposal))
        .collect();
    (0..ORGANS.len())
        .map(|organ| metrics::mean(per_study.iter().map(|dice| dice[organ])))
        .collect()
}

/// Dice of each organ in one study.
fn dice(study: &Study, proposal: &Volume<u16>) -> Vec<Option<f64>> {
    metrics::dice_per_class(&proposal.voxels, &study.truth.voxels, ORGANS.len() + 1).split_off(1)
}

/// Mean of the organs in one study.
pub fn mean_dice(study: &Study, proposal: &Volume<u16>) -> Option<f64> {
    metrics::mean(dice(study, proposal))
}

/// One picture per study: before, after, reference.
///
/// # Errors
/// When a proposal is not on the grid of its study, or a file cannot be written.
pub fn draw(
    dir: &Path,
    studies: &[Study],
    before: &[Volume<u16>],
    after: &[Volume<u16>],
) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for (study, (before, after)) in studies.iter().zip(before.iter().zip(after)) {
        let rows = [
            Row {
                title: "before",
                label: before,
            },
            Row {
                title: "after",
                label: after,
            },
            Row {
                title: "reference",
                label: &study.truth,
            },
        ];
        let png = overlay_png(&study.scan, &rows, &names()?, Window::ABDOMEN)?;
        let path = dir.join(format!("{}.png", study.id));
        std::fs::write(&path, png).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
