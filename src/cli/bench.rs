//! `fewlabel bench`: how fast this machine computes the network.

use clap::Args;
use serde_json::json;

use super::parse_triple;
use crate::model::bench::{Layers, Work, measure, measure_layers};
use crate::model::{DeviceChoice, PctNetConfig, PrecisionChoice, probe_device};
use crate::telemetry::peak_memory_bytes;

/// Classes of the measured networks, background included.
const CLASSES: usize = 8;

/// Arguments of `fewlabel bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Numbers of inference: f32, bf16 (rounded factors, sums in f32; faster where the processor has such products) or
    /// auto, which is f32 on a CPU
    #[arg(long, default_value = "auto")]
    precision: PrecisionChoice,
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
    /// Instead, print each step of inference on the CPU beside what the machine could do at most
    #[arg(long)]
    layers: bool,
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
    if args.layers {
        for patch in patches {
            let repeats = usize::from(args.repeats);
            let layers = measure_layers(&config, patch, repeats, args.precision)?;
            print_layers(&layers, patch, args.json)?;
        }
        return Ok(());
    }
    let mut results = Vec::new();
    for patch in patches {
        for &work in &works {
            let repeats = usize::from(args.repeats);
            let runs = measure(work, &config, patch, repeats, args.device, args.precision)?;
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

/// One line per step: seconds, GFLOP/s by the operation's definition, GB/s, and the bound's share of the seconds.
fn print_layers(layers: &Layers, patch: [usize; 3], as_json: bool) -> anyhow::Result<()> {
    let (f32_peak, bf16_peak) = layers.peak;
    let share = |step| layers.bound_s(step);
    if as_json {
        let steps: Vec<_> = layers
            .steps
            .iter()
            .map(|step| {
                json!({
                    "step": step.name, "seconds": step.seconds, "operations": step.operations,
                    "bytes": step.bytes, "bound_seconds": share(step),
                })
            })
            .collect();
        let report = json!({
            "patch_zyx": patch, "peak_flops_f32": f32_peak, "peak_flops_bf16": bf16_peak,
            "bandwidth_bytes_per_s": layers.bandwidth, "steps": steps,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let bf16 = bf16_peak.map_or_else(|| "none".to_owned(), |peak| format!("{:.0}", peak * 1e-9));
    println!(
        "{patch:?}: peak {:.0} GFLOP/s f32, {bf16} bf16; copying {:.1} GB/s",
        f32_peak * 1e-9,
        layers.bandwidth * 1e-9
    );
    println!("| step | ms | GFLOP/s | GB/s | share of the bound |\n|---|---|---|---|---|");
    let (mut seconds, mut bound) = (0.0, 0.0);
    for step in &layers.steps {
        println!(
            "| {} | {:.2} | {:.0} | {:.1} | {:.0} % |",
            step.name,
            step.seconds * 1e3,
            step.operations / step.seconds * 1e-9,
            step.bytes / step.seconds * 1e-9,
            100.0 * share(step) / step.seconds
        );
        seconds += step.seconds;
        bound += share(step);
    }
    println!(
        "| all | {:.0} | | | {:.0} % |",
        seconds * 1e3,
        100.0 * bound / seconds
    );
    Ok(())
}
