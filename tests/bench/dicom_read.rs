//! Time and memory of reading one image, for `dicom_read.py`: `cargo bench --bench dicom_read -- PATH stored|float`.
//! Prints one line of JSON.

use std::path::PathBuf;
use std::time::Instant;

use fewlabel::imaging::{Budget, ImagingError, read_raster, read_scan};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Ticks of `/proc/self/stat` in a second.
const TICKS: f64 = 100.0;

fn main() -> Result<(), ImagingError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, kind, ..] = arguments.as_slice() else {
        // `cargo bench` without a path runs every bench.
        return Ok(());
    };
    let (path, budget) = (PathBuf::from(path), Budget::default());
    let (before, busy, start) = (peak_mib(), processor_s(), Instant::now());
    let used = || (start.elapsed().as_secs_f64(), processor_s() - busy);
    let ((seconds, processor), sum) = if kind == "stored" {
        let raster = read_raster(&path, &budget)?;
        (used(), raster.values().sum::<f64>())
    } else {
        let scan = read_scan(&path, &budget)?;
        let used = used();
        (
            used,
            scan.volume.voxels.iter().map(|&hu| f64::from(hu)).sum(),
        )
    };
    let peak = peak_mib();
    println!(
        r#"{{"seconds": {seconds}, "processor_s": {processor}, "before_mib": {before}, "peak_mib": {peak}, "sum": {sum}}}"#
    );
    Ok(())
}

/// Largest resident memory of this process so far.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// Processor time of all threads so far.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS
}
