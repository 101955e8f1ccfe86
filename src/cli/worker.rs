//! `fewlabel worker`: the computing process beside a server; started by `serve`.

use std::path::PathBuf;

use clap::Args;

use crate::model::{DeviceChoice, PrecisionChoice};
use crate::telemetry::{self, LogFormat};

/// Arguments of `fewlabel worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Data directory of the server
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where to compute: auto, cpu, cuda, cuda:N, vulkan or vulkan:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Numbers of inference: auto, f32, bf16 or f16
    #[arg(long, default_value = "auto")]
    precision: PrecisionChoice,
}

/// Works until standard input closes.
///
/// # Errors
/// When the store cannot be opened.
pub fn run(args: WorkerArgs) -> anyhow::Result<()> {
    telemetry::init(LogFormat::Text, "info")?;
    Ok(crate::worker::run(&args.data, args.device, args.precision)?)
}
