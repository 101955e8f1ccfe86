//! The rules of the header and of the encodings, on files made here.

use std::io::Write;
use std::path::PathBuf;

use crate::imaging::{Budget, ImagingError, Raster, read_raster};

const VALUES: [i16; 6] = [-1000, 0, 1, 2, 3, 400];
const GRID: &str = "space: left-posterior-superior\nspace directions: (2,0,0) (0,2,0) (0,0,5)\nspace origin: (10,20,30)\n";

fn little() -> Vec<u8> {
    VALUES.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn saved(fields: &str, data: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any.name");
    let mut bytes = format!("NRRD0005\n{fields}\n").into_bytes();
    bytes.extend_from_slice(data);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(fields: &str, data: &[u8]) -> Result<Raster, ImagingError> {
    let (_folder, path) = saved(fields, data);
    read_raster(&path, &Budget::default())
}

/// int16, 1 x 2 x 3, with further fields.
fn int16(fields: &str) -> String {
    format!("type: short\ndimension: 3\nsizes: 1 2 3\n{fields}")
}

fn values(raster: &Raster) -> Vec<f64> {
    raster.values().collect()
}

#[test]
fn every_encoding_gives_the_same_voxels() {
    let expected: Vec<f64> = VALUES.iter().map(|v| f64::from(*v)).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&little()).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&little()).unwrap();
    let hex: String = little()
        .iter()
        .map(|byte| format!("{byte:02X}\n"))
        .collect();
    let big: Vec<u8> = VALUES.iter().flat_map(|v| v.to_be_bytes()).collect();
    let cases: [(&str, Vec<u8>); 8] = [
        ("encoding: raw\nendian: little\n", little()),
        ("encoding: raw\nendian: big\n", big),
        ("encoding: gzip\nendian: little\n", gzip.finish().unwrap()),
        ("encoding: bz2\nendian: little\n", bzip2.finish().unwrap()),
        ("encoding: hex\nendian: little\n", hex.into_bytes()),
        ("encoding: ASCII\n", b"-1000 0,1\n2\t3 400".to_vec()),
        (
            "encoding: raw\nendian: little\nbyte skip: 3\n",
            [&b"xyz"[..], &little()].concat(),
        ),
        (
            "encoding: raw\nendian: little\nline skip: 2\nbyte skip: -1\n",
            [&b"a\nb\nm"[..], &little()].concat(),
        ),
    ];
    for (fields, data) in cases {
        let raster = read(&int16(&format!("{GRID}{fields}")), &data).unwrap();
        assert_eq!(values(&raster), expected, "{fields}");
        assert!(
            raster.warnings().is_empty(),
            "{fields}: {:?}",
            raster.warnings()
        );
        // Three bytes less is a truncated file, whatever the encoding.
        assert!(
            read(&int16(&format!("{GRID}{fields}")), &data[..data.len() - 3]).is_err(),
            "{fields}"
        );
    }
}

#[test]
fn spaces_become_lps() {
    let at = |space: &str| {
        let fields = int16(&format!(
            "{space}space directions: (2,0,0) (0,2,0) (0,0,5)\nspace origin: (10,20,30)\nendian: little\nencoding: raw\n"
        ));
        let raster = read(&fields, &little()).unwrap();
        (
            raster.geometry().origin_lps_mm(),
            raster.geometry().steps_lps_mm()[2],
            raster.warnings().len(),
        )
    };
    assert_eq!(at("space: LPS\n"), ([10.0, 20.0, 30.0], [2.0, 0.0, 0.0], 0));
    assert_eq!(
        at("space: right-anterior-superior\n"),
        ([-10.0, -20.0, 30.0], [-2.0, 0.0, 0.0], 0)
    );
    assert_eq!(
        at("space: las\n"),
        ([10.0, -20.0, 30.0], [2.0, 0.0, 0.0], 0)
    );
    assert_eq!(
        at("space: scanner-xyz\n"),
        ([10.0, 20.0, 30.0], [2.0, 0.0, 0.0], 1)
    );
    assert_eq!(
        at("space dimension: 3\n"),
        ([10.0, 20.0, 30.0], [2.0, 0.0, 0.0], 1)
    );
    assert_eq!(
        at("space: LPS\nspace units: \"cm\" \"cm\" \"cm\"\n"),
        ([100.0, 200.0, 300.0], [20.0, 0.0, 0.0], 0)
    );
}

#[test]
fn spacings_alone_and_nothing_at_all_are_warned_of() {
    let spacings = read(
        &int16("spacings: 1 2 3\nendian: little\nencoding: raw\n"),
        &little(),
    )
    .unwrap();
    assert_eq!(
        (spacings.geometry().spacing_mm(), spacings.warnings().len()),
        ([3.0, 2.0, 1.0], 1)
    );
    let nothing = read(&int16("encoding: raw\n"), &little()).unwrap();
    assert_eq!(
        (nothing.geometry().spacing_mm(), nothing.warnings().len()),
        ([1.0; 3], 3)
    );
}

#[test]
fn a_list_axis_of_one_is_dropped() {
    let fields = |sizes: &str, directions: &str, kinds: &str| {
        format!(
            "type: short\ndimension: 4\nsizes: {sizes}\nspace: LPS\nspace directions: {directions}\nkinds: {kinds}\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n"
        )
    };
    let first = read(
        &fields(
            "1 1 2 3",
            "none (1,0,0) (0,1,0) (0,0,1)",
            "vector domain domain domain",
        ),
        &little(),
    )
    .unwrap();
    let last = read(
        &fields(
            "1 2 3 1",
            "(1,0,0) (0,1,0) (0,0,1) none",
            "domain domain domain list",
        ),
        &little(),
    )
    .unwrap();
    assert_eq!(
        (first.geometry().shape(), last.geometry().shape()),
        ([3, 2, 1], [3, 2, 1])
    );
    let colours = read(
        &fields(
            "3 1 2 1",
            "none (1,0,0) (0,1,0) (0,0,1)",
            "RGB-color domain domain domain",
        ),
        &little(),
    );
    assert!(matches!(colours, Err(ImagingError::Unsupported(_))));
}

#[test]
fn broken_headers_are_refused() {
    let rest = "endian: little\nencoding: raw\n";
    for fields in [
        format!("type: quaternion\ndimension: 3\nsizes: 1 2 3\n{rest}"),
        format!("type: block\ndimension: 3\nsizes: 1 2 3\n{rest}"),
        format!("type: short\ndimension: 4\nsizes: 1 2 3\n{rest}"),
        format!("type: short\ndimension: 17\nsizes: 1 2 3\n{rest}"),
        format!("type: short\ndimension: 3\nsizes: 1 2 -3\n{rest}"),
        format!("type: short\ndimension: 3\nsizes: 1 2 0\n{rest}"),
        format!("type: short\ndimension: 3\nsizes: 4294967296 4294967296 4294967296\n{rest}"),
        format!("type: short\ndimension: 1\nsizes: 6\n{rest}"),
        int16("endian: middle\nencoding: raw\n"),
        int16("endian: little\nencoding: zrl\n"),
        int16(&format!(
            "space: LPS\nspace directions: (nan,0,0) (0,1,0) (0,0,1)\n{rest}"
        )),
        int16(&format!(
            "space: LPS\nspace directions: (1,0,0) (1,0,0) (0,0,1)\n{rest}"
        )),
        int16(&format!(
            "space: LPS\nspace directions: (1,0,0) (0,1,0)\n{rest}"
        )),
        int16(&format!(
            "space: LPS\nspace directions: (1,0) (0,1) (1,1)\n{rest}"
        )),
        int16(&format!(
            "space: right-up\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n{rest}"
        )),
        int16(&format!("kinds: domain domain\n{rest}")),
        int16(&format!("spacings: 1 1\n{rest}")),
        int16(&format!("byte skip: -5\n{rest}")),
        int16(&format!("line skip: -1\n{rest}")),
        int16(&format!("byte skip: 99999999999999\n{rest}")),
        int16("encoding: ascii\nbyte skip: x\n"),
    ] {
        let error = read(&fields, &little()).expect_err(&fields);
        assert!(error.to_string().len() > 15, "{error}");
    }
    assert!(read(&int16("encoding: ascii\n"), b"1 2 3 4 5 70000").is_err());
    assert!(read(&int16("encoding: ascii\n"), b"1 2 3 4 5 five").is_err());
    assert!(read(&int16("encoding: hex\n"), b"zz").is_err());
}

#[test]
fn data_in_several_files() {
    let (folder, path) = saved(
        &int16(&format!(
            "{GRID}endian: little\nencoding: raw\ndata file: LIST\na.raw\nb.raw\nc.raw"
        )),
        b"",
    );
    for (name, values) in ["a.raw", "b.raw", "c.raw"].iter().zip(little().chunks(4)) {
        std::fs::write(folder.path().join(name), values).unwrap();
    }
    let list = read_raster(&path, &Budget::default()).unwrap();
    assert_eq!(values(&list), VALUES.map(f64::from));
    for (n, values) in little().chunks(4).enumerate() {
        std::fs::write(folder.path().join(format!("s{n:02}.raw")), values).unwrap();
    }
    let header = int16(&format!(
        "{GRID}endian: little\nencoding: raw\ndata file: s%02d.raw 2 0 -1 2\n"
    ));
    std::fs::write(&path, format!("NRRD0005\n{header}")).unwrap();
    let reversed = read_raster(&path, &Budget::default()).unwrap();
    assert_eq!(values(&reversed), [3.0, 400.0, 1.0, 2.0, -1000.0, 0.0]);
    std::fs::remove_file(folder.path().join("s01.raw")).unwrap();
    assert!(matches!(
        read_raster(&path, &Budget::default()),
        Err(ImagingError::DataFile(_))
    ));
}
