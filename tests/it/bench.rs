//! `fewlabel bench`: what it reports, and what it says where there is no GPU.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fewlabel"))
        .arg("bench")
        .args(["--network", "pct-net-s", "--patch", "16,32,32"])
        .args(["--repeats", "1"])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn everything_is_measured_and_reported() {
    let small = ["--device", "cpu", "--volume", "20,60,60"];
    let output = bench(&[&small[..], &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["device"], "cpu");
    for limit in ["flops", "bytes_per_s"] {
        assert!(report["machine"][0][limit].as_f64().unwrap() > 0.0);
    }
    let rows = report["results"].as_array().unwrap();
    let works: Vec<&str> = rows
        .iter()
        .map(|row| row["work"].as_str().unwrap())
        .collect();
    assert_eq!(works, ["forward", "training step", "whole scan"]);
    for row in rows {
        for figure in [
            "median_seconds",
            "per_second",
            "tflops",
            "gb_per_s",
            "bound_seconds",
            "roofline_share",
            "peak_memory_mib_so_far",
        ] {
            assert!(row[figure].as_f64().unwrap() > 0.0, "{figure}: {row}");
        }
    }
    let scan = &rows[2];
    assert_eq!(scan["volume_zyx"], serde_json::json!([20, 60, 60]));
    assert!(scan["windows"].as_u64().unwrap() > 1);
    let stages: Vec<&String> = scan["stages"].as_object().unwrap().keys().collect();
    assert_eq!(stages, ["prepare", "network", "finish"]);
    // A CPU compiles no kernels.
    assert!(report["first_inference"].is_null());

    let output = bench(&[&small[..], &["--work", "volume"]].concat());
    let printed = String::from_utf8_lossy(&output.stdout);
    for part in [
        "pct-net-s on cpu",
        "| work | in | s [least-most] | it/s | TFLOP/s | GB/s | share of the roofline | peak memory MiB so far (device) |",
        "| whole scan [20, 60, 60], ",
        "| - network | | ",
    ] {
        assert!(printed.contains(part), "{part:?}: {printed}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_a_message() {
    for device in ["cuda:99", "vulkan:99"] {
        let output = bench(&["--device", device, "--work", "forward"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(device) && said.contains("--device cpu") && !said.contains("panicked"),
            "{said}"
        );
    }
}
