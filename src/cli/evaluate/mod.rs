//! `fewlabel evaluate`: how predicted label maps agree with reference label maps.

mod output;

use std::path::{Path, PathBuf};

use clap::Args;

use super::Usage;
use super::agreement::{Evaluation, Files, Structures, Summary, TOLERANCE_MM};
use super::curve::Curve;
use super::report;

/// Arguments of `fewlabel evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Folder with the reference label maps
    #[arg(long, value_name = "DIR")]
    reference: PathBuf,
    /// Folder with the predicted label maps, of the same names
    #[arg(long, value_name = "DIR")]
    prediction: PathBuf,
    /// More predictions of the same cases; each is compared with --prediction case by case
    #[arg(long, value_name = "NAME=DIR")]
    compare: Vec<String>,
    /// A dataset.json that names the labels, and may say per case which were annotated [default: every value that
    /// occurs, as label_N]
    #[arg(long, value_name = "dataset.json")]
    labels: Option<PathBuf>,
    /// Distance in mm up to which a surface counts as agreeing (NSD); structures may have their own:
    /// 2,mandible=1,parotid_left=3
    #[arg(long, value_name = "MM[,NAME=MM...]", default_value_t = TOLERANCE_MM.to_string())]
    tolerance_mm: String,
    /// Seed of the confidence intervals
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Write a page with figures and tables, and the figure as PNG beside it
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    /// Folder with the scans, for pictures of the worst cases in the report
    #[arg(long, value_name = "DIR", requires = "report")]
    images: Option<PathBuf>,
    /// A model directory that `train` made: its loss and validation Dice go into the report; may be given for each model
    #[arg(long, value_name = "NAME=MODEL_DIR", requires = "report")]
    training: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Dice, surface distances and volumes per case and structure, with means over cases and their 95 % intervals. What a
/// measure is when a structure is missing is said at [`crate::imaging::metrics::Agreement`].
///
/// # Errors
/// No common names, maps that cannot be read or that are on different grids. Nothing is written then.
pub fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.report {
        report::check(path)?;
    }
    let courses = courses(&args.training)?;
    let structures = Structures::new(args.labels.as_deref(), &args.tolerance_mm)?;
    let files = Files::open(&args.reference, &args.prediction, &args.compare)?;
    if !files.left_out.is_empty() {
        eprintln!(
            "{} cases lack a reference or a prediction and are left out: {}",
            files.left_out.len(),
            files.left_out.join(", ")
        );
    }
    let evaluation = Evaluation::of(&files, structures)?;
    for warning in &evaluation.warnings {
        eprintln!("{warning}");
    }
    let summary = Summary::of(&evaluation, args.seed);
    let scans = match &args.images {
        Some(folder) => super::dataset::files(folder)?,
        None => Default::default(),
    };
    let judged = report::Judged::new(files, evaluation, summary, &scans)?;
    if let Some(path) = &args.report {
        let png = report::write_comparison(path, &judged, &courses)?;
        eprintln!("report: {} and {}", path.display(), png.display());
    }
    let report::Judged {
        files,
        evaluation,
        summary,
        ..
    } = &judged;
    if args.json {
        let document = output::json(files, evaluation, summary);
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print!("{}", output::table(evaluation, summary, &files.predictions));
    }
    Ok(())
}

/// The curves of models that are named `NAME=MODEL_DIR`.
fn courses(named: &[String]) -> anyhow::Result<Vec<report::Course>> {
    let course = |entry: &String| {
        let (name, model) = entry
            .split_once('=')
            .ok_or_else(|| Usage(format!("--training {entry}: write it as NAME=MODEL_DIR")))?;
        Ok(report::Course {
            name: name.to_owned(),
            curve: Curve::of_model(Path::new(model))?,
        })
    };
    named.iter().map(course).collect()
}
