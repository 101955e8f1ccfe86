//! Any bytes as a Segmentation object or RT Structure Set: read as labels or refused.
#![no_main]

use std::sync::LazyLock;

use fewlabel::imaging::{Geometry, read_label, read_label_of};
use fewlabel_fuzz::{BUDGET, folder_of, report_panics};
use libfuzzer_sys::fuzz_target;

/// A grid for contours, around those of the seeds.
static GRID: LazyLock<Geometry> = LazyLock::new(|| {
    Geometry::from_ijk(
        [48, 48, 48],
        [-384.0, -384.0, -480.0],
        [[16.0, 0.0, 0.0], [0.0, 16.0, 0.0], [0.0, 0.0, 20.0]],
    )
    .expect("a plain grid")
});

fuzz_target!(init: report_panics(), |file: &[u8]| {
    let folder = folder_of(file);
    let path = folder.path().join("0000.dcm");
    let read = [
        read_label(&path, &BUDGET),
        read_label_of(&path, &GRID, &BUDGET),
    ];
    for labels in read.into_iter().flatten() {
        for layer in &labels.layers {
            assert_eq!(layer.len(), labels.geometry.voxel_count());
        }
        for segment in &labels.segments {
            assert!(segment.layer < labels.layers.len());
        }
    }
});
