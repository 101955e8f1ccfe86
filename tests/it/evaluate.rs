//! `fewlabel evaluate`: numbers of known shapes, missing structures, comparisons, and the report page.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fewlabel::imaging::phantom::{PhantomOptions, torso};
use fewlabel::imaging::{Geometry, LabelFormat, Volume, write_label, write_scan};
use serde_json::{Value, json};

const SHAPE: [usize; 3] = [10, 20, 24];

/// Boxes `(value, from, to)` on a turned grid with voxels of 4 x 1 x 2 mm.
fn boxes(boxes: &[(u16, [usize; 3], [usize; 3])]) -> Volume<u16> {
    let steps = [[0.0, 0.0, 4.0], [0.6, 0.8, 0.0], [1.6, -1.2, 0.0]];
    let geometry = Geometry::new(SHAPE, [5.0, -7.0, 3.0], steps).unwrap();
    let mut voxels = vec![0; geometry.voxel_count()];
    for (value, from, to) in boxes {
        for z in from[0]..to[0] {
            for y in from[1]..to[1] {
                for x in from[2]..to[2] {
                    voxels[(z * SHAPE[1] + y) * SHAPE[2] + x] = *value;
                }
            }
        }
    }
    Volume::new(geometry, voxels).unwrap()
}

fn save(folder: &Path, name: &str, label: &Volume<u16>) {
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(format!("{name}.nii.gz"));
    write_label(&path, label, &[], LabelFormat::NiftiGz).unwrap();
}

/// Three cases: `a` is shifted by 2 voxels along x, `b` misses the second structure and has a third one too many, `c` is
/// the same. `better` is the reference itself.
fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let first = (1, [2, 2, 2], [6, 12, 12]);
    let second = (2, [7, 2, 2], [9, 9, 9]);
    let both = boxes(&[first, second]);
    for case in ["a", "b", "c"] {
        save(&path.join("reference"), case, &both);
        save(&path.join("better"), case, &both);
    }
    save(&path.join("reference"), "unpredicted", &both);
    let shifted = boxes(&[(1, [2, 2, 4], [6, 12, 14]), second]);
    save(&path.join("prediction"), "a", &shifted);
    let missed = boxes(&[first, (3, [7, 12, 12], [9, 14, 14])]);
    save(&path.join("prediction"), "b", &missed);
    save(&path.join("prediction"), "c", &both);
    let names = json!({
        "labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 3},
        "training": [{"image": "./imagesTr/c.nii.gz", "label": "./labelsTr/c.nii.gz", "annotated_labels": [1]}],
    });
    std::fs::write(path.join("dataset.json"), names.to_string()).unwrap();
    dir
}

fn evaluate(dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fewlabel"))
        .current_dir(dir)
        .args([
            "evaluate",
            "--reference",
            "reference",
            "--prediction",
            "prediction",
        ])
        .args(more)
        .output()
        .unwrap()
}

fn document(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn close(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap_or(f64::NAN);
    assert!((value - expected).abs() < 1e-6, "{value} is not {expected}");
}

#[test]
fn measures_of_known_shapes_and_of_missing_structures() {
    let dir = site();
    let found = document(&evaluate(
        dir.path(),
        &["--labels", "dataset.json", "--json"],
    ));
    // What the first version of this document had.
    close(&found["cases"]["a"]["liver"], 0.8);
    close(&found["cases"]["b"]["spleen"], 0.0);
    assert_eq!(found["cases"]["a"]["kidney"], Value::Null);
    close(&found["mean_per_structure"]["liver"], 2.8 / 3.0);
    close(&found["mean_per_structure"]["spleen"], 0.5);
    close(&found["mean"], (2.8 / 3.0 + 0.5 + 0.0) / 3.0);

    let liver = &found["measures"]["a"]["liver"];
    assert_eq!(liver["status"], "compared");
    close(&liver["hd95_mm"], 4.0);
    close(&liver["reference_ml"], 3.2);
    close(&liver["volume_difference_ml"], 0.0);
    let spleen = &found["measures"]["b"]["spleen"];
    assert_eq!(
        (&spleen["status"], &spleen["hd95_mm"]),
        (&json!("missed"), &Value::Null)
    );
    close(&spleen["nsd"], 0.0);
    close(&spleen["volume_difference_relative"], -1.0);
    let kidney = &found["measures"]["b"]["kidney"];
    assert_eq!(
        (
            &kidney["status"],
            &kidney["assd_mm"],
            &kidney["volume_difference_relative"]
        ),
        (&json!("invented"), &Value::Null, &Value::Null)
    );
    assert_eq!(found["measures"]["a"]["kidney"]["status"], "in_neither");
    // Case c has both structures, but its reference says nothing of the spleen.
    assert_eq!(found["measures"]["c"]["spleen"]["status"], "not_annotated");
    assert_eq!(found["cases"]["c"]["spleen"], Value::Null);
    assert_eq!(found["summary"]["spleen"]["dice"]["cases"], 2);
    assert_eq!(found["summary"]["spleen"]["cases_missed"], 1);
    assert_eq!(found["summary"]["spleen"]["hd95_mm"]["cases"], 1);
    assert_eq!(found["left_out"], json!(["unpredicted"]));
}

#[test]
fn intervals_hold_the_mean_and_follow_the_seed() {
    let dir = site();
    let run = |seed: &str| document(&evaluate(dir.path(), &["--json", "--seed", seed]));
    let found = run("1");
    let dice = &found["summary"]["label_1"]["dice"];
    let bound = |n: usize| dice["ci95"][n].as_f64().unwrap();
    let mean = dice["mean"].as_f64().unwrap();
    assert!(bound(0) <= mean && mean <= bound(1) && bound(0) < bound(1));
    assert!(bound(0) >= 0.8 - 1e-9 && bound(1) <= 1.0 + 1e-9);
    assert_eq!(found, run("1"));
    assert_eq!(found["intervals"]["seed"], 1);
    // One value has no interval.
    assert_eq!(found["summary"]["label_3"]["dice"]["ci95"], Value::Null);
    let tight = document(&evaluate(
        dir.path(),
        &["--json", "--tolerance-mm", "5,label_1=0.5"],
    ));
    close(&tight["tolerance_mm"]["label_1"], 0.5);
    close(&tight["tolerance_mm"]["label_2"], 5.0);
    let nsd = |document: &Value| {
        document["measures"]["a"]["label_1"]["nsd"]
            .as_f64()
            .unwrap()
    };
    assert!(nsd(&tight) <= nsd(&found) && nsd(&found) < 1.0);
}

#[test]
fn comparisons_are_case_by_case() {
    let dir = site();
    let labels = ["--labels", "dataset.json", "--compare", "better one=better"];
    let found = document(&evaluate(dir.path(), &[&labels[..], &["--json"]].concat()));
    let better = &found["comparisons"][0];
    assert_eq!(
        (&found["name"], &better["name"]),
        (&json!("prediction"), &json!("better one"))
    );
    close(&better["summary"]["liver"]["dice"]["mean"], 1.0);
    close(
        &better["difference_to_first"]["liver"]["dice"]["mean"],
        0.2 / 3.0,
    );
    close(
        &better["difference_to_first"]["spleen"]["dice"]["mean"],
        0.5,
    );
    assert_eq!(
        better["difference_to_first"]["kidney"]["dice"]["mean"],
        Value::Null
    );
    let table = evaluate(dir.path(), &labels);
    let table = String::from_utf8(table.stdout).unwrap();
    for part in [
        "liver",
        "0.933 [",
        "better one minus prediction",
        "spleen: missed",
        "kidney: predicted",
    ] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    let overall = &found["summary_over_structures"]["dice"]["mean"];
    assert_eq!(overall, &found["mean"]);
}

#[test]
fn a_report_is_one_page_and_one_picture() {
    let dir = site();
    for case in ["a", "b"] {
        let grid = boxes(&[]).geometry;
        let scan = Volume::new(grid, vec![30.0; grid.voxel_count()]).unwrap();
        std::fs::create_dir_all(dir.path().join("images")).unwrap();
        let path = dir.path().join(format!("images/{case}.nii.gz"));
        write_scan(&path, &scan, LabelFormat::NiftiGz).unwrap();
    }
    let curve = [
        json!({"step": 1, "loss": 0.9, "learning_rate": 0.004, "elapsed_s": 0.5, "waiting": 0.0}),
        json!({"step": 2, "loss": 0.5, "learning_rate": 0.002, "elapsed_s": 1.0, "waiting": 0.0}),
        json!({"step": 2, "dice": {"liver": 0.7}, "mean": 0.7, "best": true}),
    ];
    std::fs::create_dir(dir.path().join("model")).unwrap();
    std::fs::write(
        dir.path().join("model/training.jsonl"),
        curve.map(|line| line.to_string()).join("\n"),
    )
    .unwrap();
    let output = evaluate(
        dir.path(),
        &[
            "--labels",
            "dataset.json",
            "--compare",
            "<b>=better",
            "--training",
            "its run=model",
            "--report",
            "out.html",
            "--images",
            "images",
        ],
    );
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    // Case c has no scan.
    assert!(stderr.contains("c: no scan"), "{stderr}");
    let html = std::fs::read_to_string(dir.path().join("out.html")).unwrap();
    for part in [
        "<svg",
        "liver",
        "spleen: missed by the prediction in 1 of 3 cases",
        "&lt;b&gt;",
        "b: spleen, Dice 0.000",
        "Courses of training",
        "its run",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert_eq!(html.matches("data:image/png;base64,").count(), 2);
    for outside in ["http://", "https://", "<script", "<link", "<b>="] {
        assert!(!html.contains(outside), "{outside}");
    }
    let png = std::fs::read(dir.path().join("out.png")).unwrap();
    let info = png::Decoder::new(std::io::Cursor::new(png))
        .read_info()
        .unwrap();
    assert!(info.info().width >= 1000 && info.info().height >= 200);
    let left: Vec<PathBuf> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(left.len(), 8, "no temporary file is left: {left:?}");
}

#[test]
fn wrong_use_is_told_and_writes_nothing() {
    let dir = site();
    for (arguments, code, told) in [
        (&["--compare", "better"][..], 2, "NAME=DIR"),
        (&["--compare", "prediction=better"], 2, "taken"),
        (&["--tolerance-mm", "near"], 2, "near"),
        (&["--tolerance-mm", "1,liver=2"], 2, "liver"),
        (&["--report", "out.txt"], 2, ".html"),
        (&["--images", "reference"], 2, "--report"),
        (&["--training", "a=model"], 2, "--report"),
        (
            &["--training", "model", "--report", "out.html"],
            2,
            "NAME=MODEL_DIR",
        ),
        (
            &["--training", "a=nowhere", "--report", "out.html"],
            1,
            "nowhere",
        ),
        (
            &["--compare", "x=nowhere", "--report", "out.html"],
            1,
            "nowhere",
        ),
        (&["--report", "nowhere/out.html"], 1, "nowhere"),
        (
            &["--report", "out.html", "--images", "nowhere"],
            1,
            "nowhere",
        ),
    ] {
        let output = evaluate(dir.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
    }
    assert!(!dir.path().join("out.html").exists() && !dir.path().join("out.png").exists());

    let other = Geometry::new(
        SHAPE,
        [0.0; 3],
        [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
    )
    .unwrap();
    let moved = Volume::new(other, vec![1; other.voxel_count()]).unwrap();
    save(&dir.path().join("prediction"), "a", &moved);
    let output = evaluate(dir.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("grid") && output.stdout.is_empty());
}

#[test]
fn training_leaves_its_curve_and_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for folder in ["imagesTr", "labelsTr"] {
        std::fs::create_dir_all(data.join(folder)).unwrap();
    }
    let options = PhantomOptions {
        shape: Some([24, 40, 40]),
        ..PhantomOptions::default()
    };
    for seed in 0..3 {
        let case = torso(seed, &options);
        let path = |folder: &str| data.join(folder).join(format!("case_{seed}.nii.gz"));
        write_scan(&path("imagesTr"), &case.scan, LabelFormat::NiftiGz).unwrap();
        write_label(&path("labelsTr"), &case.label, &[], LabelFormat::NiftiGz).unwrap();
    }
    let labels: serde_json::Map<_, _> = fewlabel::imaging::phantom::ORGANS
        .iter()
        .enumerate()
        .map(|(n, organ)| ((n + 1).to_string(), json!(organ)))
        .collect();
    std::fs::write(
        data.join("dataset.json"),
        json!({ "labels": labels }).to_string(),
    )
    .unwrap();
    let network = fewlabel::model::PctNetConfig {
        feature_chns: [4, 8, 16, 16, 16],
        num_heads: [2, 2, 2],
        ..fewlabel::model::PctNetConfig::pct_net_s(labels.len() + 1, [16, 32, 32], 1)
    };
    let names = fewlabel::imaging::phantom::ORGANS.join(",");
    let schema = fewlabel::model::LabelSchema::from_list(&names).unwrap();
    fewlabel::model::create_untrained(&dir.path().join("start"), "small", &network, &schema, 1)
        .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fewlabel"))
        .current_dir(dir.path())
        .args([
            "train", "--data", "data", "--out", "model", "--init", "start", "--device", "cpu",
        ])
        .args([
            "--steps",
            "4",
            "--batch",
            "1",
            "--validate-every",
            "2",
            "--val-split",
            "0.5",
            "--seed",
            "3",
        ])
        .args(["--report", "run.html"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let curve = std::fs::read_to_string(dir.path().join("model/training.jsonl")).unwrap();
    let lines: Vec<Value> = curve
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let steps: Vec<_> = lines
        .iter()
        .filter(|line| line.get("loss").is_some())
        .collect();
    assert_eq!(steps.len(), 4);
    assert_eq!(steps[3]["step"], 4);
    assert!(steps[0]["learning_rate"].as_f64() > steps[3]["learning_rate"].as_f64());
    let validations: Vec<_> = lines
        .iter()
        .filter(|line| line.get("dice").is_some())
        .collect();
    assert_eq!(validations.len(), 2, "the seed holds a case out: {stderr}");
    assert!(!dir.path().join("model.training.jsonl").exists());
    let html = std::fs::read_to_string(dir.path().join("run.html")).unwrap();
    assert!(html.contains("Validation Dice") && html.contains("4 steps, 2 validations"));
    // The case that was held out, measured and shown.
    assert!(html.contains("Agreement per structure"));
    assert!(html.contains("data:image/png;base64,"));
    assert!(!dir.path().join("model.run").exists());
    assert!(dir.path().join("run.png").is_file());
}
