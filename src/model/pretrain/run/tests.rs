use super::*;
use crate::imaging::phantom::{PhantomOptions, torso};
use crate::imaging::{LabelFormat, Volume, orientation, resample, write_scan};
use crate::model::Spacing;
use crate::model::engine::DeviceChoice;
use crate::model::infer::prepare;
use crate::model::manifest::Preprocessing;
use crate::model::pct_net::PctNetConfig;
use crate::model::precision::PrecisionChoice;
use crate::model::pretrain::{PretrainOptions, find_scans};
use crate::model::train::Schedule;
use crate::model::volume_fusion::Scheme;

const PATCH: [usize; 3] = [8, 16, 16];

/// Four phantoms of 16 x 32 x 32 voxels.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..4 {
        let options = PhantomOptions {
            shape: Some([16, 32, 32]),
            ..PhantomOptions::small()
        };
        let path = dir.path().join(format!("p{seed}.nii.gz"));
        write_scan(&path, &torso(seed, &options).scan, LabelFormat::NiftiGz).unwrap();
    }
    dir
}

fn request(data: &Path, out: PathBuf, steps: usize) -> PretrainRequest {
    let mut scans = find_scans(data, 1).unwrap();
    let validation = scans.split_off(3);
    PretrainRequest {
        name: "test".to_owned(),
        // Dropout, so that the masks have to be the same ones after an interruption.
        network: PctNetConfig {
            feature_chns: [4, 4, 8, 8, 8],
            num_heads: [2, 2, 2],
            dropout: [0.1; 5],
            drop_path: 0.2,
            ..PctNetConfig::pct_net_s(5, PATCH, 1)
        },
        scans,
        validation,
        out,
        options: PretrainOptions {
            steps,
            batch: 2,
            accumulate: 2,
            learning_rate: 2e-3,
            weight_decay: 1e-5,
            schedule: Schedule::Polynomial,
            seed: 3,
            fusion: FusionOptions {
                scheme: Scheme::Blocks,
                classes: 5,
                patch: PATCH,
            },
            layout: Layout {
                visits: 2,
                samples: 5,
            },
            spacing: Spacing::Own,
            hu_window: None,
            body_crop: false,
        },
        validate_every: 3,
        validation_samples: 4,
        checkpoint_every: 0,
        loaders: 2,
        resume: false,
        device: DeviceChoice::Cpu,
        precision: PrecisionChoice::Auto,
    }
}

fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(Manifest::weights_path(out)).unwrap()
}

/// Stops after `step` steps in all; 0 runs to the end.
fn run(request: &PretrainRequest, stop_after: usize) -> PretrainReport {
    pretrain(request, &mut |event| match event {
        PretrainEvent::Step { step, .. } if step == stop_after => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .unwrap()
}

#[test]
fn an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one() {
    let data = folder();
    let dir = tempfile::tempdir().unwrap();
    let whole = request(data.path(), dir.path().join("whole"), 7);
    let report = run(&whole, 0);
    assert_eq!(report.steps, 7);
    assert!(report.manifest.is_some());

    let mut parts = request(data.path(), dir.path().join("parts"), 7);
    parts.loaders = 1;
    // A validation that is due when the run is stopped is not made; so it is stopped elsewhere.
    for stop_after in [2, 4, 5] {
        let report = run(&parts, stop_after);
        assert_eq!(
            (report.steps, report.manifest.is_none()),
            (stop_after, true)
        );
        assert!(!parts.out.exists());
        parts.resume = true;
    }
    assert!(run(&parts, 0).manifest.is_some());
    assert!(weights(&whole.out) == weights(&parts.out));

    let curves = |out: &Path| {
        let text = std::fs::read_to_string(run_folder(out).join("curves.jsonl")).unwrap();
        let of = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            (
                line["step"].clone(),
                line["loss"].clone(),
                line["mean_pseudo_dice"].clone(),
            )
        };
        text.lines().map(of).collect::<Vec<_>>()
    };
    assert_eq!(curves(&whole.out), curves(&parts.out));
    let validated = curves(&whole.out)
        .into_iter()
        .filter(|point| !point.2.is_null());
    assert_eq!(
        validated.map(|point| point.0).collect::<Vec<_>>(),
        [3, 6, 7]
    );
    assert!(
        !run_folder(&parts.out)
            .join("checkpoint.safetensors")
            .exists()
    );
}

#[test]
fn a_run_that_is_there_is_neither_overwritten_nor_mixed_with_another() {
    let data = folder();
    let dir = tempfile::tempdir().unwrap();
    let mut request = request(data.path(), dir.path().join("out"), 4);
    run(&request, 1);
    let fails = |request: &PretrainRequest| {
        pretrain(request, &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
    };
    assert!(fails(&request).contains("--resume"), "{}", fails(&request));
    request.resume = true;
    request.options.learning_rate = 3e-3;
    assert!(
        fails(&request).contains("learning_rate"),
        "{}",
        fails(&request)
    );
    request.options.learning_rate = 2e-3;
    request.scans.pop();
    assert!(
        fails(&request).contains("\"scans\": 3"),
        "{}",
        fails(&request)
    );
    std::fs::create_dir(&request.out).unwrap();
    assert!(
        fails(&request).contains("never overwritten"),
        "{}",
        fails(&request)
    );
}

#[test]
fn learning_lowers_the_loss_and_makes_no_use_of_validation_scans() {
    let data = folder();
    let dir = tempfile::tempdir().unwrap();
    let mut request = request(data.path(), dir.path().join("out"), 60);
    request.options.accumulate = 1;
    request.options.learning_rate = 5e-3;
    request.network.dropout = [0.0; 5];
    request.network.drop_path = 0.0;
    let mut losses = Vec::new();
    pretrain(&request, &mut |event| {
        if let PretrainEvent::Step { loss, .. } = event {
            losses.push(loss);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&losses[..10]), mean(&losses[50..]));
    assert!(last < first - 0.02, "{first} {last}");

    let (kept, other) = (weights(&request.out), dir.path().join("other"));
    request.out = other;
    request.validation.clear();
    run(&request, 0);
    assert!(kept == weights(&request.out));
}

#[test]
fn pretraining_and_inference_map_hounsfield_units_alike() {
    let preprocessing = Preprocessing {
        spacing_mm: Some([12.0, 9.0, 10.0]),
        hu_window: [-300.0, 700.0],
    };
    let data = folder();
    let dir = tempfile::tempdir().unwrap();
    let mut request = request(data.path(), dir.path().join("out"), 1);
    request.options.spacing = Spacing::Millimetres([12.0, 9.0, 10.0]);
    request.options.hu_window = Some(preprocessing.hu_window);
    let manifest = run(&request, 0).manifest.unwrap();
    assert_eq!(manifest.preprocessing, preprocessing);

    let path = &request.scans[0].path;
    let source = request.source(
        request.scans.clone(),
        manifest.preprocessing.clone(),
        1,
        false,
    );
    let (learned, _) = source.reading.read(path).unwrap();
    let scan = read(path);
    let turned = orientation::to_lps(&scan.geometry).apply(&scan);
    let inferred = prepare(turned.clone(), &manifest.preprocessing).unwrap();
    assert_eq!(learned, inferred);
    let grid = resample::grid_with_spacing(&turned.geometry, [12.0, 9.0, 10.0]).unwrap();
    let hu = resample::linear(&turned, &grid, -300.0);
    for (value, hu) in learned.voxels.iter().zip(&hu.voxels) {
        let expected = (hu.clamp(-300.0, 700.0) + 300.0) / 1000.0 * 2.0 - 1.0;
        assert!((value - expected).abs() < 1e-5);
    }
}

fn read(path: &Path) -> Volume<f32> {
    crate::imaging::read_scan(path, &crate::imaging::Budget::default())
        .unwrap()
        .volume
}

#[test]
fn the_rate_is_linear_in_the_patches_of_a_step() {
    assert_eq!(PretrainOptions::linear_rate(4, 1), 1e-3);
    assert_eq!(PretrainOptions::linear_rate(2, 2), 1e-3);
    assert_eq!(PretrainOptions::linear_rate(2, 1), 5e-4);
    assert_eq!(PretrainOptions::linear_rate(8, 4), 8e-3);
}
