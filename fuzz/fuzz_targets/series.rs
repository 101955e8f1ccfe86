//! Any bytes as the files of a folder: every scan in it is read as it was announced, and takes labels.
#![no_main]

use fewlabel::imaging::dicom::{self, Algorithm, Drawn, ResultKind, SegmentationKind};
use fewlabel::imaging::{Volume, read_label, read_label_of};
use fewlabel_fuzz::{BUDGET, folder_of, report_panics};
use libfuzzer_sys::fuzz_target;

/// Most scans of one folder that are looked at.
const SCANS: usize = 3;

fuzz_target!(init: report_panics(), |files: &[u8]| {
    let folder = folder_of(files);
    let Ok(scans) = dicom::open(folder.path(), &BUDGET) else {
        return;
    };
    for scan in 0..scans.len().min(SCANS) {
        let geometry = *scans.geometry(scan);
        let Ok(raster) = scans.read(scan) else {
            continue;
        };
        let Ok(read) = raster.into_scan() else {
            continue;
        };
        assert_eq!(read.volume.geometry, geometry);
        assert_eq!(read.volume.voxels.len(), geometry.voxel_count());
        assert!(read.volume.voxels.iter().all(|hu| hu.is_finite()));
        // Single voxels at both ends, and short pieces of rows between them.
        let voxels = (0..geometry.voxel_count()).map(|n| match n {
            0 => 1,
            n if n == geometry.voxel_count() - 1 => 2,
            n if n % 50 < 3 => 3,
            _ => 0,
        });
        let Ok(labels) = Volume::new(geometry, voxels.collect()) else {
            continue;
        };
        let names = [1, 2, 3].map(|value| (value, format!("structure {value}")));
        let by = Algorithm {
            name: "fuzz".to_owned(),
            version: "1".to_owned(),
            sha256: "00".repeat(32),
            made_ms: 1_700_000_000_000,
            drawn: Drawn::Automatically,
        };
        let path = folder.path().join(".result.dcm");
        for kind in [
            ResultKind::Segmentation(SegmentationKind::Binary),
            ResultKind::Segmentation(SegmentationKind::LabelMap),
            ResultKind::Structures,
        ] {
            if dicom::write_labels(&path, (&scans, scan), &labels, &names, &by, kind).is_err() {
                continue;
            }
            // Coordinates are written with 16 digits, so that a scan far away or of tiny voxels may not be read back.
            let _ = match kind {
                ResultKind::Segmentation(_) => read_label(&path, &BUDGET),
                ResultKind::Structures => read_label_of(&path, &geometry, &BUDGET),
            };
        }
    }
});
