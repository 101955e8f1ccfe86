//! `fewlabel inspect` as a caller sees it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The report of a file or folder with probes, and the exit code.
pub fn inspect(path: &Path, probes: &[String]) -> (Value, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewlabel"));
    command.arg("inspect").arg(path).arg("--json");
    for probe in probes {
        command.arg("--probe").arg(probe);
    }
    let output = command.output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (report, output.status.code().unwrap())
}

/// The numbers of nested arrays, in order.
pub fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}
