//! Limits on what a file may make us allocate, and the readers that keep them.
//!
//! A header is believed only for as much as it costs nothing: sizes are multiplied in checked
//! `u64`, compared with the [`Budget`] and with what the file can hold at best, and memory then
//! grows with the data that really arrive. A header of 2^60 voxels is refused before any
//! allocation; a gzip bomb ends at the limit, not at the end of memory.
//!
//! A compressed stream is always read to its end, because its checksum is there: silent damage in
//! a scan or label is worse than a refusal.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use super::error::ImagingError;

/// No deflate stream expands by more than this (RFC 1951: 258 bytes from two bits, rounded up).
const DEFLATE_MAX_RATIO: u64 = 1040;
/// bzip2 can pack a run of 45 MB into a block of about 40 bytes.
const BZIP2_MAX_RATIO: u64 = 2_000_000;
/// Bytes accepted after the voxels of a compressed stream; more is taken as a bomb.
const MAX_TRAILING_BYTES: u64 = 16 << 20;
/// Bytes that may stand before the voxels; unpacking more only to throw it away is work for nothing.
const MAX_SKIPPED_BYTES: u64 = 1 << 30;

/// What decoding one file may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Largest number of voxels, layers included.
    pub max_voxels: u64,
    /// Largest size of the decoded voxels in the file's own type.
    pub max_bytes: u64,
    /// Whether a header may name other files (NRRD data files, `.img`). Off for uploads, where a
    /// second file can only be somebody else's.
    pub follow_files: bool,
}

impl Default for Budget {
    /// 2^30 voxels and 2 GiB: a 1024 x 1024 scan of 1000 slices in int16.
    fn default() -> Self {
        Self {
            max_voxels: 1 << 30,
            max_bytes: 2 << 30,
            follow_files: true,
        }
    }
}

impl Budget {
    /// Bytes of `sizes` values of `sample_bytes` each.
    ///
    /// # Errors
    /// [`ImagingError::TooLarge`] when a product overflows or a limit is exceeded.
    pub(crate) fn admit(&self, sizes: &[u64], sample_bytes: u64) -> Result<u64, ImagingError> {
        let too_large = |what: String| Err(ImagingError::TooLarge(what));
        let Some(voxels) = sizes
            .iter()
            .try_fold(1u64, |product, &n| product.checked_mul(n))
        else {
            return too_large(format!("{sizes:?} voxels; check the header"));
        };
        if voxels > self.max_voxels {
            return too_large(format!(
                "{voxels} voxels, at most {} are read; crop or resample the image",
                self.max_voxels
            ));
        }
        match voxels.checked_mul(sample_bytes) {
            Some(bytes) if bytes <= self.max_bytes => Ok(bytes),
            _ => too_large(format!(
                "{voxels} voxels of {sample_bytes} bytes, at most {} bytes are read; crop the image or store it in a smaller type",
                self.max_bytes
            )),
        }
    }
}

/// How the voxels are packed in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Bzip2,
}

impl Packing {
    /// Refuses an announced size that `stored_bytes` cannot expand to.
    pub(crate) fn plausible(
        self,
        expected_bytes: u64,
        stored_bytes: u64,
    ) -> Result<(), ImagingError> {
        let ratio = match self {
            Self::Plain => 1,
            Self::Gzip => DEFLATE_MAX_RATIO,
            Self::Bzip2 => BZIP2_MAX_RATIO,
        };
        let possible = stored_bytes.saturating_mul(ratio);
        if expected_bytes > possible {
            return Err(ImagingError::Truncated {
                expected_bytes,
                found_bytes: possible,
            });
        }
        Ok(())
    }

    /// A reader of the unpacked bytes.
    pub(crate) fn unpack<'r>(self, reader: impl BufRead + 'r) -> Box<dyn Read + 'r> {
        match self {
            Self::Plain => Box::new(reader),
            Self::Gzip => Box::new(GzipStream::new(reader)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        }
    }
}

/// Reads exactly `expected_bytes`; the buffer grows as they arrive.
pub(crate) fn read_payload(
    reader: &mut dyn Read,
    expected_bytes: u64,
    stored_bytes: u64,
) -> Result<Vec<u8>, ImagingError> {
    let first = expected_bytes.min(stored_bytes.saturating_mul(4)).max(1);
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(usize::try_from(first).unwrap_or(usize::MAX))
        .map_err(|_| {
            ImagingError::TooLarge(format!("{expected_bytes} bytes do not fit in memory"))
        })?;
    reader
        .take(expected_bytes)
        .read_to_end(&mut bytes)
        .map_err(decode_error)?;
    if (bytes.len() as u64) < expected_bytes {
        return Err(ImagingError::Truncated {
            expected_bytes,
            found_bytes: bytes.len() as u64,
        });
    }
    Ok(bytes)
}

/// Reads a compressed stream to its end, so that its checksum is verified; how many bytes that were.
pub(crate) fn drain(reader: &mut dyn Read) -> Result<u64, ImagingError> {
    let trailing = io::copy(&mut reader.take(MAX_TRAILING_BYTES + 1), &mut io::sink())
        .map_err(decode_error)?;
    if trailing > MAX_TRAILING_BYTES {
        return Err(ImagingError::TooLarge(format!(
            "more than {MAX_TRAILING_BYTES} bytes follow the announced voxels"
        )));
    }
    Ok(trailing)
}

/// The warning about bytes that [`drain`] found.
pub(crate) fn trailing_warning(count: u64) -> Option<String> {
    (count > 0).then(|| {
        format!("{count} bytes follow the voxels that the header announces; they are ignored")
    })
}

/// Discards `count` bytes of the stream.
pub(crate) fn skip(reader: &mut dyn Read, count: u64) -> Result<(), ImagingError> {
    if count > MAX_SKIPPED_BYTES {
        return Err(ImagingError::TooLarge(format!(
            "the voxels begin {count} bytes into the data"
        )));
    }
    let skipped = io::copy(&mut reader.take(count), &mut io::sink()).map_err(decode_error)?;
    if skipped < count {
        return Err(ImagingError::Truncated {
            expected_bytes: count,
            found_bytes: skipped,
        });
    }
    Ok(())
}

/// The last `expected_bytes` of a stream that may hold a header in front of them.
pub(crate) fn read_last(
    reader: &mut dyn Read,
    expected_bytes: u64,
) -> Result<Vec<u8>, ImagingError> {
    let limit = expected_bytes.saturating_add(MAX_TRAILING_BYTES);
    let mut bytes = Vec::new();
    reader
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(decode_error)?;
    let found_bytes = bytes.len() as u64;
    if found_bytes > limit {
        return Err(ImagingError::TooLarge(format!(
            "more than {MAX_TRAILING_BYTES} bytes stand before the voxels"
        )));
    }
    if found_bytes < expected_bytes {
        return Err(ImagingError::Truncated {
            expected_bytes,
            found_bytes,
        });
    }
    bytes.drain(..(found_bytes - expected_bytes) as usize);
    Ok(bytes)
}

/// An error of a decoder: damage is told apart from trouble with the disk.
pub(crate) fn decode_error(error: io::Error) -> ImagingError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            ImagingError::Corrupt(error.to_string())
        }
        _ => ImagingError::Io(error),
    }
}

/// All members of a gzip file as one stream (RFC 1952 §2.2), each checksum verified.
///
/// Zero bytes after a member are padding, as tape and block devices leave them; anything else that
/// is not another member is damage.
struct GzipStream<R> {
    state: GzipState<R>,
}

enum GzipState<R> {
    Member(Box<GzDecoder<R>>),
    Done,
}

impl<R: BufRead> GzipStream<R> {
    fn new(reader: R) -> Self {
        Self {
            state: GzipState::Member(Box::new(GzDecoder::new(reader))),
        }
    }
}

impl<R: BufRead> Read for GzipStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let GzipState::Member(decoder) = &mut self.state else {
                return Ok(0);
            };
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let GzipState::Member(decoder) = std::mem::replace(&mut self.state, GzipState::Done)
            else {
                return Ok(0);
            };
            let mut reader = decoder.into_inner();
            if another_member(&mut reader)? {
                self.state = GzipState::Member(Box::new(GzDecoder::new(reader)));
            }
        }
    }
}

fn another_member(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        match bytes.iter().position(|&byte| byte != 0) {
            None => {
                let padding = bytes.len();
                reader.consume(padding);
            }
            Some(at) if bytes[at] == 0x1f => {
                reader.consume(at);
                return Ok(true);
            }
            Some(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "bytes that are no gzip follow the stream",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        GzipStream::new(bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_are_one_stream() {
        let mut file = gzip(b"first ");
        file.extend(gzip(b""));
        file.extend(gzip(b"second"));
        file.extend([0; 512]);
        assert_eq!(unpacked(&file).unwrap(), b"first second");
    }

    #[test]
    fn anything_else_after_a_member_is_damage() {
        let mut file = gzip(b"first");
        file.extend(b"tail");
        assert!(unpacked(&file).is_err());
    }

    #[test]
    fn checksum_and_length_are_verified() {
        let file = gzip(&[7; 5000]);
        for at in file.len() - 8..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert!(unpacked(&damaged).is_err(), "byte {at}");
        }
        for cut in 0..file.len() {
            assert!(unpacked(&file[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn sizes_are_checked_before_anything_is_allocated() {
        let budget = Budget::default();
        assert_eq!(budget.admit(&[10, 20, 30], 2).unwrap(), 12_000);
        for sizes in [
            [1 << 32, 1 << 32, 1 << 32],
            [1 << 21, 1 << 10, 1],
            [u64::MAX, 1, 1],
        ] {
            assert!(
                matches!(budget.admit(&sizes, 2), Err(ImagingError::TooLarge(_))),
                "{sizes:?}"
            );
        }
        assert!(matches!(
            budget.admit(&[1 << 30], 8),
            Err(ImagingError::TooLarge(_))
        ));
        assert!(Packing::Gzip.plausible(1 << 40, 300).is_err());
        assert!(Packing::Gzip.plausible(100_000, 300).is_ok());
    }

    #[test]
    fn a_stream_that_goes_on_and_on_is_cut_off() {
        let mut endless = io::repeat(0);
        assert!(matches!(
            drain(&mut endless),
            Err(ImagingError::TooLarge(_))
        ));
        let mut endless = io::repeat(0);
        assert!(matches!(
            read_last(&mut endless, 100),
            Err(ImagingError::TooLarge(_))
        ));
        let mut short: &[u8] = &[1, 2, 3];
        assert!(matches!(
            read_payload(&mut short, 4, 1 << 40),
            Err(ImagingError::Truncated { found_bytes: 3, .. }) | Err(ImagingError::TooLarge(_))
        ));
    }
}
