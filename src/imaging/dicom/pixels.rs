//! One frame of pixel data as stored values, whatever it is packed in.
//!
//! Every decoder is told the size that the header announces and may not deliver another one; sizes are compared
//! before anything is decoded. A decoder of another author that panics on damaged bytes costs that file, not the
//! process.

use std::borrow::Cow;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::dataset::{DataSet, Fragments, bad};
use super::syntax::Coding;
use crate::imaging::error::ImagingError;

const EXTENDED_OFFSETS: u32 = 0x7fe0_0001;
/// A run of RLE makes 128 bytes of two.
const RLE_MAX_RATIO: usize = 64;

/// How a pixel is stored (PS3.3, C.7.6.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PixelFormat {
    pub rows: usize,
    pub columns: usize,
    /// 1, 8, 16 or 32.
    pub bits_allocated: u16,
    pub bits_stored: u16,
    pub high_bit: u16,
    pub signed: bool,
}

impl PixelFormat {
    /// Reads the Image Pixel module.
    ///
    /// # Errors
    /// Missing or contradicting fields, and images that are not grey.
    pub fn of(set: &DataSet) -> Result<Self, ImagingError> {
        let root = set.root();
        let field = |tag: u32, what: &str| {
            root.u16(tag)
                .ok_or_else(|| bad(format!("the field {what} is missing")))
        };
        let samples = root.u16(0x0028_0002).unwrap_or(1);
        let photometric = root.text(0x0028_0004).unwrap_or_default();
        // A label map may bring its colours along.
        let is_grey = match photometric.as_str() {
            "PALETTE COLOR" => root.element_is_there(0x0062_0001),
            other => matches!(other, "" | "MONOCHROME1" | "MONOCHROME2"),
        };
        if samples != 1 || !is_grey {
            return Err(ImagingError::Unsupported(
                "colour DICOM images are no scans".to_owned(),
            ));
        }
        let bits_allocated = field(0x0028_0100, "Bits Allocated")?;
        let bits_stored = root.u16(0x0028_0101).unwrap_or(bits_allocated);
        let format = Self {
            rows: field(0x0028_0010, "Rows")?.into(),
            columns: field(0x0028_0011, "Columns")?.into(),
            bits_allocated,
            bits_stored,
            high_bit: root
                .u16(0x0028_0102)
                .unwrap_or(bits_stored.saturating_sub(1)),
            signed: match field(0x0028_0103, "Pixel Representation")? {
                0 => false,
                1 => true,
                other => return Err(bad(format!("Pixel Representation is {other}"))),
            },
        };
        let Self {
            rows,
            columns,
            high_bit,
            ..
        } = format;
        if rows == 0 || columns == 0 {
            return Err(bad(format!("Rows x Columns is {rows} x {columns}")));
        }
        let consistent = matches!(bits_allocated, 1 | 8 | 16 | 32)
            && (1..=bits_allocated).contains(&bits_stored)
            && high_bit < bits_allocated
            && high_bit + 1 >= bits_stored;
        if !consistent {
            return Err(bad(format!(
                "Bits Allocated {bits_allocated}, Bits Stored {bits_stored} and High Bit {high_bit} contradict each other"
            )));
        }
        Ok(format)
    }

    /// Pixels of a frame.
    pub fn pixel_count(&self) -> usize {
        self.rows * self.columns
    }

    /// Bits above the stored ones are cut off (old overlays live there), the sign is extended.
    fn value(&self, raw: u32) -> i32 {
        let unused = 32 - u32::from(self.bits_stored);
        let low = u32::from(self.high_bit) + 1 - u32::from(self.bits_stored);
        let shifted = (raw >> low) << unused;
        if self.signed {
            shifted as i32 >> unused
        } else {
            // 32 bits without a sign are refused before this.
            (shifted >> unused) as i32
        }
    }
}

/// The frames of an instance.
pub(super) struct Frames<'d> {
    set: &'d DataSet,
    format: PixelFormat,
    /// Which pieces of compressed pixel data are a frame's; empty where they are not compressed.
    pieces: Vec<Range<usize>>,
}

impl<'d> Frames<'d> {
    /// Checks that `count` frames can be there.
    ///
    /// # Errors
    /// No pixel data, or pixel data of another size; a coding that is not read here.
    pub fn new(set: &'d DataSet, format: PixelFormat, count: usize) -> Result<Self, ImagingError> {
        if format.bits_stored == 32 && !format.signed {
            return Err(ImagingError::Unsupported(
                "DICOM pixels of 32 bits without sign".to_owned(),
            ));
        }
        if let Coding::Unread(name) = set.syntax.coding {
            return Err(ImagingError::Unsupported(format!(
                "the DICOM transfer syntax {name} is not read here; convert the series to Explicit VR Little Endian, for example with dcmdjpeg or gdcmconv --raw"
            )));
        }
        let mut pieces = Vec::new();
        match (&set.fragments, set.pixel_data()) {
            (Some(fragments), _) if fragments.pieces.len() >= count => {
                pieces = pieces_of_frames(set, fragments, count)?;
            }
            (Some(fragments), _) => {
                return Err(bad(format!(
                    "{count} frames are announced, {} are there",
                    fragments.pieces.len()
                )));
            }
            (None, None) => return Err(bad("there are no pixel data")),
            (None, Some(raw)) => {
                // A frame of 1 bit pixels does not begin at a byte.
                let bits = (format.pixel_count() as u64)
                    .checked_mul(u64::from(format.bits_allocated))
                    .and_then(|bits| bits.checked_mul(count as u64));
                let expected = bits.map(|bits| bits.div_ceil(8));
                let found = raw.len() as u64;
                if expected.is_none_or(|expected| found != expected && found != expected + 1) {
                    return Err(bad(format!(
                        "Rows x Columns {} x {} of {} bits in {count} frames do not match the {found} bytes of pixel data",
                        format.rows, format.columns, format.bits_allocated
                    )));
                }
                if set.syntax.coding != Coding::Plain && set.syntax.coding != Coding::Deflated {
                    return Err(bad(
                        "the pixel data are not compressed, but the transfer syntax says so",
                    ));
                }
            }
        }
        Ok(Self {
            set,
            format,
            pieces,
        })
    }

    /// Stored values of one frame, row by row.
    ///
    /// # Errors
    /// Damaged or contradicting data.
    pub fn read(&self, frame: usize) -> Result<Vec<i32>, ImagingError> {
        let format = &self.format;
        if let Some(raw) = self.set.pixel_data() {
            return self.plain(raw, frame);
        }
        let packed = self.packed(frame)?;
        let raw = match self.set.syntax.coding {
            Coding::Rle => rle(&packed, format)?,
            Coding::Jpeg => guarded("JPEG", || jpeg(&packed, format))?,
            Coding::JpegLs => guarded("JPEG-LS", || jpeg_ls(&packed, format))?,
            Coding::Jpeg2000 => guarded("JPEG 2000", || jpeg_2000(&packed, format))?,
            _ => {
                return Err(bad(
                    "the pixel data are compressed, but the transfer syntax is not",
                ));
            }
        };
        if raw.len() != format.pixel_count() {
            return Err(other_size("the compressed image", raw.len(), 1, format));
        }
        Ok(raw.into_iter().map(|raw| format.value(raw)).collect())
    }

    fn plain(&self, raw: &[u8], frame: usize) -> Result<Vec<i32>, ImagingError> {
        let (format, big_endian) = (&self.format, self.set.syntax.big_endian);
        let pixels = format.pixel_count();
        if format.bits_allocated == 1 {
            let first = frame * pixels;
            // The first pixel is the lowest bit of a byte (PS3.5, 8.1.1).
            let bit = |n: usize| i32::from(raw[n / 8] >> (n % 8) & 1);
            return Ok((first..first + pixels).map(bit).collect());
        }
        let size = usize::from(format.bits_allocated / 8);
        let raw = raw
            .get(frame * pixels * size..(frame + 1) * pixels * size)
            .ok_or_else(|| bad("the pixel data end too early"))?;
        Ok(match (size, big_endian) {
            (1, _) => raw.iter().map(|&v| format.value(v.into())).collect(),
            (2, false) => words(raw, |w| format.value(u16::from_le_bytes(w).into())),
            (2, true) => words(raw, |w| format.value(u16::from_be_bytes(w).into())),
            (_, false) => words(raw, |w| format.value(u32::from_le_bytes(w))),
            (_, true) => words(raw, |w| format.value(u32::from_be_bytes(w))),
        })
    }

    /// The pieces of one frame, joined.
    fn packed(&self, frame: usize) -> Result<Cow<'d, [u8]>, ImagingError> {
        let (Some(fragments), Some(range)) = (&self.set.fragments, self.pieces.get(frame)) else {
            return Err(bad("there are no pixel data"));
        };
        Ok(match &fragments.pieces[range.clone()] {
            [one] => Cow::Borrowed(self.set.slice(one)),
            many => Cow::Owned(
                many.iter()
                    .flat_map(|piece| self.set.slice(piece))
                    .copied()
                    .collect(),
            ),
        })
    }
}

/// Which pieces are which frame's: by their number, by an offset table, or by the marks that begin an image.
fn pieces_of_frames(
    set: &DataSet,
    fragments: &Fragments,
    count: usize,
) -> Result<Vec<Range<usize>>, ImagingError> {
    let pieces = &fragments.pieces;
    if count == 1 {
        return Ok(std::iter::once(0..pieces.len()).collect());
    }
    if pieces.len() == count {
        return Ok((0..count).map(|frame| frame..frame + 1).collect());
    }
    let extended = set.root().u64s(EXTENDED_OFFSETS);
    let table = match extended.is_empty() {
        true => &fragments.offsets,
        false => &extended,
    };
    let first = pieces.first().map_or(0, |piece| piece.start) as u64;
    let mut starts: Vec<usize> = if table.is_empty() {
        let begins = |n: &usize| {
            let start = set.slice(&pieces[*n]);
            start.starts_with(&[0xff, 0xd8]) || start.starts_with(&[0xff, 0x4f, 0xff, 0x51])
        };
        (0..pieces.len()).filter(begins).collect()
    } else {
        let place =
            |offset: &u64| pieces.binary_search_by_key(offset, |piece| piece.start as u64 - first);
        table
            .iter()
            .filter_map(|offset| place(offset).ok())
            .collect()
    };
    let ascending = starts.first() == Some(&0) && starts.is_sorted_by(|a, b| a < b);
    if starts.len() != count || !ascending {
        return Err(bad(format!(
            "the {} pieces of compressed pixel data cannot be told apart into {count} frames",
            pieces.len()
        )));
    }
    starts.push(pieces.len());
    Ok(starts.windows(2).map(|pair| pair[0]..pair[1]).collect())
}

fn words<const N: usize>(raw: &[u8], value: impl Fn([u8; N]) -> i32) -> Vec<i32> {
    let (chunks, _) = raw.as_chunks::<N>();
    chunks.iter().map(|&word| value(word)).collect()
}

fn other_size(what: &str, columns: usize, rows: usize, format: &PixelFormat) -> ImagingError {
    bad(format!(
        "{what} has {columns} x {rows} pixels, the header announces {} x {}",
        format.columns, format.rows
    ))
}

/// A decoder of another author: its panic is an error of the file.
fn guarded(
    name: &'static str,
    decode: impl FnOnce() -> Result<Vec<u32>, ImagingError>,
) -> Result<Vec<u32>, ImagingError> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(ImagingError::Corrupt(format!(
            "the {name} decoder gave up on them"
        )))
    })
}

fn damaged(name: &str, error: &dyn std::fmt::Display) -> ImagingError {
    ImagingError::Corrupt(format!("{name}: {error}"))
}

/// Run lengths of byte planes, the highest byte first (PS3.5, annex G).
fn rle(packed: &[u8], format: &PixelFormat) -> Result<Vec<u32>, ImagingError> {
    let short = || ImagingError::Corrupt("RLE: the data end too early".to_owned());
    let word = |n: usize| {
        packed
            .get(4 * n..4 * n + 4)
            .and_then(|raw| raw.first_chunk::<4>())
            .map(|raw| u32::from_le_bytes(*raw) as usize)
            .ok_or_else(short)
    };
    let (planes, pixels) = (usize::from(format.bits_allocated / 8), format.pixel_count());
    if word(0)? != planes {
        return Err(ImagingError::Corrupt(format!(
            "RLE: {} byte planes for {} bits",
            word(0)?,
            format.bits_allocated
        )));
    }
    if pixels.saturating_mul(planes) > packed.len().saturating_mul(RLE_MAX_RATIO) {
        return Err(short());
    }
    let mut values = vec![0u32; pixels];
    for plane in 0..planes {
        let start = word(1 + plane)?;
        let end = match plane + 1 {
            next if next < planes => word(1 + next)?,
            _ => packed.len(),
        };
        let mut bytes = packed.get(start..end).ok_or_else(short)?.iter();
        let mut filled = 0;
        while filled < pixels {
            let control = *bytes.next().ok_or_else(short)? as i8;
            let mut put = |value: u8| {
                if let Some(pixel) = values.get_mut(filled) {
                    *pixel = *pixel << 8 | u32::from(value);
                }
                filled += 1;
            };
            match control {
                0.. => {
                    for _ in 0..=control {
                        put(*bytes.next().ok_or_else(short)?);
                    }
                }
                -128 => {}
                _ => {
                    let value = *bytes.next().ok_or_else(short)?;
                    for _ in 0..=-i32::from(control) {
                        put(value);
                    }
                }
            }
        }
        if filled > pixels + 1 {
            return Err(ImagingError::Corrupt(
                "RLE: a plane has more pixels than the image".to_owned(),
            ));
        }
    }
    Ok(values)
}

fn jpeg(packed: &[u8], format: &PixelFormat) -> Result<Vec<u32>, ImagingError> {
    let mut decoder = jpeg_decoder::Decoder::new(packed);
    decoder.set_max_decoding_buffer_size(format.pixel_count().saturating_mul(4));
    let failed = |error: jpeg_decoder::Error| match error {
        jpeg_decoder::Error::Unsupported(jpeg_decoder::UnsupportedFeature::SamplePrecision(
            bits,
        )) => ImagingError::Unsupported(format!(
            "JPEG Extended of {bits} bits is not read here; convert the series to Explicit VR Little Endian, for example with dcmdjpeg"
        )),
        error => damaged("JPEG", &error),
    };
    decoder.read_info().map_err(failed)?;
    let info = decoder
        .info()
        .ok_or_else(|| damaged("JPEG", &"there is no image"))?;
    let (columns, rows) = (usize::from(info.width), usize::from(info.height));
    if (columns, rows) != (format.columns, format.rows) {
        return Err(other_size("the JPEG image", columns, rows, format));
    }
    // Each of its many scans may go over the whole image, so a short file can take very long.
    if info.coding_process == jpeg_decoder::CodingProcess::DctProgressive {
        return Err(ImagingError::Unsupported(
            "a progressive JPEG image, which is not what the transfer syntax says".to_owned(),
        ));
    }
    let bytes = decoder.decode().map_err(failed)?;
    Ok(match info.pixel_format {
        jpeg_decoder::PixelFormat::L8 => bytes.into_iter().map(u32::from).collect(),
        jpeg_decoder::PixelFormat::L16 => {
            let (words, _) = bytes.as_chunks::<2>();
            words
                .iter()
                .map(|&word| u16::from_ne_bytes(word).into())
                .collect()
        }
        _ => {
            return Err(ImagingError::Unsupported(
                "a colour JPEG image is no scan".to_owned(),
            ));
        }
    })
}

fn jpeg_ls(packed: &[u8], format: &PixelFormat) -> Result<Vec<u32>, ImagingError> {
    let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (pixels, columns, rows) = jpegls::decode(packed, side(format.columns), side(format.rows))
        .map_err(|error| damaged("JPEG-LS", &error))?;
    if (columns, rows) != (side(format.columns), side(format.rows)) {
        return Err(other_size(
            "the JPEG-LS image",
            columns as usize,
            rows as usize,
            format,
        ));
    }
    Ok(pixels.into_iter().map(u32::from).collect())
}

fn jpeg_2000(packed: &[u8], format: &PixelFormat) -> Result<Vec<u32>, ImagingError> {
    /// Place of the precision of the first component in a codestream that begins with its SIZ segment (ITU-T T.800,
    /// A.5.1); its highest bit says that the samples are signed.
    const PRECISION: usize = 42;
    let settings = hayro_jpeg2000::DecodeSettings {
        resolve_palette_indices: false,
        strict: true,
        target_resolution: None,
    };
    let failed = |error: hayro_jpeg2000::DecodeError| damaged("JPEG 2000", &error);
    let image = hayro_jpeg2000::Image::new(packed, &settings).map_err(failed)?;
    let (columns, rows) = (image.width() as usize, image.height() as usize);
    if (columns, rows) != (format.columns, format.rows) {
        return Err(other_size("the JPEG 2000 image", columns, rows, format));
    }
    let (bits, signed) = match packed {
        [0xff, 0x4f, 0xff, 0x51, ..] if packed.len() > PRECISION => {
            (packed[PRECISION] % 0x80 + 1, packed[PRECISION] & 0x80 != 0)
        }
        _ => (image.original_bit_depth(), false),
    };
    if bits > 16 {
        return Err(ImagingError::Unsupported(format!(
            "JPEG 2000 of {bits} bits"
        )));
    }
    let mut context = hayro_jpeg2000::DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(failed)?;
    let [component] = decoded.components() else {
        return Err(ImagingError::Unsupported(
            "a colour JPEG 2000 image is no scan".to_owned(),
        ));
    };
    // The decoder takes every sample as unsigned and moves the range up.
    let (down, low, high) = if signed {
        (1 << (bits - 1), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, 0, (1 << bits) - 1)
    };
    let value = |&sample: &f32| ((sample.round() as i32) - down).clamp(low, high) as u32;
    Ok(component.samples().iter().map(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits_stored: u16, high_bit: u16, signed: bool) -> PixelFormat {
        PixelFormat {
            rows: 2,
            columns: 3,
            bits_allocated: 16,
            bits_stored,
            high_bit,
            signed,
        }
    }

    #[test]
    fn bits_beyond_the_stored_ones_do_not_count() {
        assert_eq!(format(12, 11, false).value(0xf123), 0x123);
        assert_eq!(format(12, 11, true).value(0x0fff), -1);
        assert_eq!(format(12, 11, true).value(0xf7ff), 0x7ff);
        assert_eq!(format(12, 15, true).value(0xfff7), -1);
        assert_eq!(format(16, 15, true).value(0x8000), -32768);
        assert_eq!(format(16, 15, false).value(0x8000), 32768);
    }

    #[test]
    fn progressive_jpeg_is_refused_before_its_scans() {
        let frame = [8u8, 0, 2, 0, 3, 1, 1, 0x11, 0];
        let scan = [1u8, 1, 0, 0, 0, 0];
        let mut packed = vec![0xff, 0xd8, 0xff, 0xc2, 0, 2 + frame.len() as u8];
        packed.extend(frame);
        packed.extend([0xff, 0xda, 0, 2 + scan.len() as u8]);
        packed.extend(scan);
        let refused = jpeg(&packed, &format(8, 7, false)).unwrap_err();
        assert!(refused.to_string().contains("progressive"), "{refused}");
    }

    #[test]
    fn run_lengths() {
        let mut packed = vec![0u8; 64];
        packed[0] = 2;
        packed[4] = 64;
        packed[8] = 66;
        // High bytes: six times 1; low bytes: three of their own, then three times 9.
        packed.extend([(-5i8) as u8, 1, 2, 7, 8, 9, (-2i8) as u8, 9]);
        let format = format(16, 15, false);
        assert_eq!(
            rle(&packed, &format).unwrap(),
            [0x107, 0x108, 0x109, 0x109, 0x109, 0x109]
        );
        for cut in 0..packed.len() {
            assert!(rle(&packed[..cut], &format).is_err(), "cut at {cut}");
        }
        packed[0] = 3;
        assert!(rle(&packed, &format).is_err());
        packed[0] = 2;
        let large = PixelFormat {
            rows: 60_000,
            columns: 60_000,
            ..format
        };
        assert!(rle(&packed, &large).is_err());
    }
}
