//! `fewlabel bench`: how fast this machine computes the network.

use clap::Args;
use serde_json::json;

use super::parse_triple;
use crate::model::bench::{Work, measure};
use crate::model::{DeviceChoice, PctNetConfig, probe_device};
use crate::telemetry::peak_memory_bytes;

/// Classes of the measured networks, background included.
const CLASSES: usize = 8;

/// Arguments of `fewlabel bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Network: pct-net or pct-net-s
    #[arg(long, default_value = "pct-net", value_parser = ["pct-net", "pct-net-s"])]
    network: String,
    /// Patch to measure; may be repeated [default: 32,64,64 and 64,128,128]
    #[arg(long, value_name = "Z,Y,X", value_parser = parse_triple::<usize>)]
    patch: Vec<[usize; 3]>,
    /// What to measure: forward, step or both
    #[arg(long, default_value = "both", value_parser = ["forward", "step", "both"])]
    work: String,
    /// Counted runs, after one that does not count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Measures and prints seconds and the process's peak memory so far.
///
/// # Errors
/// A patch that the network does not accept, a device that is not there.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let device = probe_device(args.device)?;
    let patches = if args.patch.is_empty() {
        vec![[32, 64, 64], [64, 128, 128]]
    } else {
        args.patch
    };
    let works = match args.work.as_str() {
        "forward" => vec![Work::Forward],
        "step" => vec![Work::TrainingStep],
        _ => vec![Work::Forward, Work::TrainingStep],
    };
    let make = match args.network.as_str() {
        "pct-net" => PctNetConfig::pct_net,
        _ => PctNetConfig::pct_net_s,
    };
    let config = make(CLASSES, [64, 128, 128], 1);
    let mut results = Vec::new();
    for patch in patches {
        for &work in &works {
            let runs = measure(work, &config, patch, usize::from(args.repeats), args.device)?;
            let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
            seconds.sort_by(f64::total_cmp);
            let busy: Vec<f64> = runs.iter().map(|run| run.busy_seconds).collect();
            let name = match work {
                Work::Forward => "forward",
                Work::TrainingStep => "training step",
            };
            let [least, median, most] =
                [0, seconds.len() / 2, seconds.len() - 1].map(|i| seconds[i]);
            let peak_mib = peak_memory_bytes().map(|bytes| bytes >> 20);
            if !args.json {
                let memory =
                    peak_mib.map_or_else(String::new, |mib| format!(", peak so far {mib} MiB"));
                println!(
                    "{} {name} {patch:?} on {device}: {median:.3} s [{least:.3}-{most:.3}]{memory}",
                    args.network
                );
            }
            results.push(json!({
                "network": args.network, "work": name, "patch_zyx": patch, "seconds": seconds,
                "busy_seconds": busy, "median_seconds": median, "peak_memory_mib_so_far": peak_mib,
            }));
        }
    }
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({"device": device, "results": results}))?
        );
    }
    Ok(())
}
