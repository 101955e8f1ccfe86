//! What is written comes back; what is damaged is refused and never harms.

use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;

use super::geometry::tests::{any_geometry, any_straight_geometry};
use super::*;

const FORMATS: [LabelFormat; 6] = [
    LabelFormat::Nifti,
    LabelFormat::NiftiGz,
    LabelFormat::Nrrd,
    LabelFormat::NrrdGz,
    LabelFormat::SegNrrd,
    LabelFormat::SegNrrdGz,
];

fn label_on(geometry: Geometry, seed: u64, highest: u16) -> Volume<u16> {
    let rng = crate::rng::Rng::new(seed);
    let voxels = (0..geometry.voxel_count() as u64)
        .map(|n| (rng.at(n) % (u64::from(highest) + 1)) as u16)
        .collect();
    Volume::new(geometry, voxels).unwrap()
}

/// A folder and a path in it.
fn place(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    (folder, path)
}

/// Positions agree to a ten-thousandth of a voxel over the whole grid.
fn same_place(a: &Geometry, b: &Geometry) -> bool {
    let smallest = a.spacing_mm().into_iter().fold(f64::INFINITY, f64::min);
    // NIfTI-1 stores single precision: a position of 1 m is known to 6e-5 mm.
    a.same_grid(b, (1e-4 * smallest).max(2e-4))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn labels_come_back(
        geometry in prop_oneof![any_geometry(9), any_straight_geometry(9)],
        seed in any::<u64>(),
        highest in prop_oneof![Just(1u16), Just(255), Just(256), Just(65535)],
    ) {
        let label = label_on(geometry, seed, highest);
        for format in FORMATS {
            let (_folder, path) = place("label.bin");
            write_label(&path, &label, &[], format).unwrap();
            let back = read_label(&path, &Budget::default()).unwrap();
            prop_assert_eq!(&back.layers, &vec![label.voxels.clone()], "{:?}", format);
            prop_assert!(same_place(&back.geometry, &geometry), "{format:?}: {:?} came back as {:?}", geometry, back.geometry);
            prop_assert_eq!(back.geometry.is_sheared(), !back.warnings.is_empty(), "{:?}", back.warnings);
        }
    }

    #[test]
    fn scans_come_back_as_int16(geometry in any_straight_geometry(9), seed in any::<u64>()) {
        let mut rng = crate::rng::Rng::new(seed);
        let voxels = (0..geometry.voxel_count()).map(|_| rng.range(-40000.0, 40000.0) as f32).collect();
        let scan = Volume::new(geometry, voxels).unwrap();
        for format in [LabelFormat::Nifti, LabelFormat::NiftiGz, LabelFormat::Nrrd, LabelFormat::NrrdGz] {
            let (_folder, path) = place("scan.bin");
            write_scan(&path, &scan, format).unwrap();
            let back = read_scan(&path, &Budget::default()).unwrap();
            prop_assert_eq!(back.dtype.as_str(), "int16");
            prop_assert!(same_place(&back.volume.geometry, &geometry));
            for (a, b) in back.volume.voxels.iter().zip(&scan.voxels) {
                prop_assert_eq!(*a, b.round().clamp(-32768.0, 32767.0));
            }
        }
    }

    /// Any single damaged byte: refused, or read; never a panic, and never other voxels where the
    /// file carries a checksum.
    #[test]
    fn one_damaged_byte_does_no_harm(seed in any::<u64>(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let geometry = Geometry::new([3, 4, 5], [1.0, 2.0, 3.0], [[0.0, 0.0, 2.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).unwrap();
        let label = label_on(geometry, seed, 3);
        for format in FORMATS {
            let (_folder, path) = place("label.bin");
            write_label(&path, &label, &[], format).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            let back = read_label(&path, &Budget::default());
            if format == LabelFormat::NiftiGz && let Ok(back) = back {
                // Only what carries no data may change without notice: fields of the gzip header, and the bits that fill the
                // last byte before the checksum.
                prop_assert!(at < 10 || at == bytes.len() - 9, "byte {at} changed unnoticed");
                prop_assert_eq!(&back.layers[0], &label.voxels);
            }
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let geometry = Geometry::new(
        [4, 5, 6],
        [1.0, 2.0, 3.0],
        [[0.0, 0.0, 2.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
    )
    .unwrap();
    let label = label_on(geometry, 1, 3);
    for format in FORMATS {
        let (_folder, path) = place("label.bin");
        write_label(&path, &label, &[(1, "liver".to_owned())], format).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let error =
                read_label(&path, &Budget::default()).expect_err("a truncated file was read");
            assert!(
                error.to_string().len() > 15,
                "{format:?} cut at {cut}: {error}"
            );
        }
    }
}

/// A valid header and then zeros that pack a thousandfold.
#[test]
fn bombs_end_at_the_budget() {
    let (_folder, path) = place("bomb.nii.gz");
    let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let small = Volume::new(
        Geometry::new([2, 2, 2], [0.0; 3], steps).unwrap(),
        vec![1u16; 8],
    )
    .unwrap();
    write_label(&path, &small, &[], LabelFormat::Nifti).unwrap();
    let mut header = std::fs::read(&path).unwrap();
    let budget = Budget {
        max_bytes: 1 << 20,
        ..Budget::default()
    };
    let pack = |header: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(header).unwrap();
        for _ in 0..64 {
            encoder.write_all(&vec![0; 1 << 20]).unwrap();
        }
        encoder.finish().unwrap()
    };
    // Eight voxels announced, 64 MiB delivered.
    std::fs::write(&path, pack(&header)).unwrap();
    assert!(matches!(
        read_label(&path, &budget),
        Err(ImagingError::TooLarge(_))
    ));
    // 32000^3 voxels announced.
    for axis in 0..3 {
        header[42 + 2 * axis..44 + 2 * axis].copy_from_slice(&32000i16.to_le_bytes());
    }
    std::fs::write(&path, pack(&header)).unwrap();
    assert!(matches!(
        read_label(&path, &Budget::default()),
        Err(ImagingError::TooLarge(_))
    ));
    // Within the default budget, but more than the stream can hold.
    for (axis, size) in [1000i16, 1000, 1000].iter().enumerate() {
        header[42 + 2 * axis..44 + 2 * axis].copy_from_slice(&size.to_le_bytes());
    }
    std::fs::write(&path, pack(&header)).unwrap();
    assert!(matches!(
        read_label(&path, &Budget::default()),
        Err(ImagingError::Truncated { .. })
    ));
}

fn nrrd(header: &str, data: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let (folder, path) = place("case.seg.nrrd");
    let mut bytes = format!("NRRD0004\n{header}\n").into_bytes();
    bytes.extend_from_slice(data);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

const LAYERED: &str = "type: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 3 1 1\n\
    space directions: none (2,0,0) (0,2,0) (0,0,3)\nkinds: list domain domain domain\nendian: little\n\
    encoding: raw\nspace origin: (10,20,30)\n";

#[test]
fn overlapping_segments_keep_their_layers() {
    let fields = "Segment0_ID:=Segment_1\nSegment0_Name:=liver\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n\
        Segment0_Color:=0.5 0.25 1\nSegment1_ID:=Segment_2\nSegment1_Name:=lesion: big\nSegment1_LabelValue:=3\n\
        Segment1_Layer:=1\nSegmentation_ReferenceImageExtentOffset:=5 6 7\n";
    let (_folder, path) = nrrd(&format!("{LAYERED}{fields}"), &[1, 0, 1, 3, 0, 3]);
    let label = read_label(&path, &Budget::default()).unwrap();
    assert_eq!(label.layers, [[1, 1, 0], [0, 3, 3]]);
    assert_eq!(label.segments.len(), 2);
    assert_eq!(
        (label.segments[0].color, label.segments[1].color),
        (Some([0.5, 0.25, 1.0]), None)
    );
    assert_eq!(
        (
            label.segments[1].name.as_str(),
            label.segments[1].value,
            label.segments[1].layer
        ),
        ("lesion: big", 3, 1)
    );
    // The origin of the file is where its first voxel is; the offset is not added again.
    assert_eq!(label.geometry.origin_lps_mm(), [10.0, 20.0, 30.0]);
    assert_eq!(label.geometry.shape(), [1, 1, 3]);
    assert!(read_scan(&path, &Budget::default()).is_err());
}

#[test]
fn segments_without_value_and_layer_have_a_layer_each() {
    let fields = "Segment0_ID:=a\nSegment0_Name:=liver\nSegment1_ID:=b\nSegment1_Name:=spleen\n";
    let (_folder, path) = nrrd(&format!("{LAYERED}{fields}"), &[1, 0, 0, 1, 0, 0]);
    let label = read_label(&path, &Budget::default()).unwrap();
    assert_eq!(
        label
            .segments
            .iter()
            .map(|s| (s.value, s.layer))
            .collect::<Vec<_>>(),
        [(1, 0), (1, 1)]
    );
    // The same image without segments is one of two channels, which is no label map.
    let (_folder, path) = nrrd(LAYERED, &[1, 0, 0, 1, 0, 0]);
    assert!(matches!(
        read_label(&path, &Budget::default()),
        Err(ImagingError::Unsupported(_))
    ));
}

#[test]
fn broken_segments_are_refused() {
    for fields in [
        "Segment0_ID:=a\nSegment0_Layer:=2\n",
        "Segment0_ID:=a\nSegment0_LabelValue:=0\n",
        "Segment0_ID:=a\nSegment0_LabelValue:=70000\n",
        "Segment0_ID:=a\nSegment0_LabelValue:=x\n",
        "Segment0_ID:=a\nSegment0_Layer:=0\nSegment1_ID:=b\nSegment1_Layer:=0\n",
    ] {
        let (_folder, path) = nrrd(&format!("{LAYERED}{fields}"), &[0; 6]);
        assert!(
            matches!(
                read_label(&path, &Budget::default()),
                Err(ImagingError::Header { .. })
            ),
            "{fields}"
        );
    }
}

#[test]
fn written_segments_have_names_values_and_extents() {
    let steps = [[0.0, 0.0, 2.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let geometry = Geometry::new([1, 2, 3], [0.0; 3], steps).unwrap();
    let label = Volume::new(geometry, vec![0, 2, 2, 0, 0, 7]).unwrap();
    let names = [(1, "spleen".to_owned()), (2, "two\nlines".to_owned())];
    let (_folder, path) = place("out.seg.nrrd");
    write_label(&path, &label, &names, LabelFormat::SegNrrd).unwrap();
    let back = read_label(&path, &Budget::default()).unwrap();
    let segments: Vec<_> = back
        .segments
        .iter()
        .map(|s| (s.name.as_str(), s.value, s.layer))
        .collect();
    assert_eq!(
        segments,
        [("spleen", 1, 0), ("two lines", 2, 0), ("Segment_7", 7, 0)]
    );
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    for line in [
        "space: left-posterior-superior",
        "kinds: domain domain domain",
        "type: unsigned char",
        "sizes: 3 2 1",
        "Segment0_Extent:=0 -1 0 -1 0 -1",
        "Segment1_Extent:=1 2 0 0 0 0",
        "Segment2_Extent:=2 2 1 1 0 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[test]
fn other_files_are_not_opened_for_uploads() {
    let budget = Budget {
        follow_files: false,
        ..Budget::default()
    };
    let (folder, path) = place("case.nhdr");
    std::fs::write(folder.path().join("case.raw"), [1u8]).unwrap();
    let header =
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 1 1 1\nencoding: raw\ndata file: case.raw\n";
    std::fs::write(&path, header).unwrap();
    assert_eq!(read_label(&path, &Budget::default()).unwrap().layers, [[1]]);
    assert!(matches!(
        read_label(&path, &budget),
        Err(ImagingError::DataFile(_))
    ));
}

#[test]
fn bad_label_values_are_named() {
    for (text, value) in [("0 -1", "-1"), ("0 0.5", "0.5"), ("0 70000", "70000")] {
        let header = "type: double\ndimension: 3\nsizes: 2 1 1\nencoding: ascii\nspacings: 1 1 1\n";
        let (_folder, path) = nrrd(header, text.as_bytes());
        let error = read_label(&path, &Budget::default()).unwrap_err();
        assert!(
            matches!(error, ImagingError::LabelValues(_)) && error.to_string().contains(value),
            "{error}"
        );
        assert!(read_scan(&path, &Budget::default()).is_ok());
    }
}

#[test]
fn what_is_no_image_says_so() {
    let (folder, path) = place("a.nii.gz");
    for (bytes, code) in [
        (&b""[..], "unknown_format"),
        (b"hello", "unknown_format"),
        (b"\x1f\x8b", "corrupt"),
        (b"NRRD", "bad_header"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(
            read_scan(&path, &Budget::default()).unwrap_err().code(),
            code,
            "{bytes:?}"
        );
    }
    assert_eq!(
        read_scan(folder.path(), &Budget::default())
            .unwrap_err()
            .code(),
        "unknown_format"
    );
    assert_eq!(
        read_scan(&folder.path().join("none"), &Budget::default())
            .unwrap_err()
            .code(),
        "io"
    );
}

#[test]
fn a_size_that_nifti1_cannot_hold_is_refused() {
    let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let long = Volume::new(
        Geometry::new([1, 1, 40000], [0.0; 3], steps).unwrap(),
        vec![0u16; 40000],
    )
    .unwrap();
    let (folder, path) = place("long");
    assert!(write_label(&path, &long, &[], LabelFormat::NiftiGz).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(write_label(&path, &long, &[], LabelFormat::Nrrd).is_ok());
    assert!(
        write_scan(
            &path,
            &Volume::new(long.geometry, vec![0.0; 40000]).unwrap(),
            LabelFormat::SegNrrd
        )
        .is_err()
    );
}
