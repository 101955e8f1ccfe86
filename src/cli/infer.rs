//! `fewlabel infer`: segments files without a server.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::progress::Progress;
use super::{Usage, gpu, parse_triple};
use crate::clock::{Clock, SystemClock};
use crate::imaging::dicom::{self, Algorithm, Drawn, ResultKind, SegmentationKind};
use crate::imaging::{Budget, LabelFormat, read_scan, write_label};
use crate::model::{Click, DeviceChoice, LabelSchema, Manifest, PrecisionChoice, Segmenter};
use crate::telemetry::peak_memory_bytes;

/// Arguments of `fewlabel infer`.
#[derive(Debug, Args)]
pub struct InferArgs {
    /// Model directory
    #[arg(long, value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Scans: NIfTI, NRRD, or a DICOM series as folder, zip file or multi-frame file
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Where the labels go: a file ending in .nii.gz, .nii, .nrrd, .seg.nrrd or .dcm for one image, else a folder that
    /// gets NAME.nii.gz (NAME.dcm) for each
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// What a .dcm file holds, and what a folder gets: dicom-seg (one bit a voxel), dicom-labelmap (newer, smaller) or
    /// rtstruct (contours). Only for DICOM series. Without it a folder gets .nii.gz, and .dcm is dicom-seg
    #[arg(long, value_name = "OBJECT", value_parser = ["dicom-seg", "dicom-labelmap", "rtstruct"])]
    dicom: Option<String>,
    /// Where to compute: auto, cpu, cuda, cuda:N, vulkan or vulkan:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Numbers of inference: f32, bf16 (rounded factors, sums in f32; on a CPU faster where the processor has such products),
    /// f16 (on a GPU) or auto, which is f32
    #[arg(long, default_value = "auto")]
    precision: PrecisionChoice,
    /// Test-time augmentation: none, or flips (the mean with the mirrored scan, paired labels exchanged; twice the time)
    #[arg(long, default_value = "none", value_parser = ["none", "flips"])]
    tta: String,
    /// A click: the voxel I,J,K (as in the file, from 0) belongs to LABEL, which may be background. May be given many times;
    /// for one image, and for a model trained with --clicks
    #[arg(long = "click", value_name = "LABEL=I,J,K")]
    clicks: Vec<String>,
    /// Print one JSON document with times and memory
    #[arg(long)]
    json: bool,
}

/// Segments each image; exit code 1 when any failed.
///
/// # Errors
/// When the model cannot be loaded or the arguments contradict each other.
pub fn run(args: InferArgs) -> anyhow::Result<ExitCode> {
    let object = match args.dicom.as_deref() {
        Some("dicom-labelmap") => ResultKind::Segmentation(SegmentationKind::LabelMap),
        Some("rtstruct") => ResultKind::Structures,
        _ => ResultKind::Segmentation(SegmentationKind::Binary),
    };
    let as_file = args.out.file_name().and_then(|name| {
        let name = name.to_string_lossy();
        match name.to_ascii_lowercase().ends_with(".dcm") {
            true => Some(Format::Dicom(object)),
            false => LabelFormat::from_suffix(&name).map(Format::Label),
        }
    });
    if args.dicom.is_some() && matches!(as_file, Some(Format::Label(_))) {
        bail!(Usage(format!(
            "--dicom makes a .dcm file, and --out is {}",
            args.out.display()
        )));
    }
    if as_file.is_some() && args.images.len() > 1 {
        bail!(Usage(format!(
            "--out {} is one file, but there are {} images; name a folder",
            args.out.display(),
            args.images.len()
        )));
    }
    gpu::announce(args.device)?;
    if !args.clicks.is_empty() && args.images.len() > 1 {
        bail!(Usage(
            "--click is for one image, but there are several".to_owned()
        ));
    }
    let load = Instant::now();
    let mut segmenter = Segmenter::load(&args.model, args.device, args.precision)?;
    if args.tta == "flips" {
        segmenter = segmenter.with_flips()?;
    }
    let load_s = load.elapsed().as_secs_f64();
    if !segmenter.manifest().trained {
        eprintln!("note: this model has not been trained; its labels mean nothing yet");
    }
    let clicks = args
        .clicks
        .iter()
        .map(|text| parse_click(text, &segmenter.manifest().labels))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for image in &args.images {
        let (out, format) = match as_file {
            Some(format) => (args.out.clone(), format),
            None if args.dicom.is_some() => (
                args.out.join(format!("{}.dcm", stem(image))),
                Format::Dicom(object),
            ),
            None => (
                args.out.join(format!("{}.nii.gz", stem(image))),
                Format::Label(LabelFormat::NiftiGz),
            ),
        };
        match segment_file(&segmenter, image, &clicks, &out, format) {
            Ok(entry) => {
                if !args.json {
                    println!("{}: {} s", out.display(), entry["seconds"]["total"]);
                }
                done.push(entry);
            }
            Err(error) => {
                eprintln!("{}: {error:#}", image.display());
                failed.push(json!({"path": image, "message": format!("{error:#}")}));
            }
        }
    }
    let code = if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    if args.json {
        let report = json!({
            "model": segmenter.manifest().name,
            "model_sha256": segmenter.manifest().weights_sha256,
            "device": segmenter.device(),
            "load_seconds": load_s,
            "images": done,
            "failed": failed,
            "peak_memory_bytes": peak_memory_bytes(),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(code)
}

/// What is written.
#[derive(Clone, Copy)]
enum Format {
    Label(LabelFormat),
    Dicom(ResultKind),
}

fn segment_file(
    segmenter: &Segmenter,
    image: &Path,
    clicks: &[Click],
    out: &Path,
    format: Format,
) -> anyhow::Result<serde_json::Value> {
    let start = Instant::now();
    let budget = Budget::default();
    let source = match format {
        Format::Dicom(_) if !dicom::is_series(image) => {
            bail!("a DICOM result needs a DICOM series, whose patient and slices it names");
        }
        Format::Dicom(kind) => {
            let mut scans = dicom::open(image, &budget)?;
            let only = scans.only()?;
            Some((scans, only, kind))
        }
        Format::Label(_) => None,
    };
    let scan = match &source {
        Some((scans, only, _)) => scans.read_scan(*only)?,
        None => read_scan(image, &budget)?,
    };
    let read_s = start.elapsed().as_secs_f64();
    let mut progress = Progress::new(&stem(image), 1);
    let result = segmenter.segment(&scan.volume, clicks, &mut |done, all| {
        progress.set(done, all, "windows");
        std::ops::ControlFlow::Continue(())
    })?;
    let write = Instant::now();
    if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let names = segmenter.manifest().labels.values();
    match (source, format) {
        (Some((scans, only, kind)), _) => {
            let by = algorithm(segmenter.manifest());
            dicom::write_labels(out, (&scans, only), &result.labels, &names, &by, kind)?;
        }
        (None, Format::Label(format)) => write_label(out, &result.labels, &names, format)?,
        (None, Format::Dicom(_)) => bail!("there is no DICOM series"),
    }
    let mut seconds = serde_json::Map::from_iter([("read".to_owned(), json!(read_s))]);
    seconds.extend(
        result
            .timings
            .iter()
            .map(|(stage, s)| ((*stage).to_owned(), json!(s))),
    );
    seconds.insert("write".to_owned(), json!(write.elapsed().as_secs_f64()));
    seconds.insert(
        "total".to_owned(),
        json!((start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0),
    );
    Ok(json!({
        "path": image,
        "label": out,
        "seconds": seconds,
        "windows": result.windows,
        "windows_skipped": result.windows_skipped,
        "warnings": scan.warnings,
    }))
}

/// `LABEL=I,J,K` with the names of the model.
fn parse_click(text: &str, labels: &LabelSchema) -> anyhow::Result<Click> {
    let wrong = |reason: &str| Usage(format!("--click {text}: {reason}"));
    let (name, place) = text
        .rsplit_once('=')
        .ok_or_else(|| wrong("it has to be LABEL=I,J,K"))?;
    let class = match name {
        "background" => 0,
        name => labels.value_of(name).ok_or_else(|| {
            wrong(&format!(
                "the model has no such label; it has: background, {}",
                labels.names().join(", ")
            ))
        })?,
    };
    let [i, j, k] = parse_triple::<usize>(place)
        .map_err(|reason| wrong(&format!("it has to be LABEL=I,J,K: {reason}")))?;
    Ok(Click {
        class,
        voxel: [k, j, i],
    })
}

/// What a DICOM object says about the model.
fn algorithm(model: &Manifest) -> Algorithm {
    Algorithm {
        name: model.name.clone(),
        version: format!("Fewlabel {}", env!("CARGO_PKG_VERSION")),
        sha256: model.weights_sha256.clone(),
        made_ms: SystemClock.now_ms(),
        drawn: Drawn::Automatically,
    }
}

/// File name without its format's suffix.
fn stem(path: &Path) -> String {
    let name = path
        .file_name()
        .map_or_else(|| "image".into(), |name| name.to_string_lossy());
    [".nii.gz", ".nii", ".nrrd", ".zip", ".dcm"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(&name)
        .to_owned()
}
