//! `fewlabel inspect`: what the readers see in images and label maps.
//!
//! The JSON document is stable; acceptance checks read it. Hashes and probes are in the file's own
//! axis order with i fastest, little endian, after rescaling.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::imaging::{Budget, ImagingError, Raster, dicom, read_raster};

/// Arguments of `fewlabel inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Images or label maps (NIfTI, NRRD, DICOM), folders of them, or DICOM series as folders or zip files
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Also show the value at this voxel of the file, counted from 0; may be repeated
    #[arg(long, value_name = "I,J,K", value_parser = parse_probe)]
    probe: Vec<[usize; 3]>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

fn parse_probe(text: &str) -> Result<[usize; 3], String> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    numbers
        .ok()
        .and_then(|n| n.try_into().ok())
        .ok_or_else(|| "expected three whole numbers such as 10,20,30".to_owned())
}

/// Shows each image; exit code 1 when every one was refused.
///
/// # Errors
/// When the output cannot be written.
pub fn run(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let report = inspect(&args.images, &args.probe, &Budget::default());
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report).context("cannot write the report")?;
        writeln!(out)?;
    } else {
        report
            .write_text(&mut out)
            .context("cannot write the report")?;
    }
    Ok(if report.images.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
struct Report {
    images: Vec<Entry>,
    refused: Vec<Refusal>,
}

/// One image.
#[derive(Debug, Serialize)]
struct Entry {
    path: String,
    /// Series Instance UID of a DICOM scan.
    #[serde(skip_serializing_if = "Option::is_none")]
    series: Option<String>,
    format: &'static str,
    size_ijk: [usize; 3],
    spacing_mm: [f64; 3],
    origin_lps: [f64; 3],
    directions_lps: [[f64; 3]; 3],
    affine_ras: [[f64; 4]; 4],
    dtype: &'static str,
    range: [f64; 2],
    sha256_int16_ijk: Option<String>,
    sha256_float64_ijk: String,
    /// i, j, k and the value there; null outside of the image and for NaN or infinity.
    probes: Vec<(usize, usize, usize, Option<f64>)>,
    warnings: Vec<String>,
}

/// One file that was not read.
#[derive(Debug, Serialize)]
struct Refusal {
    path: String,
    code: &'static str,
    message: String,
}

fn inspect(paths: &[PathBuf], probes: &[[usize; 3]], budget: &Budget) -> Report {
    let mut report = Report {
        images: Vec::new(),
        refused: Vec::new(),
    };
    for path in paths {
        let is_folder = path.is_dir();
        let is_series = dicom::is_series(path);
        if is_series {
            report.series(path, probes, budget);
        }
        if is_series && !is_folder {
            continue;
        }
        match files_of(path) {
            Ok(files) => {
                // In the folder of a series every other file was looked at with it.
                for file in files
                    .iter()
                    .filter(|file| !is_series || is_named_image(file))
                {
                    if dicom::is_archive(file) {
                        report.series(file, probes, budget);
                        continue;
                    }
                    match read_raster(file, budget).and_then(|raster| entry(file, &raster, probes))
                    {
                        Ok(entry) => report.images.push(entry),
                        Err(error) => report.refuse(file, &error),
                    }
                }
            }
            // Its series lie in subfolders.
            Err(_) if is_series => {}
            Err(error) => report.refuse(path, &error),
        }
    }
    report
}

/// Whether the name promises an image that is no DICOM file.
fn is_named_image(file: &Path) -> bool {
    let name = file.to_string_lossy().to_ascii_lowercase();
    [".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".zip"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

/// The file itself, or the visible files of a folder by name.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, ImagingError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for item in std::fs::read_dir(path)? {
        let item = item?;
        let hidden = item.file_name().to_string_lossy().starts_with('.');
        if !hidden && item.path().is_file() {
            files.push(item.path());
        }
    }
    if files.is_empty() {
        return Err(ImagingError::UnknownFormat(
            "the folder holds no file".to_owned(),
        ));
    }
    files.sort();
    Ok(files)
}

fn entry(path: &Path, raster: &Raster, probes: &[[usize; 3]]) -> Result<Entry, ImagingError> {
    let mut warnings = raster.warnings().to_vec();
    let summary = Summary::of(raster)?;
    if summary.not_finite > 0 {
        warnings.push(format!(
            "{} voxels are not finite numbers; a scan gets {} in their place, the hash is of what is stored",
            summary.not_finite, summary.low
        ));
    }
    if raster.layer_count() > 1 {
        warnings.push(format!(
            "a segmentation of {} layers; probes show the first",
            raster.layer_count()
        ));
    }
    let geometry = raster.geometry();
    let [nk, nj, ni] = geometry.shape();
    let [dk, dj, di] = geometry.spacing_mm();
    let steps = geometry.steps_lps_mm();
    // Adding zero makes a negative zero plain.
    let unit = |axis: usize| steps[axis].map(|mm| mm / geometry.spacing_mm()[axis] + 0.0);
    let probes = probes
        .iter()
        .map(|&[i, j, k]| {
            let value = raster.value_at([i, j, k]);
            if value.is_none() {
                warnings.push(format!("the probe {i},{j},{k} is outside of the image"));
            }
            (i, j, k, value)
        })
        .collect();
    Ok(Entry {
        path: path.display().to_string(),
        series: None,
        format: raster.format(),
        size_ijk: [ni, nj, nk],
        spacing_mm: [di, dj, dk],
        origin_lps: geometry.origin_lps_mm().map(|mm| mm + 0.0),
        directions_lps: [unit(2), unit(1), unit(0)],
        affine_ras: geometry.affine_ras(),
        dtype: raster.sample().name(),
        range: [summary.low, summary.high],
        sha256_int16_ijk: summary.sha256_int16,
        sha256_float64_ijk: summary.sha256_float64,
        probes,
        warnings,
    })
}

/// What one pass over the values gives.
struct Summary {
    low: f64,
    high: f64,
    not_finite: usize,
    sha256_int16: Option<String>,
    sha256_float64: String,
}

impl Summary {
    fn of(raster: &Raster) -> Result<Self, ImagingError> {
        let (mut low, mut high, mut not_finite, mut fits_int16) =
            (f64::INFINITY, f64::NEG_INFINITY, 0, true);
        for value in raster.values() {
            if value.is_finite() {
                (low, high) = (low.min(value), high.max(value));
                fits_int16 &= value.fract() == 0.0 && (-32768.0..=32767.0).contains(&value);
            } else {
                not_finite += 1;
                fits_int16 = false;
            }
        }
        if low > high {
            return Err(ImagingError::Data("no voxel is a finite number".to_owned()));
        }
        Ok(Self {
            low,
            high,
            not_finite,
            sha256_int16: fits_int16
                .then(|| sha256(raster.values().map(|value| (value as i16).to_le_bytes()))),
            sha256_float64: sha256(raster.values().map(f64::to_le_bytes)),
        })
    }
}

fn sha256<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> String {
    const BLOCK_BYTES: usize = 1 << 16;
    let mut hasher = Sha256::new();
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    for value in values {
        block.extend_from_slice(&value);
        if block.len() >= BLOCK_BYTES {
            hasher.update(&block);
            block.clear();
        }
    }
    hasher.update(&block);
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Report {
    /// Every scan of a DICOM folder, zip file or file.
    fn series(&mut self, path: &Path, probes: &[[usize; 3]], budget: &Budget) {
        let mut scans = match dicom::open(path, budget) {
            Ok(scans) => scans,
            Err(error) => return self.refuse(path, &error),
        };
        if scans.is_empty()
            && let Err(error) = scans.only()
        {
            return self.refuse(path, &error);
        }
        for scan in 0..scans.len() {
            let read = scans.read(scan);
            match read.and_then(|raster| entry(path, &raster, probes)) {
                Ok(mut entry) => {
                    entry.series = Some(scans.series_uid(scan).to_owned());
                    self.images.push(entry);
                }
                Err(error) => self.refuse(path, &error),
            }
        }
        for error in scans.refused() {
            self.refuse(path, error);
        }
    }

    fn refuse(&mut self, path: &Path, error: &ImagingError) {
        self.refused.push(Refusal {
            path: path.display().to_string(),
            code: error.code(),
            message: error.to_string(),
        });
    }

    fn write_text(&self, out: &mut impl Write) -> std::io::Result<()> {
        for image in &self.images {
            let vector = |v: &[f64; 3]| v.map(|c| format!("{c:.4}")).join(" ");
            writeln!(out, "{}", image.path)?;
            if let Some(series) = &image.series {
                writeln!(out, "  series      {series}")?;
            }
            writeln!(out, "  format      {} {}", image.format, image.dtype)?;
            writeln!(
                out,
                "  size i j k  {}",
                image.size_ijk.map(|n| n.to_string()).join(" ")
            )?;
            writeln!(out, "  spacing mm  {}", vector(&image.spacing_mm))?;
            writeln!(out, "  origin LPS  {}", vector(&image.origin_lps))?;
            for (name, direction) in ["i", "j", "k"].iter().zip(&image.directions_lps) {
                writeln!(out, "  {name} runs to   {}", vector(direction))?;
            }
            writeln!(
                out,
                "  values      {} to {}",
                image.range[0], image.range[1]
            )?;
            writeln!(out, "  sha256      {} (float64)", image.sha256_float64_ijk)?;
            if let Some(hash) = &image.sha256_int16_ijk {
                writeln!(out, "              {hash} (int16)")?;
            }
            for (i, j, k, value) in &image.probes {
                let value = value.map_or("outside".to_owned(), |value| value.to_string());
                writeln!(out, "  at {i},{j},{k}    {value}")?;
            }
            for warning in &image.warnings {
                writeln!(out, "  warning: {warning}")?;
            }
        }
        for refusal in &self.refused {
            writeln!(
                out,
                "{}\n  refused ({}): {}",
                refusal.path, refusal.code, refusal.message
            )?;
        }
        Ok(())
    }
}
