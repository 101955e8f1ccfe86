//! From a NIfTI file to a [`Raster`].

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use super::header::{Header, NIFTI2_BYTES, bad};
use crate::imaging::budget::{self, Budget, Packing};
use crate::imaging::error::ImagingError;
use crate::imaging::geometry::Geometry;
use crate::imaging::raster::{Layers, Raster};

/// sform and qform that differ by more than this at a corner are reported.
const FORM_DISAGREEMENT_MM: f64 = 0.1;

/// Reads the image whose first bytes come from `reader`.
pub(in crate::imaging) fn read(
    path: &Path,
    reader: BufReader<File>,
    packing: Packing,
    stored_bytes: u64,
    budget: &Budget,
) -> Result<Raster, ImagingError> {
    let mut stream = packing.unpack(reader);
    let mut start = Vec::new();
    stream
        .by_ref()
        .take(NIFTI2_BYTES as u64)
        .read_to_end(&mut start)
        .map_err(budget::decode_error)?;
    let header = Header::parse(&start)?;
    let mut warnings = Vec::new();
    let size_ijk = size_ijk(&header)?;
    let expected_bytes = budget.admit(
        &size_ijk.map(|n| n as u64),
        header.sample.size_bytes() as u64,
    )?;
    let geometry = geometry(&header, size_ijk, &mut warnings)?;
    let rescale = rescale(&header, &mut warnings)?;
    if header.bitpix != 8 * header.sample.size_bytes() as i64 {
        warnings.push(format!(
            "bitpix {} does not fit the type {}; ignored",
            header.bitpix,
            header.sample.name()
        ));
    }

    let mut bytes = if header.pair {
        drop(stream);
        let (image, image_packing, image_bytes) = open_image(path, budget)?;
        image_packing.plausible(expected_bytes, image_bytes)?;
        let mut stream = image_packing.unpack(image);
        voxels(
            &mut stream,
            image_packing,
            offset(&header, 0)?,
            expected_bytes,
            image_bytes,
            &mut warnings,
        )?
    } else {
        packing.plausible(expected_bytes, stored_bytes)?;
        let already_read = start.len() as u64;
        let mut stream = Cursor::new(start).chain(stream);
        let first = offset(&header, if header.version == 1 { 352 } else { 544 })?;
        if packing == Packing::Plain && first.max(already_read) > stored_bytes {
            return Err(ImagingError::Truncated {
                expected_bytes,
                found_bytes: 0,
            });
        }
        voxels(
            &mut stream,
            packing,
            first,
            expected_bytes,
            stored_bytes,
            &mut warnings,
        )?
    };
    if header.big_endian {
        header.sample.swap_bytes(&mut bytes);
    }
    Ok(Raster {
        format: if header.version == 1 {
            "nifti1"
        } else {
            "nifti2"
        },
        geometry,
        sample: header.sample,
        rescale,
        layers: Layers::ONE,
        padding: None,
        segments: Vec::new(),
        warnings,
        bytes,
    })
}

fn voxels(
    stream: &mut dyn Read,
    packing: Packing,
    first: u64,
    expected_bytes: u64,
    stored_bytes: u64,
    warnings: &mut Vec<String>,
) -> Result<Vec<u8>, ImagingError> {
    budget::skip(stream, first)?;
    let bytes = budget::read_payload(stream, expected_bytes, stored_bytes)?;
    if packing != Packing::Plain {
        warnings.extend(budget::trailing_warning(budget::drain(stream)?));
    }
    Ok(bytes)
}

/// The first byte of the voxels. Zero stands for the smallest possible offset, `least`.
fn offset(header: &Header, least: u64) -> Result<u64, ImagingError> {
    let offset = header.vox_offset;
    if offset == 0.0 {
        return Ok(least);
    }
    // Above 2^53 a double has no fraction left, and no file is that long.
    if !(offset >= least as f64 && offset < 9e15 && offset.fract() == 0.0) {
        return Err(bad(format!(
            "vox_offset {offset} is no position after the header of {} bytes",
            header.size_bytes()
        )));
    }
    Ok(offset as u64)
}

fn size_ijk(header: &Header) -> Result<[usize; 3], ImagingError> {
    let rank = match header.dim[0] {
        rank @ 1..=7 => rank as usize,
        other => return Err(bad(format!("dim[0] is {other}, which must be 1 to 7"))),
    };
    let sizes = &header.dim[1..=rank];
    if let Some(size) = sizes.iter().find(|&&size| size < 1) {
        return Err(bad(format!(
            "a dimension is {size}; every size must be at least 1"
        )));
    }
    if rank == 1 {
        return Err(ImagingError::Unsupported(
            "a one-dimensional image; a scan has two or three dimensions".to_owned(),
        ));
    }
    if let Some(&several) = sizes.iter().skip(3).find(|&&size| size != 1) {
        return Err(ImagingError::Unsupported(format!(
            "an image of more than three dimensions ({several} volumes); send one volume per file"
        )));
    }
    let mut size_ijk = [1; 3];
    for (to, &size) in size_ijk.iter_mut().zip(sizes) {
        *to = usize::try_from(size).map_err(|_| bad("a dimension is too large"))?;
    }
    Ok(size_ijk)
}

fn rescale(
    header: &Header,
    warnings: &mut Vec<String>,
) -> Result<Option<(f64, f64)>, ImagingError> {
    let (slope, intercept) = (header.scl_slope, header.scl_inter);
    if !slope.is_finite() {
        warnings.push("scl_slope is not a finite number; values are taken as stored".to_owned());
        return Ok(None);
    }
    if slope == 0.0 {
        return Ok(None);
    }
    if !intercept.is_finite() {
        return Err(bad(
            "scl_inter is not a finite number while scl_slope is set",
        ));
    }
    Ok((slope != 1.0 || intercept != 0.0).then_some((slope, intercept)))
}

fn geometry(
    header: &Header,
    size_ijk: [usize; 3],
    warnings: &mut Vec<String>,
) -> Result<Geometry, ImagingError> {
    let mm = match header.length_unit {
        1 => 1e3,
        0 | 2 => 1.0,
        3 => 1e-3,
        other => {
            warnings.push(format!(
                "unknown unit of length {other}; millimetres are assumed"
            ));
            1.0
        }
    };
    let in_mm = |affine: [[f64; 4]; 3]| affine.map(|row| row.map(|v| v * mm));
    if header.sform_code > 0 {
        let chosen = Geometry::from_affine_ras(size_ijk, in_mm(header.srow))?;
        let other = (header.qform_code > 0)
            .then(|| qform(header, size_ijk, &mut Vec::new()).ok())
            .flatten()
            .and_then(|affine| Geometry::from_affine_ras(size_ijk, in_mm(affine)).ok());
        if other.is_some_and(|other| !other.same_grid(&chosen, FORM_DISAGREEMENT_MM)) {
            warnings.push("sform and qform disagree; the sform is used".to_owned());
        }
        return Ok(chosen);
    }
    if header.qform_code > 0 {
        return Ok(Geometry::from_affine_ras(
            size_ijk,
            in_mm(qform(header, size_ijk, warnings)?),
        )?);
    }
    warnings.push(
        "the file does not say where the patient is (sform and qform codes are 0); voxel sizes are used, axes taken as left, anterior, superior, centred".to_owned(),
    );
    let spacing = spacing(header, size_ijk, warnings)?;
    let sign = [-1.0, 1.0, 1.0];
    let affine = std::array::from_fn(|r| {
        let mut row = [0.0; 4];
        row[r] = sign[r] * spacing[r];
        row[3] = -row[r] * (size_ijk[r] - 1) as f64 / 2.0;
        row
    });
    Ok(Geometry::from_affine_ras(size_ijk, in_mm(affine))?)
}

/// The qform in the file's unit of length (nifti1.h, method 2).
fn qform(
    header: &Header,
    size_ijk: [usize; 3],
    warnings: &mut Vec<String>,
) -> Result<[[f64; 4]; 3], ImagingError> {
    let spacing = spacing(header, size_ijk, warnings)?;
    let [mut b, mut c, mut d] = header.quatern;
    let square = b * b + c * c + d * d;
    // Rounding to single precision may push a half turn slightly over length 1.
    if !square.is_finite() || square > 1.001 {
        return Err(bad("the quaternion of the qform is longer than 1"));
    }
    let a = if square > 1.0 - 1e-7 {
        let norm = square.sqrt();
        (b, c, d) = (b / norm, c / norm, d / norm);
        0.0
    } else {
        (1.0 - square).sqrt()
    };
    let rotation = [
        [
            a * a + b * b - c * c - d * d,
            2.0 * (b * c - a * d),
            2.0 * (b * d + a * c),
        ],
        [
            2.0 * (b * c + a * d),
            a * a + c * c - b * b - d * d,
            2.0 * (c * d - a * b),
        ],
        [
            2.0 * (b * d - a * c),
            2.0 * (c * d + a * b),
            a * a + d * d - c * c - b * b,
        ],
    ];
    // pixdim[0] is qfac: below 0 the third axis is mirrored, anything else counts as 1.
    let qfac = if header.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
    Ok(std::array::from_fn(|r| {
        [
            rotation[r][0] * spacing[0],
            rotation[r][1] * spacing[1],
            rotation[r][2] * spacing[2] * qfac,
            header.qoffset[r],
        ]
    }))
}

fn spacing(
    header: &Header,
    size_ijk: [usize; 3],
    warnings: &mut Vec<String>,
) -> Result<[f64; 3], ImagingError> {
    let mut spacing = [0.0; 3];
    for axis in 0..3 {
        let size = header.pixdim[axis + 1];
        spacing[axis] = if size.is_finite() && size != 0.0 {
            size.abs()
        } else if size_ijk[axis] == 1 {
            warnings.push(format!(
                "the voxel size along axis {axis} is {size}; 1 is assumed for this single slice"
            ));
            1.0
        } else {
            return Err(bad(format!("the voxel size along axis {axis} is {size}")));
        };
    }
    Ok(spacing)
}

/// The `.img` beside a `.hdr`, plain or gzip, by content.
fn open_image(
    path: &Path,
    budget: &Budget,
) -> Result<(BufReader<File>, Packing, u64), ImagingError> {
    if !budget.follow_files {
        return Err(ImagingError::DataFile(
            "this header keeps its voxels in a second file (.img), which is not read here; send one .nii or .nii.gz file".to_owned(),
        ));
    }
    for candidate in image_candidates(path) {
        match crate::imaging::open(&candidate) {
            Ok((mut reader, size)) => {
                let gzip = reader.fill_buf()?.starts_with(&[0x1f, 0x8b]);
                return Ok((
                    reader,
                    if gzip { Packing::Gzip } else { Packing::Plain },
                    size,
                ));
            }
            Err(ImagingError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(other) => return Err(other),
        }
    }
    Err(ImagingError::DataFile(
        "the .img file with the voxels is not beside the .hdr file".to_owned(),
    ))
}

fn image_candidates(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let lower = name.to_ascii_lowercase();
    let stem = [".hdr.gz", ".hdr"]
        .iter()
        .find(|suffix| lower.ends_with(*suffix))
        .map(|suffix| &name[..name.len() - suffix.len()]);
    let Some(stem) = stem else { return Vec::new() };
    [".img", ".img.gz", ".IMG"]
        .iter()
        .map(|suffix| path.with_file_name(format!("{stem}{suffix}")))
        .collect()
}
