//! NRRD with attached data.

use std::path::Path;

use crate::imaging::error::ImagingError;
use crate::imaging::geometry::Geometry;
use crate::imaging::sample::Sample;
use crate::imaging::whole_file;

/// Writes little-endian voxels in file order; `pairs` are further header lines, each with its line
/// end. Numbers are written with all their digits: the grid comes back exactly.
pub(in crate::imaging) fn write(
    path: &Path,
    geometry: &Geometry,
    sample: Sample,
    bytes: &[u8],
    pairs: &str,
    compress: bool,
) -> Result<(), ImagingError> {
    let header = header(geometry, sample, pairs, compress)?;
    whole_file::write(path, |out| {
        out.write_all(header.as_bytes())?;
        if compress {
            whole_file::gzip(out, &[bytes])
        } else {
            out.write_all(bytes)
        }
    })?;
    Ok(())
}

fn header(
    geometry: &Geometry,
    sample: Sample,
    pairs: &str,
    compress: bool,
) -> Result<String, ImagingError> {
    let type_name = match sample {
        Sample::U8 => "unsigned char",
        Sample::U16 => "unsigned short",
        Sample::I16 => "short",
        Sample::I32 => "int",
        Sample::F32 => "float",
        other => {
            return Err(ImagingError::Unsupported(format!(
                "{} is not written as NRRD",
                other.name()
            )));
        }
    };
    let [nk, nj, ni] = geometry.shape();
    let [dk, dj, di] = geometry.steps_lps_mm();
    let vector = |[x, y, z]: [f64; 3]| format!("({},{},{})", x + 0.0, y + 0.0, z + 0.0);
    let directions = [di, dj, dk].map(vector).join(" ");
    let origin = vector(geometry.origin_lps_mm());
    let encoding = if compress { "gzip" } else { "raw" };
    Ok(format!(
        "NRRD0004\n\
         # Complete NRRD file format specification at:\n\
         # http://teem.sourceforge.net/nrrd/format.html\n\
         type: {type_name}\n\
         dimension: 3\n\
         space: left-posterior-superior\n\
         sizes: {ni} {nj} {nk}\n\
         space directions: {directions}\n\
         kinds: domain domain domain\n\
         endian: little\n\
         encoding: {encoding}\n\
         space origin: {origin}\n\
         {pairs}\n"
    ))
}
