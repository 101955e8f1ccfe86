//! DICOM files made by hand.

use std::io::{Cursor, Write};
use std::path::Path;

/// Values that name a patient; no log and no answer may hold one of them.
pub const CANARIES: [&str; 3] = ["CANARY^JANE", "CANARY-ID-4711", "19010203"];

/// Rows and columns of the slices.
pub const SIDE: usize = 48;
/// Slices of a series.
pub const SLICES: usize = 40;
/// Voxel size, mm.
pub const SPACING_MM: f64 = 5.0;

fn element(tag: u32, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((tag >> 16) as u16).to_le_bytes());
    bytes.extend((tag as u16).to_le_bytes());
    bytes.extend(vr);
    let mut value = value.to_vec();
    if value.len() % 2 == 1 {
        value.push(if vr == b"UI" { 0 } else { b' ' });
    }
    if vr == b"OW" {
        bytes.extend([0, 0]);
        bytes.extend((value.len() as u32).to_le_bytes());
    } else {
        bytes.extend((value.len() as u16).to_le_bytes());
    }
    bytes.extend(value);
    bytes
}

/// One CT slice in Explicit VR Little Endian: a ball of tissue in air, 40 HU in 12 bits with an intercept of -1024.
pub fn slice(series: u32, number: usize) -> Vec<u8> {
    let text = |tag, vr: &[u8; 2], value: &str| element(tag, vr, value.as_bytes());
    let word = |tag, value: u16| element(tag, b"US", &value.to_le_bytes());
    let uid = |rest: String| format!("1.2.826.0.1.3680043.10.999.{series}.{rest}");
    let middle = (SIDE as f64 - 1.0) / 2.0;
    let z = number as f64 - (SLICES as f64 - 1.0) / 2.0;
    let pixels: Vec<u8> = (0..SIDE * SIDE)
        .flat_map(|n| {
            let (y, x) = ((n / SIDE) as f64 - middle, (n % SIDE) as f64 - middle);
            let inside = x * x + y * y + z * z < 18.0 * 18.0;
            (if inside { 1064u16 } else { 0 }).to_le_bytes()
        })
        .collect();
    let mut bytes = vec![0; 128];
    bytes.extend(b"DICM");
    for part in [
        text(0x0002_0010, b"UI", "1.2.840.10008.1.2.1"),
        text(0x0008_0008, b"CS", "ORIGINAL\\PRIMARY\\AXIAL"),
        text(0x0008_0016, b"UI", "1.2.840.10008.5.1.4.1.1.2"),
        text(0x0008_0018, b"UI", &uid(format!("3.{}", number + 1))),
        text(0x0008_0020, b"DA", "20240102"),
        text(0x0008_0060, b"CS", "CT"),
        text(0x0010_0010, b"PN", CANARIES[0]),
        text(0x0010_0020, b"LO", CANARIES[1]),
        text(0x0010_0030, b"DA", CANARIES[2]),
        text(0x0010_0040, b"CS", "F"),
        text(0x0018_0050, b"DS", &SPACING_MM.to_string()),
        text(0x0020_000d, b"UI", &uid("1".to_owned())),
        text(0x0020_000e, b"UI", &uid("2".to_owned())),
        text(
            0x0020_0032,
            b"DS",
            &format!("-100\\-120\\{}", z * SPACING_MM),
        ),
        text(0x0020_0037, b"DS", "1\\0\\0\\0\\1\\0"),
        text(0x0020_0052, b"UI", &uid("4".to_owned())),
        word(0x0028_0002, 1),
        text(0x0028_0004, b"CS", "MONOCHROME2"),
        word(0x0028_0010, SIDE as u16),
        word(0x0028_0011, SIDE as u16),
        text(0x0028_0030, b"DS", &format!("{SPACING_MM}\\{SPACING_MM}")),
        word(0x0028_0100, 16),
        word(0x0028_0101, 12),
        word(0x0028_0102, 11),
        word(0x0028_0103, 0),
        text(0x0028_1052, b"DS", "-1024"),
        text(0x0028_1053, b"DS", "1"),
        element(0x7fe0_0010, b"OW", &pixels),
    ] {
        bytes.extend(part);
    }
    bytes
}

/// Writes a series into a folder, with names in another order than the slices.
pub fn write_series(folder: &Path, series: u32) {
    std::fs::create_dir_all(folder).unwrap();
    for number in 0..SLICES {
        let name = format!("IM{:04}", number * 7 % SLICES);
        std::fs::write(folder.join(name), slice(series, number)).unwrap();
    }
}

/// A series as a zip file.
pub fn zipped_series(series: u32) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for number in 0..SLICES {
        archive
            .start_file(format!("export/{number}.dcm"), options)
            .unwrap();
        archive.write_all(&slice(series, number)).unwrap();
    }
    archive.finish().unwrap().into_inner()
}
