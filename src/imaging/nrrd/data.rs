//! The voxels of an NRRD: attached, or in files beside a detached header.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use super::header::{Header, bad, shortened};
use crate::imaging::budget::{self, Budget, Packing, decode_error};
use crate::imaging::error::ImagingError;
use crate::imaging::sample::Sample;

/// Far above any series of slices.
const MAX_DATA_FILES: usize = 1 << 16;
/// Digits, sign, exponent and separator of the longest printed number.
const MAX_TEXT_BYTES_PER_VALUE: u64 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Raw,
    Gzip,
    Bzip2,
    Text,
    Hex,
}

impl Encoding {
    pub fn parse(name: &str) -> Result<Self, ImagingError> {
        match name.to_ascii_lowercase().as_str() {
            "raw" => Ok(Self::Raw),
            "gzip" | "gz" => Ok(Self::Gzip),
            "bzip2" | "bz2" => Ok(Self::Bzip2),
            "ascii" | "text" | "txt" => Ok(Self::Text),
            "hex" => Ok(Self::Hex),
            other => Err(bad(format!(
                "the encoding {:?} does not exist",
                shortened(other)
            ))),
        }
    }

    fn packing(self) -> Packing {
        match self {
            Self::Gzip => Packing::Gzip,
            Self::Bzip2 => Packing::Bzip2,
            Self::Raw | Self::Text | Self::Hex => Packing::Plain,
        }
    }
}

/// Where the voxels come from.
pub(super) struct Source {
    folder: PathBuf,
    detached: bool,
    attached: BufReader<File>,
    attached_bytes: u64,
}

impl Source {
    pub fn new(path: &Path, header: &Header, reader: BufReader<File>, attached_bytes: u64) -> Self {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Self {
            folder,
            detached: header.field("datafile").is_some(),
            attached: reader,
            attached_bytes,
        }
    }
}

/// Reads `expected_bytes` of voxels in the file's byte order (text: little endian).
pub(super) fn read(
    source: Source,
    header: &Header,
    encoding: Encoding,
    sample: Sample,
    expected_bytes: u64,
    budget: &Budget,
    warnings: &mut Vec<String>,
) -> Result<Vec<u8>, ImagingError> {
    let skip = Skip::from_header(header)?;
    if !source.detached {
        return read_one(
            source.attached,
            source.attached_bytes,
            encoding,
            sample,
            &skip,
            expected_bytes,
            warnings,
        );
    }
    if !budget.follow_files {
        return Err(ImagingError::DataFile(
            "this header keeps its voxels in another file, which is not read here; send one .nrrd file with attached data".to_owned(),
        ));
    }
    let files = data_files(header)?;
    let count = files.len() as u64;
    if count == 0 || !expected_bytes.is_multiple_of(count) {
        return Err(bad(format!(
            "{expected_bytes} bytes cannot be spread evenly over {count} data files"
        )));
    }
    let mut all = Vec::new();
    for name in &files {
        let path = inside(&source.folder, name)?;
        let (reader, size) = crate::imaging::open(&path).map_err(|error| match error {
            ImagingError::Io(error) => ImagingError::DataFile(format!(
                "the data file {:?} cannot be read: {error}",
                shortened(name)
            )),
            other => other,
        })?;
        let bytes = read_one(
            reader,
            size,
            encoding,
            sample,
            &skip,
            expected_bytes / count,
            warnings,
        )?;
        if count == 1 {
            return Ok(bytes);
        }
        all.extend(bytes);
    }
    Ok(all)
}

/// What to leave out before the voxels.
struct Skip {
    lines: u64,
    /// `None` for -1: the voxels are the end of the data.
    bytes: Option<u64>,
}

impl Skip {
    fn from_header(header: &Header) -> Result<Self, ImagingError> {
        let number = |name: &str| match header.field(name) {
            None => Ok(0),
            Some(text) => text
                .parse::<i64>()
                .map_err(|_| bad(format!("{name} is no valid number"))),
        };
        let lines = u64::try_from(number("lineskip")?).map_err(|_| bad("line skip is negative"))?;
        let bytes = match number("byteskip")? {
            -1 => None,
            count => Some(u64::try_from(count).map_err(|_| bad("byte skip is below -1"))?),
        };
        Ok(Self { lines, bytes })
    }
}

fn read_one(
    mut reader: BufReader<File>,
    stored_bytes: u64,
    encoding: Encoding,
    sample: Sample,
    skip: &Skip,
    expected_bytes: u64,
    warnings: &mut Vec<String>,
) -> Result<Vec<u8>, ImagingError> {
    // Lines are skipped as stored, bytes after unpacking (format definition, "line skip").
    for _ in 0..skip.lines {
        if reader.skip_until(b'\n')? == 0 {
            return Err(ImagingError::Truncated {
                expected_bytes,
                found_bytes: 0,
            });
        }
    }
    if encoding == Encoding::Text {
        return read_text(
            reader,
            sample,
            expected_bytes / sample.size_bytes() as u64,
            stored_bytes,
        );
    }
    if encoding == Encoding::Hex {
        return read_hex(reader, expected_bytes, stored_bytes);
    }
    let packing = encoding.packing();
    packing.plausible(expected_bytes, stored_bytes)?;
    let mut stream = packing.unpack(reader);
    let Some(count) = skip.bytes else {
        return budget::read_last(&mut stream, expected_bytes);
    };
    budget::skip(&mut stream, count)?;
    let bytes = budget::read_payload(&mut stream, expected_bytes, stored_bytes)?;
    if packing != Packing::Plain {
        warnings.extend(budget::trailing_warning(budget::drain(&mut stream)?));
    }
    Ok(bytes)
}

fn read_text(
    reader: impl Read,
    sample: Sample,
    count: u64,
    stored_bytes: u64,
) -> Result<Vec<u8>, ImagingError> {
    let short = |found: u64| {
        ImagingError::Data(format!(
            "{found} numbers where {count} are announced; send the complete file"
        ))
    };
    // A value needs a digit and a separator.
    if count > stored_bytes / 2 + 1 {
        return Err(short(stored_bytes / 2 + 1));
    }
    let limit = count.saturating_mul(MAX_TEXT_BYTES_PER_VALUE);
    let mut text = Vec::new();
    reader
        .take(limit)
        .read_to_end(&mut text)
        .map_err(decode_error)?;
    let mut bytes = Vec::new();
    let mut found = 0;
    let words = text
        .split(|byte| byte.is_ascii_whitespace() || *byte == b',')
        .filter(|word| !word.is_empty());
    for word in words.take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let encoded =
            std::str::from_utf8(word).is_ok_and(|word| encode(word, sample, &mut bytes).is_some());
        if !encoded {
            let word = String::from_utf8_lossy(word);
            return Err(ImagingError::Data(format!(
                "{:?} is no value of type {}",
                shortened(&word),
                sample.name()
            )));
        }
        found += 1;
    }
    if found < count {
        Err(short(found))
    } else {
        Ok(bytes)
    }
}

/// Appends a printed number as `sample` in little endian; `None` when it does not fit.
fn encode(word: &str, sample: Sample, bytes: &mut Vec<u8>) -> Option<()> {
    macro_rules! append {
        ($number:ty) => {
            bytes.extend_from_slice(&word.parse::<$number>().ok()?.to_le_bytes())
        };
    }
    match sample {
        Sample::U8 => append!(u8),
        Sample::I8 => append!(i8),
        Sample::U16 => append!(u16),
        Sample::I16 => append!(i16),
        Sample::U32 => append!(u32),
        Sample::I32 => append!(i32),
        Sample::U64 => append!(u64),
        Sample::I64 => append!(i64),
        Sample::F32 => append!(f32),
        Sample::F64 => append!(f64),
    }
    Some(())
}

fn read_hex(
    reader: impl Read,
    expected_bytes: u64,
    stored_bytes: u64,
) -> Result<Vec<u8>, ImagingError> {
    Packing::Plain.plausible(expected_bytes.saturating_mul(2), stored_bytes)?;
    let mut bytes = Vec::new();
    let mut high = None;
    for byte in BufReader::new(reader).bytes() {
        let byte = byte?;
        if byte.is_ascii_whitespace() {
            continue;
        }
        let digit = (byte as char)
            .to_digit(16)
            .ok_or_else(|| ImagingError::Data("a character is no hexadecimal digit".to_owned()))?
            as u8;
        match high.take() {
            None => high = Some(digit),
            Some(first) => bytes.push(first << 4 | digit),
        }
        if bytes.len() as u64 == expected_bytes {
            return Ok(bytes);
        }
    }
    Err(ImagingError::Truncated {
        expected_bytes,
        found_bytes: bytes.len() as u64,
    })
}

/// Names of the data files in order: one, a list, or a numbered pattern. Whatever part of the image
/// a file holds, the slowest axis runs over the files, so their contents are simply joined.
fn data_files(header: &Header) -> Result<Vec<String>, ImagingError> {
    let value = header.required("datafile")?;
    let files = if value.split_whitespace().next() == Some("LIST") {
        header.file_list.clone()
    } else if value.contains('%') {
        pattern(value)?
    } else {
        vec![value.to_owned()]
    };
    if files.len() > MAX_DATA_FILES {
        return Err(ImagingError::TooLarge(format!(
            "more than {MAX_DATA_FILES} data files"
        )));
    }
    Ok(files)
}

/// `name%03d.raw first last step [subdim]`
fn pattern(value: &str) -> Result<Vec<String>, ImagingError> {
    let wrong = || {
        bad(format!(
            "the data file pattern {:?} is not understood",
            shortened(value)
        ))
    };
    let words: Vec<&str> = value.split_whitespace().collect();
    let (&[name, first, last, step] | &[name, first, last, step, _]) = &words[..] else {
        return Err(wrong());
    };
    let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
    let (first, last, step) = (number(first)?, number(last)?, number(step)?);
    let (before, rest) = name.split_once('%').ok_or_else(wrong)?;
    let (width, after) = rest.split_once('d').ok_or_else(wrong)?;
    if step == 0
        || after.contains('%')
        || !width.bytes().all(|byte| byte.is_ascii_digit())
        || width.len() > 2
    {
        return Err(wrong());
    }
    let zeros = width.starts_with('0');
    let width: usize = if width.is_empty() {
        0
    } else {
        width.parse().map_err(|_| wrong())?
    };
    let mut files = Vec::new();
    let mut n = first;
    while if step > 0 { n <= last } else { n >= last } {
        files.push(if zeros {
            format!("{before}{n:0width$}{after}")
        } else {
            format!("{before}{n:width$}{after}")
        });
        if files.len() > MAX_DATA_FILES {
            break;
        }
        n = n.checked_add(step).ok_or_else(wrong)?;
    }
    Ok(files)
}

/// The path of a data file, refused when it is not inside of `folder` after following links.
fn inside(folder: &Path, name: &str) -> Result<PathBuf, ImagingError> {
    let refused = || {
        ImagingError::DataFile(format!(
            "the data file {:?} is not in the folder of its header and is not opened",
            shortened(name)
        ))
    };
    let relative = Path::new(name);
    if name.is_empty()
        || name.contains('\\')
        || !relative
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(refused());
    }
    let missing = |error: std::io::Error| {
        ImagingError::DataFile(format!(
            "the data file {:?} cannot be read: {error}",
            shortened(name)
        ))
    };
    let path = folder.join(relative).canonicalize().map_err(missing)?;
    if path.starts_with(folder.canonicalize()?) {
        Ok(path)
    } else {
        Err(refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert_eq!(
            pattern("s%03d.raw 8 10 1 2").unwrap(),
            ["s008.raw", "s009.raw", "s010.raw"]
        );
        assert_eq!(
            pattern("s%d.raw 4 0 -2").unwrap(),
            ["s4.raw", "s2.raw", "s0.raw"]
        );
        for wrong in [
            "s%d.raw",
            "s%d.raw 0 5 0",
            "s%s.raw 0 5 1",
            "s%d%d 0 5 1",
            "s%999d 0 1 1",
        ] {
            assert!(pattern(wrong).is_err(), "{wrong}");
        }
        assert!(pattern("s%d.raw 0 9223372036854775807 1").unwrap().len() > MAX_DATA_FILES);
    }

    #[test]
    fn data_files_stay_in_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let within = folder.path().join("within");
        std::fs::create_dir(&within).unwrap();
        std::fs::write(within.join("a.raw"), b"x").unwrap();
        std::fs::write(folder.path().join("secret"), b"x").unwrap();
        assert!(inside(&within, "a.raw").is_ok());
        assert!(inside(&within, "./a.raw").is_ok());
        for name in [
            "../secret",
            "/etc/hostname",
            "a/../../secret",
            "..",
            "",
            "..\\secret",
            "missing.raw",
        ] {
            assert!(inside(&within, name).is_err(), "{name}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(folder.path().join("secret"), within.join("link.raw"))
                .unwrap();
            assert!(inside(&within, "link.raw").is_err());
        }
    }
}
