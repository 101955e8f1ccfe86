//! The tags of a DICOM file, walked before anything in them is believed.
//!
//! The walk (PS3.5, section 7) keeps a stack of its own instead of recursing, goes at most [`MAX_DEPTH`] sequences
//! deep, and checks every length against the bytes that are left in its sequence, item and file. Values stay where
//! they are in the file; only their places are noted, and not more than [`MAX_ELEMENTS`] of them. So time and memory
//! are bounded by the size of the file, whatever it says.

mod item;

use std::io::Read;
use std::ops::Range;

use super::syntax::{Coding, Syntax};
use crate::imaging::budget::Budget;
use crate::imaging::error::ImagingError;

pub(super) use item::Item;

/// Deepest nesting of sequences.
const MAX_DEPTH: usize = 32;
/// Most elements and items of one file; an enhanced image of 4000 frames has about a quarter of it.
const MAX_ELEMENTS: usize = 1 << 20;
/// Length of a value that ends with a delimiter.
const UNDEFINED: u32 = u32::MAX;

const ITEM: u32 = 0xfffe_e000;
const ITEM_END: u32 = 0xfffe_e00d;
const SEQUENCE_END: u32 = 0xfffe_e0dd;
const PIXEL_DATA: u32 = 0x7fe0_0010;
const TRANSFER_SYNTAX: u32 = 0x0002_0010;

/// Sequences that are read. Implicit encoding does not mark a sequence of defined length as one; others are skipped
/// as a whole.
const SEQUENCES: [u32; 22] = [
    0x0008_1115, // Referenced Series
    0x0008_1140, // Referenced Image
    0x0008_1199, // Referenced SOP
    0x0008_2112, // Source Image
    0x0008_9124, // Derivation Image
    0x0018_9329, // CT Image Frame Type
    0x0020_9111, // Frame Content
    0x0020_9113, // Plane Position
    0x0020_9116, // Plane Orientation
    0x0028_9110, // Pixel Measures
    0x0028_9145, // Pixel Value Transformation
    0x0062_0002, // Segment
    0x0062_000a, // Segment Identification
    0x3006_0010, // Referenced Frame of Reference
    0x3006_0012, // RT Referenced Study
    0x3006_0014, // RT Referenced Series
    0x3006_0016, // Contour Image
    0x5200_9229, // Shared Functional Groups
    0x5200_9230, // Per-frame Functional Groups
    0x3006_0020, // Structure Set ROI
    0x3006_0039, // ROI Contour
    0x3006_0040, // Contour
];

/// A damaged or refused file.
pub(super) fn bad(what: impl Into<String>) -> ImagingError {
    ImagingError::Header {
        format: "DICOM",
        what: what.into(),
    }
}

/// A tag as the standard writes it.
pub(super) fn name(tag: u32) -> String {
    format!("({:04X},{:04X})", tag >> 16, tag & 0xffff)
}

/// One data element: where its value lies, or the items of a sequence.
#[derive(Debug)]
struct Element {
    tag: u32,
    value: Range<usize>,
    items: Vec<u32>,
}

/// The pieces of compressed pixel data (PS3.5, annex A.4).
#[derive(Debug, Default)]
pub(super) struct Fragments {
    /// Offsets of the frames from the first piece, as the basic offset table gives them; may be empty.
    pub offsets: Vec<u64>,
    /// Each piece, without the table.
    pub pieces: Vec<Range<usize>>,
}

/// A file's data set, its tags walked.
#[derive(Debug)]
pub(super) struct DataSet {
    bytes: Vec<u8>,
    /// How the file is encoded.
    pub syntax: Syntax,
    elements: Vec<Element>,
    /// Elements of each item in the order of their tags; the first item is the data set itself.
    items: Vec<Vec<u32>>,
    /// Compressed pixel data of the data set itself, where it has any.
    pub fragments: Option<Fragments>,
    /// What was assumed.
    pub warnings: Vec<String>,
}

/// Whether a file that begins like this is DICOM: the prefix at byte 128, or a data set without one.
pub(super) fn is_dicom(start: &[u8]) -> bool {
    if start.get(128..132) == Some(b"DICM".as_slice()) {
        return true;
    }
    let &[g0, g1, e0, e1, l0, l1, l2, l3, ..] = start else {
        return false;
    };
    // File meta information, or the first elements of the SOP Common and General modules.
    let group = u16::from_le_bytes([g0, g1]);
    let plausible_length = u32::from_le_bytes([l0, l1, l2, l3]) < 256;
    matches!(group, 2 | 8)
        && u16::from_le_bytes([e0, e1]) <= 0x0060
        && (is_vr([l0, l1]) || plausible_length)
}

const LONG_VRS: [&[u8; 2]; 13] = [
    b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV",
];
const SHORT_VRS: [&[u8; 2]; 21] = [
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN",
    b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
];

fn is_vr(vr: [u8; 2]) -> bool {
    LONG_VRS.contains(&&vr) || SHORT_VRS.contains(&&vr)
}

/// What is being walked.
struct Level {
    what: Inside,
    /// Where it ends, unless a delimiter does.
    end: Option<usize>,
    /// No length inside may reach beyond this.
    limit: usize,
    /// Whether elements inside have no VR.
    implicit: bool,
}

#[derive(Clone, Copy)]
enum Inside {
    /// Elements of this item.
    Item(u32),
    /// Items of this element.
    Sequence(u32),
}

/// Reads numbers at a moving place; nothing is read beyond `limit`.
struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
    big_endian: bool,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self, limit: usize) -> Result<[u8; N], ImagingError> {
        let raw = self
            .bytes
            .get(self.at..limit)
            .and_then(|rest| rest.first_chunk::<N>())
            .ok_or_else(|| bad("the file ends inside of an element; send the complete file"))?;
        self.at += N;
        Ok(*raw)
    }

    fn u16(&mut self, limit: usize) -> Result<u16, ImagingError> {
        let raw = self.take(limit)?;
        Ok(match self.big_endian {
            true => u16::from_be_bytes(raw),
            false => u16::from_le_bytes(raw),
        })
    }

    fn u32(&mut self, limit: usize) -> Result<u32, ImagingError> {
        let raw = self.take(limit)?;
        Ok(match self.big_endian {
            true => u32::from_be_bytes(raw),
            false => u32::from_le_bytes(raw),
        })
    }

    fn tag(&mut self, limit: usize) -> Result<u32, ImagingError> {
        let group = self.u16(limit)?;
        Ok(u32::from(group) << 16 | u32::from(self.u16(limit)?))
    }

    /// The end of a value of this length.
    fn end(&self, tag: u32, length: u32, limit: usize) -> Result<usize, ImagingError> {
        let left = limit - self.at;
        if length as usize > left {
            return Err(bad(format!(
                "the element {} announces {length} bytes where {left} are left; send the complete file",
                name(tag)
            )));
        }
        Ok(self.at + length as usize)
    }

    /// VR, where there is one, and length of the element whose tag was read.
    fn vr_and_length(
        &mut self,
        tag: u32,
        implicit: bool,
        limit: usize,
    ) -> Result<([u8; 2], u32), ImagingError> {
        if implicit {
            return Ok((*b"  ", self.u32(limit)?));
        }
        let vr: [u8; 2] = self.take(limit)?;
        if LONG_VRS.contains(&&vr) {
            self.take::<2>(limit)?;
            return Ok((vr, self.u32(limit)?));
        }
        if SHORT_VRS.contains(&&vr) {
            return Ok((vr, u32::from(self.u16(limit)?)));
        }
        Err(bad(format!(
            "the element {} has no known value representation",
            name(tag)
        )))
    }
}

impl DataSet {
    /// Walks a file. Deflated files are inflated first, within the budget.
    ///
    /// # Errors
    /// Whatever is not a complete data set, nests deeper or holds more elements than the limits; a transfer syntax
    /// that is not known.
    pub fn parse(mut bytes: Vec<u8>, budget: &Budget) -> Result<Self, ImagingError> {
        let mut warnings = Vec::new();
        let (uid, start) = meta(&bytes)?;
        let syntax = match uid.as_deref() {
            Some(uid) => Syntax::from_uid(uid)?,
            None => {
                warnings.push(
                    "the file does not tell its transfer syntax; it was taken from its first element"
                        .to_owned(),
                );
                let vr = bytes.get(start + 4..start + 6).unwrap_or_default();
                Syntax::plain(!matches!(vr, &[a, b] if is_vr([a, b])))
            }
        };
        let mut start = start;
        if syntax.coding == Coding::Deflated {
            bytes = inflate(&bytes[start..], budget)?;
            start = 0;
        }
        let mut set = Self {
            bytes: Vec::new(),
            syntax,
            elements: Vec::new(),
            items: vec![Vec::new()],
            fragments: None,
            warnings,
        };
        set.walk(&bytes, start)?;
        // They mostly are in order. Of two with one tag the first counts.
        for item in &mut set.items {
            item.sort_by_key(|&number| set.elements[number as usize].tag);
        }
        set.bytes = bytes;
        Ok(set)
    }

    fn walk(&mut self, bytes: &[u8], start: usize) -> Result<(), ImagingError> {
        let total = bytes.len();
        let mut cursor = Cursor {
            bytes,
            at: start,
            big_endian: self.syntax.big_endian,
        };
        let mut stack = vec![Level {
            what: Inside::Item(0),
            end: Some(total),
            limit: total,
            implicit: self.syntax.implicit,
        }];
        while let Some(level) = stack.last() {
            if level.end == Some(cursor.at) {
                stack.pop();
                continue;
            }
            let (limit, implicit, what, delimited) =
                (level.limit, level.implicit, level.what, level.end.is_none());
            if stack.len() == 1 && bytes[cursor.at..].iter().take(8).all(|&byte| byte == 0) {
                // Some writers fill up the last block.
                if bytes[cursor.at..].iter().all(|&byte| byte == 0) {
                    return Ok(());
                }
                return Err(bad("zeros stand where an element should"));
            }
            let tag = cursor.tag(limit)?;
            let (element, item_level) = match what {
                Inside::Sequence(element) => match tag {
                    ITEM => (element, true),
                    SEQUENCE_END if delimited => {
                        cursor.u32(limit)?;
                        stack.pop();
                        continue;
                    }
                    other => {
                        return Err(bad(format!(
                            "a sequence holds the element {} outside of its items",
                            name(other)
                        )));
                    }
                },
                Inside::Item(_) if tag == ITEM_END && delimited => {
                    cursor.u32(limit)?;
                    stack.pop();
                    continue;
                }
                Inside::Item(_) if tag >> 16 == 0xfffe => {
                    return Err(bad(format!("the delimiter {} ends nothing", name(tag))));
                }
                Inside::Item(item) => (item, false),
            };
            if self.elements.len() + self.items.len() >= MAX_ELEMENTS {
                return Err(ImagingError::TooLarge(format!(
                    "more than {MAX_ELEMENTS} DICOM elements in one file"
                )));
            }
            if stack.len() > 2 * MAX_DEPTH {
                return Err(ImagingError::TooLarge(format!(
                    "DICOM sequences nested more than {MAX_DEPTH} deep"
                )));
            }
            if item_level {
                let length = cursor.u32(limit)?;
                let end = match length {
                    UNDEFINED => None,
                    length => Some(cursor.end(tag, length, limit)?),
                };
                let item = self.items.len() as u32;
                self.items.push(Vec::new());
                self.elements[element as usize].items.push(item);
                stack.push(Level {
                    what: Inside::Item(item),
                    end,
                    limit: end.unwrap_or(limit),
                    implicit,
                });
                continue;
            }
            let item = element;
            let (vr, length) = cursor.vr_and_length(tag, implicit, limit)?;
            let number = self.elements.len() as u32;
            self.items[item as usize].push(number);
            let mut note = |value| {
                self.elements.push(Element {
                    tag,
                    value,
                    items: Vec::new(),
                });
            };
            if length == UNDEFINED {
                if tag == PIXEL_DATA && (vr == *b"OB" || vr == *b"OW" || vr == *b"UN") {
                    note(cursor.at..cursor.at);
                    let fragments = fragments(&mut cursor, limit)?;
                    if item == 0 {
                        self.fragments = Some(fragments);
                    }
                    continue;
                }
                if !implicit && vr != *b"SQ" && vr != *b"UN" {
                    return Err(bad(format!(
                        "the element {} has no length and is no sequence",
                        name(tag)
                    )));
                }
                note(cursor.at..cursor.at);
                stack.push(Level {
                    what: Inside::Sequence(number),
                    end: None,
                    limit,
                    // PS3.5, 6.2.2, note 2: an unknown sequence is encoded implicitly.
                    implicit: implicit || vr == *b"UN",
                });
                continue;
            }
            let end = cursor.end(tag, length, limit)?;
            note(cursor.at..end);
            if vr == *b"SQ" || implicit && SEQUENCES.contains(&tag) {
                stack.push(Level {
                    what: Inside::Sequence(number),
                    end: Some(end),
                    limit: end,
                    implicit,
                });
            } else {
                cursor.at = end;
            }
        }
        Ok(())
    }

    /// The data set itself.
    pub fn root(&self) -> Item<'_> {
        Item { set: self, item: 0 }
    }

    /// Bytes of the file, or of what was inflated of it.
    pub fn slice(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    /// Uncompressed pixel data of the data set itself.
    pub fn pixel_data(&self) -> Option<&[u8]> {
        if self.fragments.is_some() {
            return None;
        }
        self.root().bytes(PIXEL_DATA)
    }
}

/// The transfer syntax that the file meta information tells (PS3.10, 7.1), and where the data set begins.
fn meta(bytes: &[u8]) -> Result<(Option<String>, usize), ImagingError> {
    let start = match bytes.get(128..132) {
        Some(b"DICM") => 132,
        _ => 0,
    };
    let total = bytes.len();
    let (mut cursor, mut uid) = (
        Cursor {
            bytes,
            at: start,
            big_endian: false,
        },
        None,
    );
    while bytes.get(cursor.at..cursor.at + 2) == Some(&[2u8, 0][..]) {
        let tag = cursor.tag(total)?;
        let (_, length) = cursor.vr_and_length(tag, false, total)?;
        let end = cursor.end(tag, length, total)?;
        if tag == TRANSFER_SYNTAX {
            uid = Some(trimmed(&bytes[cursor.at..end]));
        }
        cursor.at = end;
    }
    if cursor.at == total {
        return Err(bad(
            "the file ends before its data set; send the complete file",
        ));
    }
    Ok((uid, cursor.at))
}

fn inflate(bytes: &[u8], budget: &Budget) -> Result<Vec<u8>, ImagingError> {
    let mut inflated = Vec::new();
    let limit = budget.max_bytes;
    flate2::read::DeflateDecoder::new(bytes)
        .take(limit + 1)
        .read_to_end(&mut inflated)
        .map_err(crate::imaging::budget::decode_error)?;
    if inflated.len() as u64 > limit {
        return Err(ImagingError::TooLarge(format!(
            "a deflated DICOM file of more than {limit} bytes"
        )));
    }
    Ok(inflated)
}

fn fragments(cursor: &mut Cursor<'_>, limit: usize) -> Result<Fragments, ImagingError> {
    let (mut found, mut is_table) = (Fragments::default(), true);
    loop {
        let tag = cursor.tag(limit)?;
        let length = cursor.u32(limit)?;
        match tag {
            SEQUENCE_END => return Ok(found),
            ITEM => {}
            other => {
                return Err(bad(format!(
                    "compressed pixel data hold the element {}",
                    name(other)
                )));
            }
        }
        let end = cursor.end(tag, length, limit)?;
        let value = cursor.at..end;
        if is_table {
            let table = cursor.bytes[value].chunks_exact(4);
            found.offsets = table
                .map(|raw| u64::from(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]])))
                .collect();
        } else if found.pieces.len() >= MAX_ELEMENTS {
            return Err(ImagingError::TooLarge(format!(
                "pixel data in more than {MAX_ELEMENTS} pieces"
            )));
        } else {
            found.pieces.push(value);
        }
        is_table = false;
        cursor.at = end;
    }
}

/// Text without the padding of DICOM.
fn trimmed(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw)
        .trim_matches(['\0', ' '])
        .to_owned()
}

#[cfg(test)]
mod tests;
