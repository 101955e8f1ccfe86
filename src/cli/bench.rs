//! `fewlabel bench`: how fast this machine computes the network.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{gpu, parse_triple};
use crate::model::bench::{
    Bench, Layers, Machine, Measured, Work, first_inference, measure_layers, measure_machine,
};
use crate::model::{
    DeviceChoice, DeviceInfo, PctNetConfig, Precision, PrecisionChoice, keep_kernels_in,
};
use crate::telemetry::peak_memory_bytes;

/// Classes of the measured networks, background included.
const CLASSES: usize = 8;
/// Window of a whole scan.
const WINDOW: [usize; 3] = [64, 128, 128];

/// Arguments of `fewlabel bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Where to compute: auto, cpu, cuda, cuda:N, vulkan or vulkan:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Numbers of activations: f32, bf16 or f16 (sums in f32), or auto, which is f32. On a CPU for inference only
    #[arg(long, default_value = "auto")]
    precision: PrecisionChoice,
    /// Network: pct-net or pct-net-s
    #[arg(long, default_value = "pct-net", value_parser = ["pct-net", "pct-net-s"])]
    network: String,
    /// Patch to measure; may be repeated. A whole scan takes the last one as its window [default: 32,64,64 and 64,128,128]
    #[arg(long, value_name = "Z,Y,X", value_parser = parse_triple::<usize>)]
    patch: Vec<[usize; 3]>,
    /// Patches at once, in a forward pass or a training step
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// What to measure: forward, step, both, volume (a whole scan: minutes on a CPU), start (a first answer, without and with
    /// kernels that an earlier start has compiled) or all (on a CPU, which compiles nothing, without start)
    #[arg(long, default_value = "all", value_parser = ["forward", "step", "both", "volume", "start", "all"])]
    work: String,
    /// Voxels of the whole scan; they are 1.5 x 0.8 x 0.8 mm, and the network sees 1.5 mm
    #[arg(long, value_name = "Z,Y,X", default_value = "300,512,512", value_parser = parse_triple::<usize>)]
    volume: [usize; 3],
    /// Counted runs, after one that does not count; a whole scan on a CPU runs once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    repeats: u16,
    /// Instead, print each step of inference on the CPU beside what the machine could do at most
    #[arg(long)]
    layers: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Make a first inference with kernels kept in DIR, and end
    #[arg(long, value_name = "DIR", hide = true)]
    first_inference: Option<PathBuf>,
}

/// One line of the table.
struct Row {
    work: &'static str,
    patch: [usize; 3],
    volume: Option<[usize; 3]>,
    measured: Measured,
    peak_mib: Option<u64>,
}

/// Measures and prints seconds, what was reached of the device, and memory.
///
/// # Errors
/// A patch that the network does not accept, a device that is not there or fails.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let make = match args.network.as_str() {
        "pct-net" => PctNetConfig::pct_net,
        _ => PctNetConfig::pct_net_s,
    };
    let config = make(CLASSES, WINDOW, 1);
    let patches = match args.patch.as_slice() {
        [] => vec![[32, 64, 64], WINDOW],
        given => given.to_vec(),
    };
    let window = patches.last().copied().unwrap_or(WINDOW);
    let bench = |patch| Bench {
        config: config.clone(),
        patch,
        batch: usize::from(args.batch),
        repeats: usize::from(args.repeats),
        device: args.device,
        precision: args.precision,
    };
    if let Some(folder) = &args.first_inference {
        keep_kernels_in(folder);
        return Ok(first_inference(&bench(window))?);
    }
    if args.layers {
        for patch in patches {
            let repeats = usize::from(args.repeats);
            let layers = measure_layers(&config, patch, repeats, args.precision)?;
            print_layers(&layers, patch, args.json)?;
        }
        return Ok(());
    }
    let device = gpu::announce(args.device)?;
    let work = args.work.as_str();
    let wanted = |name: &str| work == "all" || work == name;
    let mut works = Vec::new();
    if wanted("forward") || work == "both" {
        works.push(Work::Forward);
    }
    if wanted("step") || work == "both" {
        works.push(Work::TrainingStep);
    }
    let mut rows = Vec::new();
    let all = patches
        .iter()
        .flat_map(|patch| works.iter().map(move |work| (*patch, *work)))
        .chain(wanted("volume").then_some((window, Work::Volume(args.volume))));
    for (patch, work) in all {
        let measured = bench(patch).measure(work)?;
        let row = Row {
            work: match work {
                Work::Forward => "forward",
                Work::TrainingStep => "training step",
                Work::Volume(_) => "whole scan",
            },
            patch,
            volume: match work {
                Work::Volume(shape) => Some(shape),
                _ => None,
            },
            measured,
            peak_mib: peak_memory_bytes().map(|bytes| bytes >> 20),
        };
        if !args.json {
            eprintln!("{} {patch:?}: {:.3} s", row.work, row.seconds()[1]);
        }
        rows.push(row);
    }
    let compiles = device.name != "cpu";
    let start = match work == "start" || (work == "all" && compiles) {
        true => Some(starts(&args, window)?),
        false => None,
    };
    // After the runs, so that its memory does not count as theirs.
    let machines = machines(&args, &rows)?;
    if args.json {
        let of = |row: &Row| row.json(&args, machine_of(&machines, row));
        let report = json!({
            "device": device.name, "description": device.description, "network": args.network,
            "machine": machines.iter().map(|(precision, machine)| json!({
                "precision": precision, "flops": machine.operations_per_s, "bytes_per_s": machine.bytes_per_s,
            })).collect::<Vec<_>>(),
            "results": rows.iter().map(of).collect::<Vec<_>>(),
            "first_inference": start.map(|[cold, warm]| json!({"cold_seconds": cold, "warm_seconds": warm})),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_table(&args, &device, &machines, &rows, start);
    }
    Ok(())
}

/// The device's limits in each precision that was measured.
fn machines(args: &BenchArgs, rows: &[Row]) -> anyhow::Result<Vec<(Precision, Machine)>> {
    let mut machines: Vec<(Precision, Machine)> = Vec::new();
    for row in rows {
        let precision = row.measured.precision;
        if machines.iter().all(|(known, _)| *known != precision) {
            machines.push((precision, measure_machine(args.device, precision)?));
        }
    }
    Ok(machines)
}

fn machine_of<'a>(machines: &'a [(Precision, Machine)], row: &Row) -> Option<&'a Machine> {
    let mut known = machines.iter();
    let found = known.find(|(precision, _)| *precision == row.measured.precision);
    found.map(|(_, machine)| machine)
}

impl Row {
    /// Least, median and most.
    fn seconds(&self) -> [f64; 3] {
        let mut seconds: Vec<f64> = self.measured.runs.iter().map(|run| run.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let last = seconds.len().saturating_sub(1);
        [0, seconds.len() / 2, last].map(|i| seconds.get(i).copied().unwrap_or(f64::NAN))
    }

    fn json(&self, args: &BenchArgs, machine: Option<&Machine>) -> Value {
        let measured = &self.measured;
        let [_, median, _] = self.seconds();
        let runs = &measured.runs;
        let stages = |run: &crate::model::bench::Run| -> serde_json::Map<String, Value> {
            let stages = run.stages.iter();
            stages
                .map(|(stage, s)| ((*stage).to_owned(), json!(s)))
                .collect()
        };
        let bound = machine.map(|machine| measured.bound_s(machine));
        json!({
            "network": args.network, "work": self.work, "patch_zyx": self.patch, "volume_zyx": self.volume,
            "batch": args.batch, "precision": measured.precision,
            "seconds": runs.iter().map(|run| run.seconds).collect::<Vec<_>>(),
            "busy_seconds": runs.iter().map(|run| run.busy_seconds).collect::<Vec<_>>(),
            "median_seconds": median, "per_second": 1.0 / median,
            "windows": measured.windows, "stages": runs.last().map(stages),
            "operations": measured.operations, "bytes": measured.bytes,
            "tflops": measured.operations / median * 1e-12, "gb_per_s": measured.bytes / median * 1e-9,
            "bound_seconds": bound, "roofline_share": bound.map(|bound| bound / median),
            "peak_memory_mib_so_far": self.peak_mib,
            "device_memory_mib_so_far": measured.device_bytes.map(|bytes| bytes >> 20),
        })
    }
}

fn print_table(
    args: &BenchArgs,
    device: &DeviceInfo,
    machines: &[(Precision, Machine)],
    rows: &[Row],
    start: Option<[f64; 2]>,
) {
    println!("{} on {}", args.network, device.description);
    for (precision, machine) in machines {
        println!(
            "at most, measured: {:.2} TFLOP/s in {precision}, copying {:.0} GB/s",
            machine.operations_per_s * 1e-12,
            machine.bytes_per_s * 1e-9
        );
    }
    if !rows.is_empty() {
        println!(
            "| work | in | s [least-most] | it/s | TFLOP/s | GB/s | share of the roofline | peak memory MiB so far (device) |\n\
             |---|---|---|---|---|---|---|---|"
        );
    }
    for row in rows {
        let measured = &row.measured;
        let [least, median, most] = row.seconds();
        let share = machine_of(machines, row).map_or_else(String::new, |machine| {
            format!("{:.1} %", 100.0 * measured.bound_s(machine) / median)
        });
        let mut name = format!("{} {:?}", row.work, row.volume.unwrap_or(row.patch));
        if args.batch > 1 && row.volume.is_none() {
            name += &format!(" x {}", args.batch);
        }
        if let Some(windows) = measured.windows {
            name += &format!(", {windows} windows of {:?}", row.patch);
        }
        let device = measured
            .device_bytes
            .map_or_else(String::new, |bytes| format!(" ({})", bytes >> 20));
        println!(
            "| {name} | {} | {median:.3} [{least:.3}-{most:.3}] | {:.2} | {:.3} | {:.1} | {share} | {}{device} |",
            measured.precision,
            1.0 / median,
            measured.operations / median * 1e-12,
            measured.bytes / median * 1e-9,
            row.peak_mib.unwrap_or(0),
        );
        for (stage, seconds) in measured.runs.last().map_or(&[][..], |run| &run.stages[..]) {
            println!("| - {stage} | | {seconds:.3} | | | | | |");
        }
    }
    if let Some([cold, warm]) = start {
        println!(
            "first inference of a new process: {cold:.2} s cold, {warm:.2} s with kept kernels"
        );
    }
}

/// Seconds of a new process until its first inference is done, with an empty folder of kernels, and with one that the process
/// before has filled.
fn starts(args: &BenchArgs, patch: [usize; 3]) -> anyhow::Result<[f64; 2]> {
    let folder = tempfile::tempdir()?;
    let cold = start(args, patch, folder.path())?;
    Ok([cold, start(args, patch, folder.path())?])
}

fn start(args: &BenchArgs, patch: [usize; 3], kernels: &Path) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let output = Command::new(std::env::current_exe()?)
        .arg("bench")
        .args(["--device", &args.device.to_string()])
        .args(["--precision", &args.precision.to_string()])
        .args(["--network", &args.network])
        .args(["--patch", &patch.map(|side| side.to_string()).join(",")])
        .arg("--first-inference")
        .arg(kernels)
        // Else NVIDIA's driver would know the kernels from this process.
        .env("CUDA_CACHE_PATH", kernels.join("driver"))
        .output()
        .context("cannot start another process of this program")?;
    let seconds = begin.elapsed().as_secs_f64();
    if !output.status.success() {
        bail!(
            "a first inference failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(seconds)
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
