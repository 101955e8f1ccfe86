//! `fewlabel evaluate`: Dice of predicted label maps against reference label maps.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::dataset::files;
use crate::imaging::{Budget, read_label};
use crate::model::{LabelSchema, metrics};

/// Arguments of `fewlabel evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Folder with the reference label maps
    #[arg(long, value_name = "DIR")]
    reference: PathBuf,
    /// Folder with the predicted label maps, of the same names
    #[arg(long, value_name = "DIR")]
    prediction: PathBuf,
    /// A dataset.json that names the labels [default: every value that occurs, as label_N]
    #[arg(long, value_name = "dataset.json")]
    labels: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Dice per case and structure. A structure that is in neither map of a case has no Dice there and is left out of means;
/// one that is in only one of them has Dice 0.
///
/// # Errors
/// No common names, maps that cannot be read or that are on different grids.
pub fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    let (reference, prediction) = (files(&args.reference)?, files(&args.prediction)?);
    let mut names: Vec<&String> = reference
        .keys()
        .filter(|name| prediction.contains_key(*name))
        .collect();
    names.sort();
    if names.is_empty() {
        bail!(
            "{} and {} have no file of the same name",
            args.reference.display(),
            args.prediction.display()
        );
    }
    let missing = reference.len() - names.len();
    if missing > 0 {
        eprintln!("{missing} references have no prediction and are left out");
    }
    let mut pairs = Vec::new();
    for name in &names {
        let a = read(&reference[*name])?;
        let b = read(&prediction[*name])?;
        if !a.geometry.same_grid(&b.geometry, 0.1) {
            bail!(
                "{name}: the prediction's grid {:?} (z, y, x) is not the reference's {:?}",
                b.geometry.shape(),
                a.geometry.shape()
            );
        }
        pairs.push((a.voxels, b.voxels));
    }
    let structures: Vec<String> = match &args.labels {
        Some(path) => LabelSchema::from_dataset_json(path)?.names().to_vec(),
        None => {
            let largest = pairs
                .iter()
                .flat_map(|(a, b)| a.iter().chain(b))
                .max()
                .copied()
                .unwrap_or(0);
            (1..=largest)
                .map(|value| format!("label_{value}"))
                .collect()
        }
    };
    let scores: Vec<Vec<Option<f64>>> = pairs
        .iter()
        .map(|(a, b)| metrics::dice_per_class(a, b, structures.len() + 1)[1..].to_vec())
        .collect();
    let means: Vec<Option<f64>> = (0..structures.len())
        .map(|k| metrics::mean(scores.iter().map(|case| case[k])))
        .collect();
    let mean = metrics::mean(means.iter().copied());
    if args.json {
        let named = |dice: &[Option<f64>]| {
            Value::Object(
                structures
                    .iter()
                    .cloned()
                    .zip(dice.iter().map(|dice| json!(dice)))
                    .collect(),
            )
        };
        let cases: serde_json::Map<_, _> = names
            .iter()
            .map(|name| (*name).clone())
            .zip(scores.iter().map(|dice| named(dice)))
            .collect();
        let report = json!({"cases": cases, "mean_per_structure": named(&means), "mean": mean});
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let text =
        |dice: Option<f64>| dice.map_or_else(|| "   -  ".to_owned(), |dice| format!("{dice:.4}"));
    for (structure, dice) in structures.iter().zip(&means) {
        println!("{structure:24} {}", text(*dice));
    }
    println!("{:24} {}  ({} cases)", "mean", text(mean), names.len());
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<crate::imaging::Volume<u16>> {
    let label = read_label(path, &Budget::default()).with_context(|| path.display().to_string())?;
    let mut layers = label.layers;
    match layers.pop() {
        Some(voxels) if layers.is_empty() => Ok(crate::imaging::Volume {
            geometry: label.geometry,
            voxels,
        }),
        _ => bail!(
            "{}: overlapping layers cannot be compared; save it as a plain label map",
            path.display()
        ),
    }
}
