//! `fewlabel convert`: a PyTorch checkpoint becomes a model directory.
//!
//! A `.pt` file is a pickle in a zip. Nothing in it is executed, but a hostile one may still exhaust the reader's stack or
//! memory, so it is read in a child process with limits; only a safetensors file comes back.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{Usage, gpu};
use crate::model::convert::{Conversion, ConvertOptions, convert, verify, verify_on};
use crate::model::weights::{parse, read_checkpoint, serialise};
use crate::model::{DeviceChoice, LabelSchema, PctNetConfig, Precision, Preprocessing};

/// What the reading child may use.
const CHILD_MEMORY_BYTES: u64 = 12 << 30;
const CHILD_CPU_S: u64 = 300;
const CHILD_WALL: Duration = Duration::from_secs(600);
/// Environment variable that makes this program the reading child; its value is the file to write.
const CHILD_OUT: &str = "FEWLABEL_CONVERT_CHILD_OUT";

/// Arguments of `fewlabel convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// PyTorch checkpoint: a PyMIC dictionary or a bare state dict
    #[arg(value_name = "IN.pt")]
    checkpoint: PathBuf,
    /// Architecture: a JSON file with the keys of the MIS-FM configuration
    #[arg(long, value_name = "CFG.json")]
    config: PathBuf,
    /// Model directory to make; must not exist
    #[arg(short, long, value_name = "MODEL_DIR")]
    out: PathBuf,
    /// Structures of the model, in class order [default: class_1, class_2, ...]. Another number than in the checkpoint
    /// makes the prediction layers start afresh
    #[arg(long, value_name = "A,B,C")]
    labels: Option<String>,
    /// Voxel spacing that the model works on, z,y,x in mm [default: the image's own]
    #[arg(long, value_name = "Z,Y,X")]
    spacing_mm: Option<String>,
    /// HU range that becomes [-1, 1]
    #[arg(
        long,
        value_name = "LOW,HIGH",
        default_value = "-1000,1000",
        allow_hyphen_values = true
    )]
    hu_window: String,
    /// Name of the model
    #[arg(long, default_value = "pct-net")]
    name: String,
    /// Accept a checkpoint that covers less than 90 % of the encoder
    #[arg(long)]
    partial: bool,
    /// Compare the outputs with those in this file and print the largest difference of each
    #[arg(long, value_name = "REF.safetensors")]
    verify: Option<PathBuf>,
    /// Compare on this device too: cpu, cuda, cuda:N, vulkan or vulkan:N
    #[arg(long, requires = "verify")]
    device: Option<DeviceChoice>,
    /// Numbers of activations on that device: f32, bf16 or f16
    #[arg(long, default_value = "f32", requires = "device")]
    precision: Precision,
}

/// Converts.
///
/// # Errors
/// A checkpoint that cannot be read or does not fit, an output that exists, outputs that differ.
pub fn run(args: ConvertArgs) -> anyhow::Result<()> {
    if let Some(out) = std::env::var_os(CHILD_OUT) {
        return read_in_child(&args.checkpoint, Path::new(&out));
    }
    if args.out.exists() {
        bail!(
            "{} is there already; models are never overwritten. Name another directory",
            args.out.display()
        );
    }
    let text = std::fs::read(&args.config)
        .with_context(|| format!("cannot read {}", args.config.display()))?;
    let network: PctNetConfig = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a PCT-Net configuration", args.config.display()))?;
    network.validate()?;
    let labels = match &args.labels {
        Some(list) => LabelSchema::from_list(list).map_err(|e| Usage(format!("--labels: {e}")))?,
        None => LabelSchema::new(
            (1..network.class_num)
                .map(|k| format!("class_{k}"))
                .collect(),
        )?,
    };
    let preprocessing = Preprocessing {
        spacing_mm: args
            .spacing_mm
            .as_deref()
            .map(|text| numbers("--spacing-mm", text))
            .transpose()?,
        hu_window: numbers("--hu-window", &args.hu_window)?.map(|v| v as f32),
    };
    let staging = tempfile::tempdir().context("cannot make a temporary directory")?;
    let tensors = staging.path().join("checkpoint.safetensors");
    run_child(&args.checkpoint, &tensors)?;
    let bytes = std::fs::read(&tensors)?;
    let state = parse(&bytes).map_err(anyhow::Error::msg)?;
    let options = ConvertOptions {
        name: args.name,
        network,
        labels,
        preprocessing,
        partial: args.partial,
    };
    let conversion = convert(&options, &state, &args.out)?;
    eprintln!("{}", report(&conversion));
    println!("{}", args.out.display());
    if let Some(reference) = &args.verify {
        let bytes = std::fs::read(reference)
            .with_context(|| format!("cannot read {}", reference.display()))?;
        let reference = parse(&bytes).map_err(anyhow::Error::msg)?;
        for (name, difference) in verify(&args.out, &reference)? {
            println!("{name}: largest absolute difference {difference:.3e}");
        }
        if let Some(device) = args.device {
            let precision = args.precision;
            gpu::announce(device)?;
            for (name, away) in verify_on(&args.out, &reference, device, precision)? {
                println!("{name} on {device} in {precision}: relative error {away:.3e}");
            }
        }
    }
    Ok(())
}

fn numbers<const N: usize>(option: &str, text: &str) -> anyhow::Result<[f64; N]> {
    let values: Result<Vec<f64>, _> = text.split(',').map(|v| v.trim().parse()).collect();
    let values = values
        .ok()
        .and_then(|values| <[f64; N]>::try_from(values).ok());
    Ok(values.ok_or_else(|| {
        Usage(format!(
            "{option} {text}: {N} numbers with commas are needed"
        ))
    })?)
}

/// The child's whole life: limits, read, write.
fn read_in_child(checkpoint: &Path, out: &Path) -> anyhow::Result<()> {
    let limit = |resource, value| {
        setrlimit(
            resource,
            Rlimit {
                current: Some(value),
                maximum: Some(value),
            },
        )
    };
    limit(Resource::As, CHILD_MEMORY_BYTES)?;
    limit(Resource::Cpu, CHILD_CPU_S)?;
    limit(Resource::Core, 0)?;
    let state = read_checkpoint(checkpoint).map_err(anyhow::Error::msg)?;
    std::fs::write(out, serialise(&state).map_err(anyhow::Error::msg)?)?;
    Ok(())
}

fn run_child(checkpoint: &Path, out: &Path) -> anyhow::Result<()> {
    if !checkpoint.is_file() {
        bail!("{} is not a file", checkpoint.display());
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args(["convert", "--config", "-", "--out", "-"])
        .arg(checkpoint)
        .env(CHILD_OUT, out)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the reading process")?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > CHILD_WALL {
            child.kill()?;
            child.wait()?;
            bail!(
                "{}: reading took longer than {} s; nothing was written",
                checkpoint.display(),
                CHILD_WALL.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        use std::io::Read;
        stderr.read_to_string(&mut said).unwrap_or(0);
    }
    let reason = match status.code() {
        Some(_) => said
            .lines()
            .next()
            .unwrap_or("unknown reason")
            .trim_start_matches("fewlabel: ")
            .to_owned(),
        None => format!("the file made its reader fail ({status}); it is damaged or hostile"),
    };
    bail!("{}: {reason}. Nothing was written", checkpoint.display())
}

fn report(conversion: &Conversion) -> String {
    let report = &conversion.report;
    let mut text = format!(
        "loaded {}, missing {}, of another shape {}, unused {}; encoder covered to {:.1} %",
        report.loaded.len(),
        report.missing.len(),
        report.reshaped.len(),
        report.unused.len(),
        report.encoder_coverage * 100.0
    );
    for name in &report.missing {
        let _ = write!(text, "\n  missing, starts afresh: {name}");
    }
    for tensor in &report.reshaped {
        let _ = write!(
            text,
            "\n  other shape, starts afresh: {} {:?} in the file, {:?} here",
            tensor.name, tensor.file, tensor.network
        );
    }
    const SHOWN: usize = 12;
    for name in report.unused.iter().take(SHOWN) {
        let _ = write!(text, "\n  unused: {name}");
    }
    if report.unused.len() > SHOWN {
        let _ = write!(
            text,
            "\n  unused: {} more (other resolution modes and the published network's unused layers)",
            report.unused.len() - SHOWN
        );
    }
    text
}
