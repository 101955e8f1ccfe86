//! The fields of the header that place and type the voxels.

use crate::imaging::error::ImagingError;
use crate::imaging::sample::Sample;

pub(super) const NIFTI1_BYTES: usize = 348;
pub(super) const NIFTI2_BYTES: usize = 540;

/// `datatype` codes of the scalar types (nifti1.h).
const DATATYPES: [(i16, Sample); 10] = [
    (2, Sample::U8),
    (4, Sample::I16),
    (8, Sample::I32),
    (16, Sample::F32),
    (64, Sample::F64),
    (256, Sample::I8),
    (512, Sample::U16),
    (768, Sample::U32),
    (1024, Sample::I64),
    (1280, Sample::U64),
];

/// `datatype` codes that exist but are no scalar of at most 64 bit.
const UNSUPPORTED: [(i16, &str); 7] = [
    (1, "binary"),
    (32, "complex64"),
    (128, "RGB24"),
    (1536, "float128"),
    (1792, "complex128"),
    (2048, "complex256"),
    (2304, "RGBA32"),
];

/// Where each field lies; types differ between the versions and are read by [`Fields`].
struct Layout {
    datatype: usize,
    bitpix: usize,
    dim: usize,
    pixdim: usize,
    vox_offset: usize,
    scl_slope: usize,
    scl_inter: usize,
    qform_code: usize,
    sform_code: usize,
    quatern: usize,
    qoffset: usize,
    srow: usize,
    xyzt_units: usize,
}

const LAYOUT1: Layout = Layout {
    datatype: 70,
    bitpix: 72,
    dim: 40,
    pixdim: 76,
    vox_offset: 108,
    scl_slope: 112,
    scl_inter: 116,
    qform_code: 252,
    sform_code: 254,
    quatern: 256,
    qoffset: 268,
    srow: 280,
    xyzt_units: 123,
};

const LAYOUT2: Layout = Layout {
    datatype: 12,
    bitpix: 14,
    dim: 16,
    pixdim: 104,
    vox_offset: 168,
    scl_slope: 176,
    scl_inter: 184,
    qform_code: 344,
    sform_code: 348,
    quatern: 352,
    qoffset: 376,
    srow: 400,
    xyzt_units: 500,
};

/// A header of either version, fields as stored.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub version: u8,
    pub big_endian: bool,
    /// Whether the voxels are in another file (`.img`).
    pub pair: bool,
    pub dim: [i64; 8],
    pub sample: Sample,
    pub bitpix: i64,
    pub pixdim: [f64; 8],
    pub vox_offset: f64,
    pub scl_slope: f64,
    pub scl_inter: f64,
    pub length_unit: u8,
    pub qform_code: i64,
    pub sform_code: i64,
    pub quatern: [f64; 3],
    pub qoffset: [f64; 3],
    pub srow: [[f64; 4]; 3],
}

/// Whether `start` begins as a NIfTI header does: with its size in either byte order.
pub(in crate::imaging) fn is_header(start: &[u8]) -> bool {
    size_and_order(start).is_some()
}

fn size_and_order(start: &[u8]) -> Option<(usize, bool)> {
    let first = start.first_chunk::<4>()?;
    [NIFTI1_BYTES, NIFTI2_BYTES].into_iter().find_map(|size| {
        let number = size as i32;
        if *first == number.to_le_bytes() {
            Some((size, false))
        } else if *first == number.to_be_bytes() {
            Some((size, true))
        } else {
            None
        }
    })
}

pub(super) fn bad(what: impl Into<String>) -> ImagingError {
    ImagingError::Header {
        format: "NIfTI",
        what: what.into(),
    }
}

impl Header {
    /// Parses the start of a file, of which at least [`NIFTI2_BYTES`] are given if it has them.
    pub fn parse(start: &[u8]) -> Result<Self, ImagingError> {
        let Some((size, big_endian)) = size_and_order(start) else {
            return Err(ImagingError::UnknownFormat(
                "the data are no NIfTI: their first number is neither 348 nor 540".to_owned(),
            ));
        };
        if start.len() < size {
            return Err(bad(format!(
                "it ends after {} of {size} bytes",
                start.len()
            )));
        }
        let (version, layout) = if size == NIFTI1_BYTES {
            (1, LAYOUT1)
        } else {
            (2, LAYOUT2)
        };
        let pair = match (version, &start[344..348], &start[4..12]) {
            (1, b"n+1\0", _) | (2, _, b"n+2\0\r\n\x1a\n") => false,
            (1, b"ni1\0", _) | (2, _, b"ni2\0\r\n\x1a\n") => true,
            (1, magic, _) if magic.iter().all(|&byte| byte == 0) => {
                return Err(ImagingError::Unsupported(
                    "this is an Analyze 7.5 header, which does not say left from right; convert it to NIfTI".to_owned(),
                ));
            }
            _ => return Err(bad("the magic string is wrong")),
        };
        let fields = Fields {
            bytes: start,
            big_endian,
            wide: version == 2,
        };
        let code = fields.i16(layout.datatype);
        let sample = DATATYPES
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, sample)| *sample);
        let Some(sample) = sample else {
            return Err(match UNSUPPORTED.iter().find(|(known, _)| *known == code) {
                Some((_, name)) => ImagingError::Unsupported(format!(
                    "voxels of type {name}; only whole and real numbers of at most 64 bit are read"
                )),
                None => bad(format!("datatype {code} does not exist")),
            });
        };
        Ok(Self {
            version,
            big_endian,
            pair,
            dim: std::array::from_fn(|n| fields.size(layout.dim, n)),
            sample,
            bitpix: i64::from(fields.i16(layout.bitpix)),
            pixdim: std::array::from_fn(|n| fields.real(layout.pixdim, n)),
            vox_offset: if version == 1 {
                fields.real(layout.vox_offset, 0)
            } else {
                fields.i64(layout.vox_offset) as f64
            },
            scl_slope: fields.real(layout.scl_slope, 0),
            scl_inter: fields.real(layout.scl_inter, 0),
            length_unit: fields.units(layout.xyzt_units) & 7,
            qform_code: fields.code(layout.qform_code),
            sform_code: fields.code(layout.sform_code),
            quatern: std::array::from_fn(|n| fields.real(layout.quatern, n)),
            qoffset: std::array::from_fn(|n| fields.real(layout.qoffset, n)),
            srow: std::array::from_fn(|r| {
                std::array::from_fn(|c| fields.real(layout.srow, 4 * r + c))
            }),
        })
    }

    /// Size of the header itself.
    pub fn size_bytes(&self) -> usize {
        if self.version == 1 {
            NIFTI1_BYTES
        } else {
            NIFTI2_BYTES
        }
    }
}

/// Reads numbers at fixed offsets; `bytes` is as long as the header.
struct Fields<'h> {
    bytes: &'h [u8],
    big_endian: bool,
    /// NIfTI-2: sizes are 64 bit, codes 32 bit, reals double.
    wide: bool,
}

impl Fields<'_> {
    fn raw<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut raw = [0; N];
        raw.copy_from_slice(&self.bytes[at..at + N]);
        if self.big_endian {
            raw.reverse();
        }
        raw
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.raw(at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.raw(at))
    }

    fn size(&self, at: usize, n: usize) -> i64 {
        if self.wide {
            self.i64(at + 8 * n)
        } else {
            i64::from(self.i16(at + 2 * n))
        }
    }

    fn real(&self, at: usize, n: usize) -> f64 {
        if self.wide {
            f64::from_le_bytes(self.raw(at + 8 * n))
        } else {
            f64::from(f32::from_le_bytes(self.raw(at + 4 * n)))
        }
    }

    fn code(&self, at: usize) -> i64 {
        if self.wide {
            i64::from(i32::from_le_bytes(self.raw(at)))
        } else {
            i64::from(self.i16(at))
        }
    }

    fn units(&self, at: usize) -> u8 {
        if self.wide {
            i32::from_le_bytes(self.raw(at)) as u8
        } else {
            self.bytes[at]
        }
    }
}
