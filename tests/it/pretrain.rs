//! `fewlabel pretrain` and what `fewlabel train` makes of its result; both survive a kill.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use fewlabel::imaging::phantom::{ORGANS, PhantomOptions, torso};
use fewlabel::imaging::{LabelFormat, write_label, write_scan};
use fewlabel::model::Manifest;
use serde_json::Value;

use crate::support::dicom::{CANARIES, write_series, zipped_series};

/// Phantoms in the layout of the Medical Segmentation Decathlon.
pub fn dataset(dir: &Path, cases: u64) -> PathBuf {
    let data = dir.join("data");
    for folder in ["imagesTr", "labelsTr"] {
        std::fs::create_dir_all(data.join(folder)).unwrap();
    }
    for seed in 0..cases {
        let options = PhantomOptions {
            shape: Some([20, 40, 40]),
            ..PhantomOptions::small()
        };
        let case = torso(seed, &options);
        let file = |folder: &str| data.join(folder).join(format!("case_{seed}.nii.gz"));
        write_scan(&file("imagesTr"), &case.scan, LabelFormat::NiftiGz).unwrap();
        write_label(&file("labelsTr"), &case.label, &[], LabelFormat::NiftiGz).unwrap();
    }
    let names = ORGANS.iter().enumerate().map(|(n, name)| (n + 1, *name));
    let mut labels = serde_json::json!({"0": "background"});
    for (value, name) in names {
        labels[value.to_string()] = name.into();
    }
    let json = serde_json::json!({"labels": labels}).to_string();
    std::fs::write(data.join("dataset.json"), json).unwrap();
    data
}

pub fn command(name: &str, data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewlabel"));
    command
        .arg(name)
        .arg("--data")
        .arg(data)
        .arg("--out")
        .arg(out);
    command.args(["--device", "cpu", "--seed", "5"]).args(more);
    command
}

pub fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

pub fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    text(&output)
}

pub fn weights(model: &Path) -> Vec<u8> {
    std::fs::read(Manifest::weights_path(model)).unwrap()
}

pub fn run_folder(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".run");
    name.into()
}

#[test]
fn dicom_series_are_learned_from_as_folders_and_zips() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["folder", "zip"] {
        let (archive, model) = (
            dir.path().join(kind),
            dir.path().join(format!("model-{kind}")),
        );
        std::fs::create_dir(&archive).unwrap();
        match kind {
            "folder" => write_series(&archive.join("study/series"), 6),
            _ => std::fs::write(archive.join("series.zip"), zipped_series(6)).unwrap(),
        }
        let options = ["--steps", "2", "--batch", "1", "--val-split", "0"];
        let said = done(&mut command("pretrain", &archive, &model, &options));
        assert!(!said.contains("skipped"), "{said}");
        assert!(
            !CANARIES.iter().any(|canary| said.contains(canary)),
            "{said}"
        );
        assert!(Manifest::read(&model).unwrap().trained);
    }
}

#[test]
fn a_folder_of_scans_becomes_a_model_to_start_from() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 6);
    std::fs::write(data.join("imagesTr/broken.nii.gz"), b"no image").unwrap();
    let model = dir.path().join("pretrained");
    let options = [
        "--steps",
        "8",
        "--batch",
        "2",
        "--val-split",
        "0.3",
        "--validation-samples",
        "4",
    ];
    let said = done(&mut command("pretrain", &data, &model, &options));
    assert!(said.contains("skipped imagesTr/broken.nii.gz"), "{said}");
    assert!(
        said.contains("samples/s") && said.contains("waited"),
        "{said}"
    );

    let manifest = Manifest::read(&model).unwrap();
    assert_eq!(
        manifest.labels.names(),
        ["blend_1", "blend_2", "blend_3", "blend_4"]
    );
    assert_eq!((manifest.patch, manifest.trained), ([16, 32, 32], true));
    assert_eq!(manifest.lineage.made_by, "pretrained");
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(run_folder(&model).join(name)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let skipped = lines("scans.jsonl");
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert_eq!(
        (&skipped[0]["scan"], &skipped[0]["skipped"]),
        (&"imagesTr/broken.nii.gz".into(), &true.into())
    );
    let curves = lines("curves.jsonl");
    assert_eq!(
        curves.iter().filter(|line| line["loss"].is_f64()).count(),
        8
    );
    let validated: Vec<_> = curves
        .iter()
        .filter(|line| line["pseudo_dice"].is_array())
        .collect();
    assert_eq!(validated.last().unwrap()["step"], 8);
    assert_eq!(validated[0]["pseudo_dice"].as_array().unwrap().len(), 5);

    // Fine-tuning takes everything but the heads, and the same mapping of Hounsfield units.
    let init = model.to_str().unwrap();
    let options = ["--init", init, "--steps", "2", "--val-split", "0"];
    std::fs::remove_file(data.join("imagesTr/broken.nii.gz")).unwrap();
    let tuned = dir.path().join("tuned");
    let said = done(&mut command("train", &data, &tuned, &options));
    assert!(
        said.contains("8 started afresh"),
        "four heads of weight and bias: {said}"
    );
    let child = Manifest::read(&tuned).unwrap();
    assert_eq!(child.preprocessing, manifest.preprocessing);
    assert_eq!(
        (child.patch, child.labels.names().len()),
        (manifest.patch, ORGANS.len())
    );
    assert_eq!(
        child.lineage.parent_sha256.as_ref(),
        Some(&manifest.weights_sha256)
    );

    let scratch = dir.path().join("scratch");
    let said = done(command("train", &data, &scratch, &options).arg("--from-scratch"));
    assert!(!said.contains("tensors taken"), "{said}");
    let child = Manifest::read(&scratch).unwrap();
    assert_eq!(
        (&child.preprocessing, child.patch),
        (&manifest.preprocessing, manifest.patch)
    );
    assert_eq!(child.network, Manifest::read(&tuned).unwrap().network);
    assert_eq!(child.lineage.parent_sha256, None);
    assert!(weights(&scratch) != weights(&tuned));
    assert!(
        !run_folder(&scratch).exists(),
        "nothing is left of a finished training"
    );
}

/// Kills the run somewhere after its first checkpoint, goes on, and returns the weights.
pub fn killed_and_resumed(name: &str, data: &Path, out: &Path, options: &[&str]) -> Vec<u8> {
    let mut child = command(name, data, out, options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let checkpoint = run_folder(out).join("checkpoint.safetensors");
    while !checkpoint.exists() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it saved anything"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // So many further lines of its curve come before the kill, which is then somewhere in a step, a save or a validation.
    let curve = curve_of(name, out);
    let lines = || std::fs::read_to_string(&curve).map_or(0, |text| text.lines().count());
    let random = RandomState::new().build_hasher().finish() % 4;
    let until = lines() + random as usize;
    while lines() < until && checkpoint.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("killed after {} lines of {}", lines(), curve.display());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists(), "a run that was killed leaves no model");
    // Without --resume the saved run is not overwritten.
    let output = command(name, data, out, options).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("--resume"), "{}", text(&output));
    let said = done(command(name, data, out, options).arg("--resume"));
    assert!(said.contains("going on after step"), "{said}");
    weights(out)
}

fn curve_of(name: &str, out: &Path) -> PathBuf {
    match name {
        "train" => out.with_extension("training.jsonl"),
        _ => run_folder(out).join("curves.jsonl"),
    }
}

#[test]
fn a_killed_pretraining_goes_on_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 4);
    let options = [
        "--steps",
        "12",
        "--batch",
        "1",
        "--validation-samples",
        "0",
        "--checkpoint-every",
        "2",
    ];
    let whole = dir.path().join("whole");
    done(&mut command("pretrain", &data, &whole, &options));
    let parts = killed_and_resumed("pretrain", &data, &dir.path().join("parts"), &options);
    assert!(weights(&whole) == parts);
}

#[test]
fn wrong_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let out = dir.path().join("out");
    for (options, code, reason) in [
        (&[][..], 1, "no scan found"),
        (&["--patch", "16,32"], 2, "three values"),
        (&["--scheme", "stars"], 2, "blocks or boxes"),
        (&["--batch", "0"], 2, "0 is not in"),
        (&["--val-split", "1"], 2, "below 1"),
    ] {
        let output = command("pretrain", &empty, &out, options).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{options:?}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains(reason),
            "{options:?}: {}",
            text(&output)
        );
    }
    let data = dataset(dir.path(), 1);
    let output = command("pretrain", &data, &out, &["--patch", "10,32,32"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("stride"), "{}", text(&output));
    assert!(!out.exists() && !run_folder(&out).exists());
}
