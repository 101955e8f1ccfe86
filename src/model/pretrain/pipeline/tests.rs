use super::*;
use crate::imaging::phantom::{PhantomOptions, torso};
use crate::imaging::{LabelFormat, write_scan};
use crate::model::manifest::Preprocessing;
use crate::model::volume_fusion::{FusionOptions, Sample};
use std::path::Path;

fn folder(count: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..count {
        let options = PhantomOptions {
            shape: Some([12, 24, 24]),
            ..PhantomOptions::small()
        };
        let path = dir.path().join(format!("p{seed}.nii.gz"));
        write_scan(&path, &torso(seed, &options).scan, LabelFormat::NiftiGz).unwrap();
    }
    dir
}

fn source(dir: &Path, scheme: Scheme) -> Source {
    let patch = [8, 12, 12];
    let options = FusionOptions {
        scheme,
        classes: 5,
        patch,
    };
    Source {
        scans: super::super::find_scans(dir, 1).unwrap(),
        reading: Reading {
            preprocessing: Preprocessing::default(),
            body_crop: false,
            min_sides: [2; 3],
        },
        scheme,
        generator: Generator::new(options, 3),
        layout: Layout {
            visits: 3,
            samples: 2,
        },
        seed: 3,
        on_device: false,
    }
}

fn draw(pipeline: &mut Pipeline, count: usize) -> Vec<Sample> {
    let mut next = || match pipeline.next(&mut || ControlFlow::Continue(())).unwrap() {
        ControlFlow::Continue(Fused::Made(sample)) => sample,
        ControlFlow::Continue(Fused::Drawn(_)) => panic!("the host makes them"),
        ControlFlow::Break(()) => panic!("nobody stops it"),
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn samples_do_not_depend_on_threads_or_on_where_a_run_went_on() {
    let dir = folder(4);
    for scheme in [Scheme::Blocks, Scheme::Boxes] {
        let all = draw(&mut Pipeline::start(source(dir.path(), scheme), 1, 0), 20);
        let threads = draw(&mut Pipeline::start(source(dir.path(), scheme), 3, 0), 20);
        assert!(all == threads);
        for first in [1, 5, 6, 13] {
            let rest = draw(
                &mut Pipeline::start(source(dir.path(), scheme), 2, first),
                20 - first as usize,
            );
            assert!(all[first as usize..] == rest, "from {first}");
        }
        let (a, b) = (&all[0].input, &all[1].input);
        assert_ne!(a, b);
    }
}

#[test]
fn every_scan_is_visited_once_an_epoch() {
    let dir = folder(5);
    let source = source(dir.path(), Scheme::Blocks);
    for epoch in 0..4 {
        let mut seen: Vec<usize> = (0..5)
            .map(|n| source.candidates(epoch * 5 + n)[0])
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }
    assert_ne!(source.epoch(0), source.epoch(1));
}

#[test]
fn the_two_scans_of_a_sample_are_of_two_patients() {
    let dir = folder(5);
    let mut source = source(dir.path(), Scheme::Boxes);
    for shelf in 0..10 {
        for slot in 0..3 {
            assert_ne!(source.partner(shelf, slot), slot);
        }
    }
    // Two of the three scans of a shelf are one patient's: the partner is the third one.
    source.scans.truncate(3);
    for scan in &mut source.scans[..2] {
        scan.patient = "same".to_owned();
    }
    for shelf in 0..10 {
        let patient =
            |slot: usize| &source.scans[source.candidates(shelf * 3 + slot as u64)[0]].patient;
        for slot in 0..3 {
            assert_ne!(patient(source.partner(shelf, slot)), patient(slot));
        }
    }
}

#[test]
fn what_cannot_be_read_is_named_and_left_out() {
    let dir = folder(3);
    std::fs::write(dir.path().join("broken.nii.gz"), b"no image").unwrap();
    let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let geometry = crate::imaging::Geometry::new([12, 24, 24], [0.0; 3], steps).unwrap();
    let constant = Volume::new(geometry, vec![40.0; 12 * 24 * 24]).unwrap();
    let path = dir.path().join("constant.nii");
    write_scan(&path, &constant, LabelFormat::Nifti).unwrap();
    let mut pipeline = Pipeline::start(source(dir.path(), Scheme::Blocks), 2, 0);
    draw(&mut pipeline, 60);
    let mut notes = pipeline.news();
    notes.sort_by(|a, b| a.scan.cmp(&b.scan));
    let names: Vec<_> = notes
        .iter()
        .map(|note| (note.scan.as_str(), note.skipped))
        .collect();
    assert_eq!(names, [("broken.nii.gz", true), ("constant.nii", true)]);
    assert!(notes[1].reason.contains("one value"), "{}", notes[1].reason);
    assert!(pipeline.news().is_empty(), "each is named once");
}

#[test]
fn without_a_usable_scan_it_fails_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broken.nii.gz"), b"no image").unwrap();
    let mut pipeline = Pipeline::start(source(dir.path(), Scheme::Blocks), 2, 0);
    let error = pipeline
        .next(&mut || ControlFlow::Continue(()))
        .unwrap_err();
    assert!(error.to_string().contains("none of the scans"), "{error}");
}

#[test]
fn a_waiting_consumer_can_leave() {
    let dir = folder(1);
    let mut pipeline = Pipeline::start(source(dir.path(), Scheme::Blocks), 1, 0);
    let left = (0..1000).any(|_| {
        pipeline
            .next(&mut || ControlFlow::Break(()))
            .unwrap()
            .is_break()
    });
    // Either it left while the first shelf was being made, or every sample was there in time.
    assert!(left || pipeline.stats().samples >= 1000);
}
