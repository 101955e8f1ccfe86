//! The rules of the header, on files made here.

use std::path::PathBuf;

use crate::imaging::{Budget, ImagingError, Raster, read_raster, read_scan};

/// A header to be written in any version and byte order, and its voxels.
#[derive(Clone)]
struct File {
    version: u8,
    big_endian: bool,
    datatype: i16,
    dim: [i64; 8],
    pixdim: [f64; 8],
    vox_offset: f64,
    slope: f64,
    intercept: f64,
    units: u8,
    codes: [i16; 2],
    quatern: [f64; 6],
    srow: [f64; 12],
    voxels: Vec<u8>,
}

/// 2 x 1 x 3 int16 voxels, 2 x 2 x 5 mm, sform only.
fn plain() -> File {
    File {
        version: 1,
        big_endian: false,
        datatype: 4,
        dim: [3, 2, 1, 3, 1, 1, 1, 1],
        pixdim: [1.0, 2.0, 2.0, 5.0, 1.0, 1.0, 1.0, 1.0],
        vox_offset: 0.0,
        slope: 0.0,
        intercept: 0.0,
        units: 2,
        codes: [0, 1],
        quatern: [0.0; 6],
        srow: [
            -2.0, 0.0, 0.0, 10.0, 0.0, -2.0, 0.0, 20.0, 0.0, 0.0, 5.0, 30.0,
        ],
        voxels: [-1000i16, 0, 1, 2, 3, 4]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect(),
    }
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        let wide = self.version == 2;
        let mut out = vec![0u8; if wide { 544 } else { 352 }];
        let mut put = |at: usize, little: &[u8]| {
            let end = at + little.len();
            out[at..end].copy_from_slice(little);
            if self.big_endian {
                out[at..end].reverse();
            }
        };
        let real = |value: f64| {
            if wide {
                value.to_le_bytes().to_vec()
            } else {
                (value as f32).to_le_bytes().to_vec()
            }
        };
        let code = |value: i16| {
            if wide {
                i32::from(value).to_le_bytes().to_vec()
            } else {
                value.to_le_bytes().to_vec()
            }
        };
        put(0, &(if wide { 540i32 } else { 348 }).to_le_bytes());
        put(if wide { 12 } else { 70 }, &self.datatype.to_le_bytes());
        put(if wide { 14 } else { 72 }, &16i16.to_le_bytes());
        for n in 0..8 {
            if wide {
                put(16 + 8 * n, &self.dim[n].to_le_bytes());
            } else {
                put(40 + 2 * n, &(self.dim[n] as i16).to_le_bytes());
            }
            put(
                if wide { 104 + 8 * n } else { 76 + 4 * n },
                &real(self.pixdim[n]),
            );
        }
        if wide {
            put(168, &(self.vox_offset as i64).to_le_bytes());
        } else {
            put(108, &real(self.vox_offset));
        }
        put(if wide { 176 } else { 112 }, &real(self.slope));
        put(if wide { 184 } else { 116 }, &real(self.intercept));
        if wide {
            put(500, &i32::from(self.units).to_le_bytes());
        } else {
            put(123, &[self.units]);
        }
        for n in 0..2 {
            put(
                if wide { 344 + 4 * n } else { 252 + 2 * n },
                &code(self.codes[n]),
            );
        }
        for n in 0..6 {
            put(
                if wide { 352 + 8 * n } else { 256 + 4 * n },
                &real(self.quatern[n]),
            );
        }
        for n in 0..12 {
            put(
                if wide { 400 + 8 * n } else { 280 + 4 * n },
                &real(self.srow[n]),
            );
        }
        if wide {
            out[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
        } else {
            out[344..348].copy_from_slice(b"n+1\0");
        }
        let mut voxels = self.voxels.clone();
        if self.big_endian {
            voxels.chunks_exact_mut(2).for_each(|value| value.reverse());
        }
        out.extend(voxels);
        out
    }

    fn read(&self) -> Result<Raster, ImagingError> {
        read_bytes(&self.bytes())
    }
}

fn saved(bytes: &[u8], name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read_bytes(bytes: &[u8]) -> Result<Raster, ImagingError> {
    let (_folder, path) = saved(bytes, "any.name");
    read_raster(&path, &Budget::default())
}

#[test]
fn versions_and_byte_orders_are_one_image() {
    let first = plain().read().unwrap();
    assert_eq!(first.geometry().origin_lps_mm(), [-10.0, -20.0, 30.0]);
    assert_eq!(first.geometry().shape(), [3, 1, 2]);
    assert_eq!(
        first.geometry().steps_lps_mm(),
        [[0.0, 0.0, 5.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]]
    );
    assert_eq!(
        first.values().collect::<Vec<_>>(),
        [-1000.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    );
    for (version, big_endian) in [(1, true), (2, false), (2, true)] {
        let other = File {
            version,
            big_endian,
            ..plain()
        }
        .read()
        .unwrap();
        assert!(
            other.geometry().same_grid(first.geometry(), 0.0),
            "{version} {big_endian}"
        );
        assert_eq!(
            other.values().collect::<Vec<_>>(),
            first.values().collect::<Vec<_>>()
        );
    }
}

#[test]
fn rescaling_needs_a_finite_slope_other_than_zero() {
    let first = |slope, intercept| {
        File {
            slope,
            intercept,
            ..plain()
        }
        .read()
        .map(|r| (r.value_at([0, 0, 0]), r.warnings().len()))
    };
    assert_eq!(first(0.5, -100.0).unwrap(), (Some(-600.0), 0));
    assert_eq!(first(0.0, 50.0).unwrap(), (Some(-1000.0), 0));
    assert_eq!(first(f64::NAN, 50.0).unwrap(), (Some(-1000.0), 1));
    assert!(first(1.0, f64::INFINITY).is_err());
}

#[test]
fn sform_then_qform_then_sizes() {
    let both = File {
        codes: [1, 1],
        quatern: [0.0, 0.0, 1.0, 10.0, 20.0, 30.0],
        ..plain()
    };
    let sform = both.read().unwrap();
    assert!(
        sform.warnings().is_empty(),
        "a half turn about z is the same grid: {:?}",
        sform.warnings()
    );
    let moved = File {
        quatern: [0.0, 0.0, 1.0, 10.0, 20.0, 90.0],
        ..both.clone()
    };
    assert_eq!(
        moved.read().unwrap().geometry().origin_lps_mm(),
        [-10.0, -20.0, 30.0]
    );
    assert_eq!(moved.read().unwrap().warnings().len(), 1);
    let qform = File {
        codes: [1, 0],
        ..moved.clone()
    }
    .read()
    .unwrap();
    assert_eq!(qform.geometry().origin_lps_mm(), [-10.0, -20.0, 90.0]);
    let mirrored = File {
        codes: [1, 0],
        pixdim: [-1.0, 2.0, 2.0, 5.0, 1.0, 1.0, 1.0, 1.0],
        ..moved
    }
    .read()
    .unwrap();
    assert_eq!(mirrored.geometry().steps_lps_mm()[0], [0.0, 0.0, -5.0]);
    let neither = File {
        codes: [0, 0],
        ..plain()
    }
    .read()
    .unwrap();
    assert_eq!(neither.warnings().len(), 1);
    // Centred: 2 voxels of 2 mm and 3 voxels of 5 mm.
    assert_eq!(neither.geometry().origin_lps_mm(), [-1.0, 0.0, -5.0]);
}

#[test]
fn lengths_become_millimetres() {
    let step = |units, factor: f64| {
        let file = File {
            units,
            srow: plain().srow.map(|v| v / factor),
            ..plain()
        };
        file.read()
            .map(|r| (r.geometry().spacing_mm()[0], r.warnings().len()))
            .unwrap()
    };
    for (units, factor) in [(0, 1.0), (2, 1.0), (1, 1e3), (3, 1e-3)] {
        let (mm, warnings) = step(units, factor);
        assert!(
            (mm - 5.0).abs() < 1e-5 && warnings == 0,
            "unit {units}: {mm}"
        );
    }
    assert_eq!(step(5, 1.0).1, 1);
}

#[test]
fn dimensions() {
    let with = |dim| File { dim, ..plain() }.read();
    assert_eq!(
        with([5, 2, 1, 3, 1, 1, 9, 9]).unwrap().geometry().shape(),
        [3, 1, 2]
    );
    assert_eq!(
        with([2, 2, 3, 0, 0, 0, 0, 0]).unwrap().geometry().shape(),
        [1, 3, 2]
    );
    for dim in [
        [0, 2, 1, 3, 1, 1, 1, 1],
        [8, 2, 1, 3, 1, 1, 1, 1],
        [3, 2, -1, 3, 1, 1, 1, 1],
        [3, 2, 0, 3, 1, 1, 1, 1],
        [4, 2, 1, 1, 3, 1, 1, 1],
        [1, 6, 1, 1, 1, 1, 1, 1],
    ] {
        assert!(with(dim).is_err(), "{dim:?}");
    }
    for huge in [i64::MAX, 1 << 40] {
        let file = File {
            version: 2,
            dim: [3, huge, huge, huge, 1, 1, 1, 1],
            ..plain()
        };
        assert!(matches!(file.read(), Err(ImagingError::TooLarge(_))));
    }
}

#[test]
fn positions_of_voxels() {
    let mut shifted = File {
        vox_offset: 360.0,
        ..plain()
    };
    shifted.voxels.splice(0..0, [1; 8]);
    assert_eq!(shifted.read().unwrap().value_at([0, 0, 0]), Some(-1000.0));
    for vox_offset in [-1.0, 100.0, 352.5, 1e6, 1e30, f64::NAN, f64::INFINITY] {
        assert!(
            File {
                vox_offset,
                ..plain()
            }
            .read()
            .is_err(),
            "{vox_offset}"
        );
    }
}

#[test]
fn types_that_are_no_numbers_are_named() {
    for (datatype, name) in [(128, "RGB24"), (32, "complex64"), (1536, "float128")] {
        let error = File {
            datatype,
            ..plain()
        }
        .read()
        .unwrap_err();
        assert!(
            matches!(&error, ImagingError::Unsupported(text) if text.contains(name)),
            "{error}"
        );
    }
    assert!(matches!(
        File {
            datatype: 77,
            ..plain()
        }
        .read(),
        Err(ImagingError::Header { .. })
    ));
    let mut analyze = plain().bytes();
    analyze[344..348].fill(0);
    assert!(matches!(
        read_bytes(&analyze),
        Err(ImagingError::Unsupported(_))
    ));
}

#[test]
fn a_singular_or_infinite_affine_is_refused() {
    for srow in [[0.0; 12], [f64::NAN; 12], plain().srow.map(|v| v * 1e12)] {
        assert!(
            matches!(
                File { srow, ..plain() }.read(),
                Err(ImagingError::Geometry(_))
            ),
            "{srow:?}"
        );
    }
    let no_size = File {
        codes: [0, 0],
        pixdim: [0.0; 8],
        ..plain()
    };
    assert!(matches!(no_size.read(), Err(ImagingError::Header { .. })));
    let long_quaternion = File {
        codes: [1, 0],
        quatern: [1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        ..plain()
    };
    assert!(long_quaternion.read().is_err());
}

#[test]
fn header_and_image_in_two_files() {
    let mut bytes = plain().bytes();
    bytes[344..348].copy_from_slice(b"ni1\0");
    let voxels = bytes.split_off(352);
    let (folder, path) = saved(&bytes, "case.hdr");
    assert!(matches!(
        read_scan(&path, &Budget::default()),
        Err(ImagingError::DataFile(_))
    ));
    std::fs::write(folder.path().join("case.img"), &voxels).unwrap();
    assert_eq!(
        read_scan(&path, &Budget::default()).unwrap().volume.voxels[..2],
        [-1000.0, 0.0]
    );
    let upload = Budget {
        follow_files: false,
        ..Budget::default()
    };
    assert!(matches!(
        read_scan(&path, &upload),
        Err(ImagingError::DataFile(_))
    ));
    std::fs::write(folder.path().join("case.img"), &voxels[..5]).unwrap();
    assert!(matches!(
        read_scan(&path, &Budget::default()),
        Err(ImagingError::Truncated { .. })
    ));
}
