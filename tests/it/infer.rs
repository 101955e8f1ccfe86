//! `fewlabel infer`: the patient decides the result, not how a file orders its voxels.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fewlabel::imaging::phantom::{PhantomOptions, torso};
use fewlabel::imaging::{Budget, Geometry, LabelFormat, Volume, read_label, read_scan, write_scan};
use fewlabel::model::{
    LabelSchema, ModelDescription, PctNetConfig, Preprocessing, create_untrained, write_model,
};
use serde_json::Value;

use crate::support::dicom::{CANARIES, SIDE, SLICES, write_series, zipped_series};

fn network() -> PctNetConfig {
    PctNetConfig {
        feature_chns: [4, 8, 16, 16, 16],
        num_heads: [2, 2, 2],
        ..PctNetConfig::pct_net_s(5, [16, 32, 32], 1)
    }
}

/// A small model with random weights that resamples to `spacing_mm` `[z, y, x]`. An untrained network answers with one
/// structure everywhere; without biases and with small running variances it answers with many, in fine detail.
fn model(dir: &Path, spacing_mm: Option<[f64; 3]>) -> PathBuf {
    let labels = LabelSchema::from_list("a,b,c,d").unwrap();
    let raw = dir.join("raw");
    let manifest = create_untrained(&raw, "test", &network(), &labels, 1).unwrap();
    let mut weights = manifest.read_weights(&raw).unwrap();
    for (name, tensor) in &mut weights {
        match name.rsplit('.').next().unwrap() {
            "bias" => tensor.values.fill(0.0),
            "running_var" => tensor.values.fill(0.05),
            _ => {}
        }
    }
    let preprocessing = Preprocessing {
        spacing_mm,
        hu_window: [-200.0, 300.0],
    };
    let description = ModelDescription {
        preprocessing,
        trained: true,
        ..manifest.model
    };
    let made = dir.join("model");
    write_model(&made, &description, &weights).unwrap();
    made
}

fn infer(model: &Path, images: &[PathBuf], out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewlabel"));
    command
        .arg("infer")
        .arg("--model")
        .arg(model)
        .args(images)
        .arg("-o")
        .arg(out);
    command
        .args(["--device", "cpu", "--json"])
        .output()
        .unwrap()
}

fn done(output: &Output) -> Value {
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The same patient with array axis `a` taken from axis `order[a]`, backwards where `flips[a]`.
fn stored<T: Copy>(volume: &Volume<T>, order: [usize; 3], flips: [bool; 3]) -> Volume<T> {
    let (shape, steps) = (volume.geometry.shape(), volume.geometry.steps_lps_mm());
    let new_shape = order.map(|axis| shape[axis]);
    let mut first = [0; 3];
    let mut new_steps = [[0.0; 3]; 3];
    for a in 0..3 {
        let sign = if flips[a] { -1.0 } else { 1.0 };
        new_steps[a] = steps[order[a]].map(|mm| sign * mm);
        first[order[a]] = if flips[a] { shape[order[a]] - 1 } else { 0 };
    }
    let origin = volume.geometry.to_world(first.map(|index| index as f64));
    let geometry = Geometry::new(new_shape, origin, new_steps).unwrap();
    let mut voxels = Vec::with_capacity(volume.voxels.len());
    for z in 0..new_shape[0] {
        for y in 0..new_shape[1] {
            for x in 0..new_shape[2] {
                let mut source = [0; 3];
                for (a, index) in [z, y, x].into_iter().enumerate() {
                    source[order[a]] = if flips[a] {
                        new_shape[a] - 1 - index
                    } else {
                        index
                    };
                }
                voxels
                    .push(volume.voxels[(source[0] * shape[1] + source[1]) * shape[2] + source[2]]);
            }
        }
    }
    Volume::new(geometry, voxels).unwrap()
}

fn scan(seed: u64, shape: [usize; 3], max_tilt_degrees: f64) -> Volume<f32> {
    let options = PhantomOptions {
        shape: Some(shape),
        random_orientation: false,
        max_tilt_degrees,
        noise_hu: None,
    };
    torso(seed, &options).scan
}

fn label(path: &Path) -> Volume<u16> {
    let mut file = read_label(path, &Budget::default()).unwrap();
    Volume::new(file.geometry, file.layers.swap_remove(0)).unwrap()
}

#[test]
fn all_48_orders_of_one_patient_give_the_same_label_in_the_world() {
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    // Tilted, so that no axis is exactly one of the world's; resampled and not; larger than one window.
    for (seed, spacing_mm) in [(1, None), (2, Some([7.5, 8.0, 9.0]))] {
        let dir = tempfile::tempdir().unwrap();
        let model = model(dir.path(), spacing_mm);
        let scan = scan(seed, [20, 44, 40], 12.0);
        let mut images = Vec::new();
        let mut ways = Vec::new();
        for order in orders {
            for number in 0..8 {
                let flips = [0, 1, 2].map(|axis| number >> axis & 1 == 1);
                let path = dir.path().join(format!("{}.nii", images.len()));
                write_scan(&path, &stored(&scan, order, flips), LabelFormat::Nifti).unwrap();
                images.push(path);
                ways.push((order, flips));
            }
        }
        let out = dir.path().join("labels");
        let report = done(&infer(&model, &images, &out));
        assert_eq!(report["images"].as_array().unwrap().len(), 48);
        let file = |n: usize| out.join(format!("{n}.nii.gz"));
        let first = label(&file(0));
        let share = |value| {
            first.voxels.iter().filter(|v| **v == value).count() as f64 / first.voxels.len() as f64
        };
        let present = (0..5).filter(|value| share(*value) > 0.01).count();
        assert!(
            present >= 3,
            "the label must not be constant for this test to see anything"
        );
        for (n, (order, flips)) in ways.iter().enumerate() {
            let expected = stored(&first, *order, *flips);
            let found = label(&file(n));
            assert!(
                found.voxels == expected.voxels,
                "order {order:?} flips {flips:?} gives another label"
            );
            let input = read_scan(&images[n], &Budget::default())
                .unwrap()
                .volume
                .geometry;
            assert_eq!(
                found.geometry, input,
                "the grid of the label is that of its image"
            );
            assert!(
                found.geometry.same_grid(&expected.geometry, 1e-3),
                "order {order:?} flips {flips:?}"
            );
        }
    }
}

#[test]
fn the_grid_is_that_of_the_scan_and_the_result_is_repeatable() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), Some([6.0, 5.0, 7.0]));
    // Smaller than the window in some or all axes, single voxels and slices, and larger.
    let shapes = [
        [1, 1, 1],
        [1, 30, 20],
        [5, 7, 9],
        [3, 70, 20],
        [17, 33, 31],
        [40, 16, 16],
    ];
    for (n, shape) in shapes.into_iter().enumerate() {
        for (suffix, format) in [
            (".nii.gz", LabelFormat::NiftiGz),
            (".nrrd", LabelFormat::Nrrd),
        ] {
            let image = dir.path().join(format!("scan{n}{suffix}"));
            write_scan(&image, &scan(7, shape, 9.0), format).unwrap();
            let out = |name: &str| dir.path().join(format!("{name}{n}{suffix}"));
            let report = done(&infer(&model, std::slice::from_ref(&image), &out("a")));
            let entry = &report["images"][0];
            assert_eq!(report["device"], "cpu");
            for stage in ["read", "prepare", "network", "finish", "write", "total"] {
                assert!(entry["seconds"][stage].as_f64().unwrap() >= 0.0, "{stage}");
            }
            done(&infer(&model, std::slice::from_ref(&image), &out("b")));
            assert!(
                std::fs::read(out("a")).unwrap() == std::fs::read(out("b")).unwrap(),
                "{shape:?}{suffix}"
            );
            let input = read_scan(&image, &Budget::default())
                .unwrap()
                .volume
                .geometry;
            let found = label(&out("a"));
            assert_eq!(input.shape(), shape);
            assert_eq!(found.geometry, input, "{shape:?}{suffix}");
            assert!(found.voxels.iter().all(|value| *value <= 4));
        }
    }
}

#[test]
fn a_dicom_series_is_one_image_as_folder_and_as_zip() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), None);
    let (series, zip) = (dir.path().join("series"), dir.path().join("zipped.zip"));
    write_series(&series, 5);
    std::fs::write(&zip, zipped_series(5)).unwrap();
    let out = dir.path().join("labels");
    let output = infer(&model, &[series, zip], &out);
    assert_eq!(done(&output)["images"].as_array().unwrap().len(), 2);
    let [a, b] = ["series", "zipped"].map(|name| label(&out.join(format!("{name}.nii.gz"))));
    assert_eq!(a.geometry.shape(), [SLICES, SIDE, SIDE]);
    assert!(a == b, "one patient, one result");
    for said in [output.stdout, output.stderr] {
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(
            !CANARIES.iter().any(|canary| said.contains(canary)),
            "{said}"
        );
    }
}

#[test]
fn air_is_background_without_asking_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), None);
    let mut air = scan(1, [20, 40, 40], 0.0);
    air.voxels.fill(-1000.0);
    let image = dir.path().join("air.nii.gz");
    write_scan(&image, &air, LabelFormat::NiftiGz).unwrap();
    let out = dir.path().join("label.nii.gz");
    let report = done(&infer(&model, &[image], &out));
    assert_eq!(report["images"][0]["windows"], 0);
    assert!(report["images"][0]["windows_skipped"].as_u64().unwrap() > 0);
    assert!(label(&out).voxels.iter().all(|value| *value == 0));
}

#[test]
fn bad_input_fails_with_its_reason_and_spoils_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), None);
    let good = dir.path().join("good.nii.gz");
    write_scan(&good, &scan(1, [8, 16, 16], 0.0), LabelFormat::NiftiGz).unwrap();
    let whole = std::fs::read(&good).unwrap();
    let bad = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let images = [
        bad("text.nii.gz", b"no image"),
        bad("cut.nii.gz", &whole[..whole.len() / 2]),
        bad("empty.nrrd", b""),
        dir.path().join("no-such-file.nii.gz"),
        good.clone(),
    ];
    let out = dir.path().join("labels");
    let output = infer(&model, &images, &out);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            report["images"].as_array().unwrap().len(),
            report["failed"].as_array().unwrap().len()
        ),
        (1, 4)
    );
    for failure in report["failed"].as_array().unwrap() {
        assert!(failure["message"].as_str().unwrap().len() > 10, "{failure}");
    }
    let left: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["good.nii.gz"], "nothing is left of the refused ones");

    let fails = |output: Output, code: i32, word: &str| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{word}: {text}");
        assert!(
            text.contains(word) && !text.contains("panicked"),
            "{word}: {text}"
        );
        assert!(output.stdout.is_empty(), "{word}");
    };
    let two = [good.clone(), good.clone()];
    fails(
        infer(&model, &two, &dir.path().join("one.nii.gz")),
        2,
        "--out",
    );
    fails(
        infer(&dir.path().join("none"), std::slice::from_ref(&good), &out),
        1,
        "none",
    );
    fails(infer(&model, &[], &out), 2, "IMAGE");
    let mut weights = std::fs::read(model.join("weights.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(model.join("weights.safetensors"), &weights).unwrap();
    fails(
        infer(&model, std::slice::from_ref(&good), &out),
        1,
        "SHA-256",
    );
    std::fs::write(model.join("manifest.json"), b"{").unwrap();
    fails(infer(&model, &[good], &out), 1, "manifest.json");
}
