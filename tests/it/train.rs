//! `fewlabel train` through the program: bad data, a kill, memory, labels that are not complete.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use fewlabel::imaging::phantom::{ORGANS, PhantomOptions, torso};
use fewlabel::imaging::{
    Budget, LabelFormat, Volume, read_label, read_scan, write_label, write_scan,
};
use fewlabel::model::Manifest;
use serde_json::{Value, json};

use crate::pretrain::{command, dataset, done, killed_and_resumed, run_folder, text, weights};

fn lines(model: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(model.join("training.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn image(data: &Path, case: usize) -> PathBuf {
    data.join(format!("imagesTr/case_{case}.nii.gz"))
}

fn label(data: &Path, case: usize) -> PathBuf {
    data.join(format!("labelsTr/case_{case}.nii.gz"))
}

/// Changes the values of a label file.
fn change_label(path: &Path, change: impl Fn(u16) -> u16) {
    let file = read_label(path, &Budget::default()).unwrap();
    let voxels = file.layers[0].iter().map(|v| change(*v)).collect();
    let volume = Volume::new(file.geometry, voxels).unwrap();
    write_label(path, &volume, &[], LabelFormat::NiftiGz).unwrap();
}

/// Changes the voxels of an image file.
fn change_image(path: &Path, change: impl Fn(usize, f32) -> f32) {
    let scan = read_scan(path, &Budget::default()).unwrap().volume;
    let voxels = scan
        .voxels
        .iter()
        .enumerate()
        .map(|(n, v)| change(n, *v))
        .collect();
    let volume = Volume::new(scan.geometry, voxels).unwrap();
    write_scan(path, &volume, LabelFormat::NiftiGz).unwrap();
}

/// A NIfTI file of floats with NaN in its last voxels, on the grid of `path`.
fn with_nan(path: &Path) {
    let scan = read_scan(path, &Budget::default()).unwrap().volume;
    let [d, h, w] = scan.geometry.shape();
    let mut header = vec![0u8; 352];
    header[..4].copy_from_slice(&348i32.to_le_bytes());
    for (n, side) in [3, w, h, d, 1, 1, 1, 1].into_iter().enumerate() {
        header[40 + 2 * n..42 + 2 * n].copy_from_slice(&(side as i16).to_le_bytes());
    }
    header[70..72].copy_from_slice(&16i16.to_le_bytes());
    header[72..74].copy_from_slice(&32i16.to_le_bytes());
    header[108..112].copy_from_slice(&352f32.to_le_bytes());
    header[254..256].copy_from_slice(&1i16.to_le_bytes());
    let steps = scan.geometry.steps_lps_mm();
    let origin = scan.geometry.origin_lps_mm();
    for row in 0..3 {
        // NIfTI is RAS: x and y change their sign.
        let sign = if row < 2 { -1.0 } else { 1.0 };
        for (column, value) in [steps[2][row], steps[1][row], steps[0][row], origin[row]]
            .into_iter()
            .enumerate()
        {
            let at = 280 + 16 * row + 4 * column;
            header[at..at + 4].copy_from_slice(&((sign * value) as f32).to_le_bytes());
        }
    }
    for axis in 0..3 {
        let mm = scan.geometry.spacing_mm()[2 - axis] as f32;
        header[80 + 4 * axis..84 + 4 * axis].copy_from_slice(&mm.to_le_bytes());
    }
    header[344..348].copy_from_slice(b"n+1\0");
    let last = scan.voxels.len() - 5;
    for (n, value) in scan.voxels.iter().enumerate() {
        let value = if n < last { *value } else { f32::NAN };
        header.extend_from_slice(&value.to_le_bytes());
    }
    std::fs::remove_file(path).unwrap();
    std::fs::write(path.with_extension(""), header).unwrap();
}

#[test]
fn every_bad_case_is_named_and_the_rest_is_learned() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 8);
    std::fs::write(image(&data, 0), b"no image").unwrap();
    let other = torso(
        99,
        &PhantomOptions {
            shape: Some([18, 40, 40]),
            ..PhantomOptions::small()
        },
    );
    write_label(&label(&data, 1), &other.label, &[], LabelFormat::NiftiGz).unwrap();
    change_label(&label(&data, 2), |v| if v == 6 { 9 } else { v });
    change_label(&label(&data, 3), |_| 0);
    change_image(&image(&data, 4), |_, _| 40.0);
    with_nan(&image(&data, 5));
    let model = dir.path().join("model");
    let options = ["--steps", "3", "--val-split", "0"];
    let said = done(&mut command("train", &data, &model, &options));
    assert!(said.contains("5 cases were skipped"), "{said}");
    let notes: Vec<Value> = lines(&model)
        .into_iter()
        .filter(|line| line.get("case").is_some())
        .collect();
    let expected = [
        ("case_0", true, "image: not an image"),
        ("case_1", true, "grid"),
        ("case_2", true, "label value 9"),
        ("case_3", true, "empty"),
        ("case_4", true, "same value"),
        ("case_5", false, "finite"),
    ];
    assert_eq!(notes.len(), expected.len(), "{notes:?}");
    for (note, (case, skipped, reason)) in notes.iter().zip(expected) {
        assert_eq!(
            (&note["case"], &note["skipped"]),
            (&case.into(), &skipped.into())
        );
        assert!(note["reason"].as_str().unwrap().contains(reason), "{note}");
        assert!(said.contains(&format!("case {case}: ")), "{said}");
    }
    let manifest = Manifest::read(&model).unwrap();
    let found = manifest.lineage.data.clone().unwrap();
    assert_eq!((found.cases, found.classes.len()), (3, ORGANS.len()));
    assert!(
        found
            .reasons
            .iter()
            .any(|reason| reason.starts_with("spacing")),
        "{found:?}"
    );
    assert!(!dir.path().join(".model.cases").exists());

    // When nothing is left, the first reason is the error, and nothing is written.
    let bad = dataset(&dir.path().join("bad"), 2);
    for case in 0..2 {
        change_label(&label(&bad, case), |_| 0);
    }
    let none = dir.path().join("none");
    let output = command("train", &bad, &none, &options).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("none of the cases can be used"),
        "{}",
        text(&output)
    );
    assert!(
        text(&output).contains("case_0") && text(&output).contains("case_1"),
        "{}",
        text(&output)
    );
    assert!(!none.exists() && !dir.path().join(".none.cases").exists());
}

#[test]
fn a_killed_training_goes_on_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 4);
    let simple = [
        "--steps",
        "12",
        "--val-split",
        "0.5",
        "--checkpoint-every",
        "2",
    ];
    // Everything that has a state of its own, and patches from three threads.
    let full = [
        &simple[..],
        &[
            "--augment",
            "full",
            "--ema",
            "0.9",
            "--loaders",
            "3",
            "--freeze-encoder",
            "5",
            "--warmup",
            "3",
        ],
        &[
            "--clip-norm",
            "0.5",
            "--validate-every",
            "3",
            "--tta",
            "flips",
        ],
    ]
    .concat();
    for (name, options) in [("simple", &simple[..]), ("full", &full[..])] {
        let whole = dir.path().join(format!("{name}-whole"));
        done(&mut command("train", &data, &whole, options));
        let parts = dir.path().join(format!("{name}-parts"));
        assert!(
            weights(&whole) == killed_and_resumed("train", &data, &parts, options),
            "{name}"
        );
        assert!(!run_folder(&parts).exists());
    }
}

#[test]
fn what_is_given_goes_before_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 2);
    let model = dir.path().join("model");
    let options = [
        "--steps",
        "1",
        "--val-split",
        "0",
        "--spacing",
        "9,8,8",
        "--hu-window",
        "-200,400",
        "--patch",
        "16,16,32",
    ];
    let said = done(&mut command("train", &data, &model, &options));
    let manifest = Manifest::read(&model).unwrap();
    assert_eq!(manifest.preprocessing.spacing_mm, Some([9.0, 8.0, 8.0]));
    assert_eq!(
        (manifest.preprocessing.hu_window, manifest.patch),
        ([-200.0, 400.0], [16, 16, 32])
    );
    assert!(
        said.contains("patch 16 x 16 x 32 voxels: as given"),
        "{said}"
    );
    let out = dir.path().join("out");
    for (options, reason) in [
        (["--patch", "10,32,32"], "stride"),
        (["--hu-window", "4,2"], "increasing"),
        (["--augment", "much"], "none, light or full"),
        (["--ema", "1"], "below 1"),
        (["--focus", "2"], "from 0 to 1"),
        (["--batch", "0"], "0 is not in"),
    ] {
        let output = command("train", &data, &out, &options).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{options:?}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains(reason),
            "{options:?}: {}",
            text(&output)
        );
    }
    let said = done(&mut command(
        "train",
        &data,
        &out,
        &["--measure-loading", "20"],
    ));
    assert!(said.contains("patches/s"), "{said}");
    assert!(!out.exists() && !run_folder(&out).exists());
}

/// Largest resident memory of a training process, as the kernel counts it, in KiB.
fn peak_kib(data: &Path, out: &Path) -> u64 {
    let mut child = command(
        "train",
        data,
        out,
        &["--steps", "6", "--val-split", "0", "--loaders", "1"],
    )
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let mut peak = 0;
    loop {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(value) = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        {
            peak = value;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn memory_does_not_grow_with_the_number_of_cases() {
    let dir = tempfile::tempdir().unwrap();
    // 33 further cases of these would be 280 MiB as prepared, three bytes a voxel; two runs of the same cases differ by up
    // to 30 MiB, more on a busy machine, as freed pages go back to the system late.
    let options = PhantomOptions {
        shape: Some([96, 176, 176]),
        ..PhantomOptions::small()
    };
    let case = torso(1, &options);
    let data = dataset(dir.path(), 1);
    for number in 0..3 {
        write_scan(&image(&data, number), &case.scan, LabelFormat::NiftiGz).unwrap();
        write_label(
            &label(&data, number),
            &case.label,
            &[],
            LabelFormat::NiftiGz,
        )
        .unwrap();
    }
    let few = peak_kib(&data, &dir.path().join("few"));
    for number in 3..36 {
        std::fs::copy(image(&data, 0), image(&data, number)).unwrap();
        std::fs::copy(label(&data, 0), label(&data, number)).unwrap();
    }
    let many = peak_kib(&data, &dir.path().join("many"));
    assert!(
        many < few + 140 * 1024,
        "{few} KiB with 3 cases, {many} KiB with 36"
    );
}

/// Mean Dice of a model on cases 100 to 103, over structures and cases.
fn mean_dice(model: &Path, held_out: &Path, out: &Path) -> f64 {
    let mut infer = std::process::Command::new(env!("CARGO_BIN_EXE_fewlabel"));
    infer
        .args(["infer", "--device", "cpu", "--model"])
        .arg(model)
        .arg("-o")
        .arg(out);
    infer.args((0..4).map(|n| image(held_out, n)));
    done(&mut infer);
    let mut evaluate = std::process::Command::new(env!("CARGO_BIN_EXE_fewlabel"));
    evaluate
        .args(["evaluate", "--json", "--reference"])
        .arg(held_out.join("labelsTr"));
    let output = evaluate.arg("--prediction").arg(out).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["mean"].as_f64().unwrap()
}

/// A measurement of several minutes: `cargo test --release --test it partial -- --ignored --nocapture`.
#[test]
#[ignore]
fn partial_labels_cost_little() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, first: u64, count: usize| {
        let data = dataset(&dir.path().join(name), 0);
        for n in 0..count {
            let options = PhantomOptions {
                shape: Some([32, 64, 64]),
                ..PhantomOptions::small()
            };
            let case = torso(first + n as u64, &options);
            write_scan(&image(&data, n), &case.scan, LabelFormat::NiftiGz).unwrap();
            write_label(&label(&data, n), &case.label, &[], LabelFormat::NiftiGz).unwrap();
        }
        data
    };
    let held_out = make("held-out", 100, 4);
    let full = make("full", 0, 8);
    let partial = make("partial", 0, 8);
    // In every second case three of the organs were not annotated: they are not in the label, and are declared unknown.
    let mut training = Vec::new();
    for n in 0..8 {
        let file = format!("case_{n}.nii.gz");
        let annotated = if n % 2 == 0 {
            vec![1, 2, 3, 4, 5, 6]
        } else {
            vec![1, 4, 5]
        };
        change_label(&label(&partial, n), |v| {
            if annotated.contains(&v) { v } else { 0 }
        });
        training.push(json!({"image": format!("./imagesTr/{file}"), "label": format!("./labelsTr/{file}"), "annotated_labels": annotated}));
    }
    let path = partial.join("dataset.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["training"] = training.into();
    std::fs::write(&path, index.to_string()).unwrap();
    let dice = |name: &str, data: &Path| {
        let model = dir.path().join(format!("{name}-model"));
        done(&mut command(
            "train",
            data,
            &model,
            &["--steps", "600", "--val-split", "0"],
        ));
        mean_dice(&model, &held_out, &dir.path().join(format!("{name}-found")))
    };
    let (complete, incomplete) = (dice("full", &full), dice("partial", &partial));
    println!("mean Dice with full labels {complete:.4}, with partial labels {incomplete:.4}");
    assert!(incomplete > complete - 0.02, "{complete} {incomplete}");
}
