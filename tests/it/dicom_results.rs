//! Labels as DICOM objects, and back: every voxel returns to its place in the patient.

use std::path::Path;

use fewlabel::imaging::dicom::{self, Algorithm, ResultKind, SegmentationKind};
use fewlabel::imaging::{Budget, LabelFile, Volume, read_label, read_label_of, resample};

use crate::support::dicom::write_series;
use crate::support::shared;

fn names() -> Vec<(u16, String)> {
    ["left kidney", "right kidney", "tumour"]
        .iter()
        .zip(1..)
        .map(|(name, value)| (value, (*name).to_owned()))
        .collect()
}

fn algorithm() -> Algorithm {
    Algorithm {
        name: "marker".to_owned(),
        version: "7".to_owned(),
        sha256: "ab".repeat(32),
        made_ms: 1_700_000_000_000,
        drawn: dicom::Drawn::Automatically,
    }
}

/// Structures that no flip or exchange of axes maps onto themselves: a block at the beginning of every axis, a ring with
/// an island further on, single voxels that touch at corners, and one at the very end.
fn markers(scans: &dicom::Scans, scan: usize) -> Volume<u16> {
    let geometry = *scans.geometry(scan);
    let [nz, ny, nx] = geometry.shape();
    let mut voxels = vec![0u16; geometry.voxel_count()];
    let mut set = |z: usize, y: usize, x: usize, value| voxels[(z * ny + y) * nx + x] = value;
    for z in 0..nz.min(3) {
        for y in 1..6 {
            for x in 2..12 {
                set(z, y, x, 1);
            }
        }
    }
    for z in nz / 2..nz {
        let (cy, cx) = (ny as f64 * 0.6, nx as f64 * 0.4);
        for y in 0..ny {
            for x in 0..nx {
                let r = (y as f64 - cy).hypot(x as f64 - cx);
                if r < 2.0 || (4.0..8.0).contains(&r) {
                    set(z, y, x, 2);
                }
            }
        }
    }
    for step in 0..4 {
        set(nz / 2, ny - 2 - step, nx - 6 + step, 3);
    }
    set(nz - 1, ny - 1, nx - 1, 3);
    Volume::new(geometry, voxels).unwrap()
}

/// The labels of a file on the grid of an image, its layers put together.
fn on_grid(file: &LabelFile, grid: &fewlabel::imaging::Geometry) -> Vec<u16> {
    let mut all = vec![0u16; grid.voxel_count()];
    for layer in &file.layers {
        let volume = Volume::new(file.geometry, layer.clone()).unwrap();
        let back = resample::nearest(&volume, grid, 0);
        for (all, label) in all.iter_mut().zip(back.voxels) {
            *all = (*all).max(label);
        }
    }
    all
}

fn differences(a: &[u16], b: &[u16]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

/// Writes the markers of a series in every kind and reads them back.
fn round_trip(series: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let budget = Budget::default();
    let scans = dicom::open(series, &budget).unwrap();
    assert_eq!(scans.len(), 1, "{}", series.display());
    let labels = markers(&scans, 0);
    for kind in [
        ResultKind::Segmentation(SegmentationKind::Binary),
        ResultKind::Segmentation(SegmentationKind::LabelMap),
        ResultKind::Structures,
    ] {
        let path = folder.path().join("result.dcm");
        dicom::write_labels(&path, (&scans, 0), &labels, &names(), &algorithm(), kind).unwrap();
        let what = format!("{} as {kind:?}", series.display());
        let file = match kind {
            ResultKind::Structures => {
                assert!(read_label(&path, &budget).is_err(), "{what}");
                read_label_of(&path, &labels.geometry, &budget)
            }
            ResultKind::Segmentation(_) => read_label(&path, &budget),
        };
        let file = file.unwrap_or_else(|error| panic!("{what}: {error}"));
        let back = on_grid(&file, &labels.geometry);
        assert_eq!(differences(&back, &labels.voxels), 0, "{what}");
        let named: Vec<(u16, String)> = file
            .segments
            .iter()
            .map(|segment| (segment.value, segment.name.clone()))
            .collect();
        assert_eq!(named, names(), "{what}");
    }
}

#[test]
fn voxels_come_back_from_every_object() {
    let folder = tempfile::tempdir().unwrap();
    write_series(folder.path(), 9);
    round_trip(folder.path());
}

#[test]
fn voxels_come_back_on_every_geometry() {
    let Some(folder) = shared("data/dicom") else {
        return;
    };
    for case in [
        "baseline",
        "gantry_tilt",
        "oblique",
        "coronal",
        "sagittal",
        "prone_flipped_inplane",
        "non_square_anisotropic",
        "utf8_names",
    ] {
        round_trip(&folder.join("derived_geometry").join(case));
    }
    round_trip(&folder.join("derived_seg/legacy_converted_enhanced_ct.dcm"));
}

#[test]
fn an_uneven_scan_gets_its_labels_on_its_own_slices() {
    let Some(series) = shared("data/dicom/derived_geometry/irregular_spacing") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("result.dcm");
    let budget = Budget::default();
    let scans = dicom::open(&series, &budget).unwrap();
    // Labels at both ends, nothing between them: their planes are found again to half a slice.
    let geometry = *scans.geometry(0);
    let [nz, ny, nx] = geometry.shape();
    let voxels = (0..geometry.voxel_count()).map(|n| match n / (ny * nx) {
        z if z < nz / 3 => 1,
        z if z >= nz - nz / 4 => 2,
        _ => 0,
    });
    let labels = Volume::new(geometry, voxels.collect()).unwrap();
    for kind in [SegmentationKind::LabelMap, SegmentationKind::Binary] {
        let kind = ResultKind::Segmentation(kind);
        dicom::write_labels(&path, (&scans, 0), &labels, &names(), &algorithm(), kind).unwrap();
        let file = read_label(&path, &budget).unwrap();
        let back = on_grid(&file, &geometry);
        let wrong = differences(&back, &labels.voxels) / (ny * nx);
        assert!(wrong <= 2, "{kind:?}: {wrong} slices");
    }
}

/// Replaces the one place where these bytes stand.
fn patch(path: &Path, what: &[u8], with: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> = (0..bytes.len() - what.len())
        .filter(|&at| bytes[at..].starts_with(what))
        .collect();
    assert_eq!(places.len(), 1, "{what:?}");
    bytes[places[0]..places[0] + with.len()].copy_from_slice(with);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn objects_that_contradict_themselves_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let series = folder.path().join("series");
    write_series(&series, 9);
    let scans = dicom::open(&series, &Budget::default()).unwrap();
    let labels = markers(&scans, 0);
    let path = folder.path().join("result.dcm");
    let write = |kind| {
        dicom::write_labels(&path, (&scans, 0), &labels, &names(), &algorithm(), kind).unwrap();
    };
    // A distance of 0.1 mm makes two thousand slices of forty: refused before there is memory for them.
    let budget = Budget {
        max_voxels: 200_000,
        ..Budget::default()
    };
    write(ResultKind::Segmentation(SegmentationKind::Binary));
    assert!(read_label(&path, &budget).is_ok());
    patch(
        &path,
        b"\x18\0\x88\0DS\x02\x005 ",
        b"\x18\0\x88\0DS\x02\0.1",
    );
    let refused = read_label(&path, &budget).err().unwrap();
    assert_eq!(refused.code(), "too_large", "{refused}");
    // Two regions of one number.
    write(ResultKind::Structures);
    patch(
        &path,
        b"\x06\x30\x22\0\x02\0\0\x002 ",
        b"\x06\x30\x22\0\x02\0\0\x001 ",
    );
    let refused = read_label_of(&path, &labels.geometry, &Budget::default());
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("two regions"), "{refused}");
}

#[test]
fn an_empty_segmentation_has_one_frame() {
    let folder = tempfile::tempdir().unwrap();
    let series = folder.path().join("series");
    write_series(&series, 9);
    let budget = Budget::default();
    let scans = dicom::open(&series, &budget).unwrap();
    let geometry = *scans.geometry(0);
    let labels = Volume::new(geometry, vec![0; geometry.voxel_count()]).unwrap();
    let path = folder.path().join("result.dcm");
    for kind in [SegmentationKind::Binary, SegmentationKind::LabelMap] {
        let kind = ResultKind::Segmentation(kind);
        dicom::write_labels(&path, (&scans, 0), &labels, &names(), &algorithm(), kind).unwrap();
        let file = read_label(&path, &budget).unwrap();
        assert!(file.layers[0].iter().all(|label| *label == 0), "{kind:?}");
        assert_eq!(file.segments.len(), 3);
    }
    let other = Volume::new(geometry, vec![9; geometry.voxel_count()]).unwrap();
    let kind = ResultKind::Segmentation(SegmentationKind::Binary);
    let refused = dicom::write_labels(&path, (&scans, 0), &other, &names(), &algorithm(), kind);
    assert!(refused.is_err());
}

/// Segmentations that other programs wrote, beside the labels they were made of.
#[test]
fn segmentations_of_others_are_read() {
    let Some(folder) = shared("data/dicom/derived_seg") else {
        return;
    };
    let budget = Budget::default();
    let truth = read_label(&folder.join("truth_labels.nii.gz"), &budget).unwrap();
    for (file, exact) in [
        ("seg_binary.dcm", true),
        ("seg_binary_all_frames.dcm", true),
        ("seg_labelmap.dcm", true),
        ("seg_labelmap_rle.dcm", true),
        ("seg_fractional_probability.dcm", false),
        ("seg_fractional_rle.dcm", false),
        ("seg_fractional_jpegls.dcm", false),
    ] {
        let found = read_label(&folder.join(file), &budget)
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        let back = on_grid(&found, &truth.geometry);
        let count = truth.layers[0].iter().filter(|label| **label > 0).count();
        let wrong = differences(&back, &truth.layers[0]);
        let most = if exact { 0 } else { count / 50 };
        assert!(wrong <= most, "{file}: {wrong} of {count} voxels differ");
    }
    let overlapping = read_label(&folder.join("seg_binary_overlapping.dcm"), &budget).unwrap();
    assert!(overlapping.layers.len() > 1);
}
