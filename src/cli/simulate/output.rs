//! The results of a simulation as files.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use crate::imaging::whole_file;
use crate::rounds::simulate::{RoundRecord, Settings, Summary};

/// Writes `rounds.csv`, a line per strategy, seed and round, and `summary.json`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(
    out: &Path,
    structures: &[String],
    settings: &Settings,
    records: &[RoundRecord],
    summary: &Summary,
) -> anyhow::Result<()> {
    let summary = json!({ "settings": settings, "structures": structures, "summary": summary });
    for (name, text) in [
        ("rounds.csv", csv(structures, records)),
        ("summary.json", serde_json::to_string_pretty(&summary)?),
    ] {
        let path = out.join(name);
        whole_file::write(&path, |file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn csv(structures: &[String], records: &[RoundRecord]) -> String {
    let mut text = String::from(
        "strategy,seed,round,cases,voxels,foreground_voxels,mean_dice,choose_s,train_s,test_s",
    );
    for name in structures {
        // Writing to a string cannot fail; names hold no commas.
        let _ = write!(text, ",dice {}", name.replace('"', "'"));
    }
    text.push_str(",chosen\n");
    for r in records {
        let _ = write!(
            text,
            "{},{},{},{},{},{},{:.6},{:.3},{:.3},{:.3}",
            r.strategy,
            r.seed,
            r.round,
            r.cases,
            r.voxels,
            r.foreground_voxels,
            r.mean_dice,
            r.choose_s,
            r.train_s,
            r.test_s
        );
        for dice in &r.dice {
            let _ = match dice {
                Some(dice) => write!(text, ",{dice:.6}"),
                None => write!(text, ","),
            };
        }
        let _ = writeln!(text, ",\"{}\"", r.chosen.join(" ").replace('"', "'"));
    }
    text
}
