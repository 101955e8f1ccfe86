//! Elements of a file that is written: Explicit or Implicit VR Little Endian (PS3.5, 7.1; PS3.10, 7.1).

use super::dataset::Item;
use crate::imaging::terminology::Code;

/// Class and root of our UIDs: 2.25 with a number of 128 bits (PS3.5, B.2).
const UID_ROOT: &str = "2.25.";
const IMPLEMENTATION_UID: &str = "2.25.247350161936870433870298213471160839611";

/// A data set in the order in which its elements are put; that has to be the order of their tags.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    bytes: Vec<u8>,
    /// Whether elements have no VR.
    implicit: bool,
}

impl Encoder {
    /// Implicit VR Little Endian, where a text may be longer than 65534 bytes.
    pub fn implicit() -> Self {
        Self {
            implicit: true,
            ..Self::default()
        }
    }

    fn header(&mut self, tag: u32, vr: &[u8; 2], length: usize) {
        self.bytes.extend(((tag >> 16) as u16).to_le_bytes());
        self.bytes.extend((tag as u16).to_le_bytes());
        if self.implicit {
            self.bytes.extend((length as u32).to_le_bytes());
            return;
        }
        self.bytes.extend(vr);
        if matches!(vr, b"OB" | b"OW" | b"SQ" | b"UT" | b"UN") {
            self.bytes.extend([0, 0]);
            self.bytes.extend((length as u32).to_le_bytes());
        } else {
            self.bytes.extend((length as u16).to_le_bytes());
        }
    }

    /// A value as it is; a byte that fills up an odd length fits the VR.
    pub fn put(&mut self, tag: u32, vr: &[u8; 2], value: &[u8]) -> &mut Self {
        let odd = value.len() % 2;
        self.header(tag, vr, value.len() + odd);
        self.bytes.extend(value);
        if odd == 1 {
            self.bytes.push(match vr {
                b"UI" | b"OB" | b"UN" => 0,
                _ => b' ',
            });
        }
        self
    }

    /// Text, cut to the longest that the VR allows (PS3.5, table 6.2-1).
    pub fn text(&mut self, tag: u32, vr: &[u8; 2], value: &str) -> &mut Self {
        let longest = match vr {
            b"CS" | b"SH" => 16,
            b"LO" | b"UI" | b"PN" => 64,
            _ => 1024,
        };
        let mut end = value.len().min(longest);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        self.put(tag, vr, &value.as_bytes()[..end])
    }

    /// Numbers as text of at most 16 characters each.
    pub fn decimals(&mut self, tag: u32, values: &[f64]) -> &mut Self {
        let texts: Vec<String> = values.iter().map(|&value| decimal(value)).collect();
        self.put(tag, b"DS", texts.join("\\").as_bytes())
    }

    /// Whole numbers of 16 bits.
    pub fn words(&mut self, tag: u32, values: &[u16]) -> &mut Self {
        let raw: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.put(tag, b"US", &raw)
    }

    /// Whole numbers of 32 bits.
    pub fn longs(&mut self, tag: u32, values: &[u32]) -> &mut Self {
        let raw: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.put(tag, b"UL", &raw)
    }

    /// A tag as value.
    pub fn tag(&mut self, tag: u32, value: u32) -> &mut Self {
        let [group, element] = [(value >> 16) as u16, value as u16].map(u16::to_le_bytes);
        self.put(tag, b"AT", &[group, element].concat())
    }

    /// A sequence of the items that `fill` makes, one for each of `over`.
    pub fn sequence<T>(
        &mut self,
        tag: u32,
        over: impl IntoIterator<Item = T>,
        mut fill: impl FnMut(&mut Encoder, T),
    ) -> &mut Self {
        let mut items = Vec::new();
        for one in over {
            let mut item = Encoder {
                implicit: self.implicit,
                ..Encoder::default()
            };
            fill(&mut item, one);
            items.extend([0xfe, 0xff, 0x00, 0xe0]);
            items.extend((item.bytes.len() as u32).to_le_bytes());
            items.extend(item.bytes);
        }
        self.header(tag, b"SQ", items.len());
        self.bytes.extend(items);
        self
    }

    /// A sequence of one item.
    pub fn item(&mut self, tag: u32, fill: impl FnOnce(&mut Encoder)) -> &mut Self {
        let mut fill = Some(fill);
        self.sequence(tag, [()], |item, ()| {
            if let Some(fill) = fill.take() {
                fill(item);
            }
        })
    }

    /// A code (PS3.3, 8.8).
    pub fn code(&mut self, tag: u32, code: &Code) -> &mut Self {
        self.item(tag, |item| {
            item.text(0x0008_0100, b"SH", code.value)
                .text(0x0008_0102, b"SH", code.scheme)
                .text(0x0008_0104, b"LO", code.meaning);
        })
    }

    /// A value of another file as it is there, empty when it has none. Only for values without byte order.
    pub fn copy(&mut self, from: Item<'_>, tag: u32, vr: &[u8; 2]) -> &mut Self {
        self.put(tag, vr, from.bytes(tag).unwrap_or_default())
    }

    /// The file: preamble, file meta information, and this data set.
    pub fn into_file(self, class_uid: &str, instance_uid: &str) -> Vec<u8> {
        let mut meta = Encoder::default();
        meta.put(0x0002_0001, b"OB", &[0, 1])
            .text(0x0002_0002, b"UI", class_uid)
            .text(0x0002_0003, b"UI", instance_uid)
            .text(
                0x0002_0010,
                b"UI",
                if self.implicit {
                    "1.2.840.10008.1.2"
                } else {
                    "1.2.840.10008.1.2.1"
                },
            )
            .text(0x0002_0012, b"UI", IMPLEMENTATION_UID)
            .text(
                0x0002_0013,
                b"SH",
                concat!("FEWLABEL_", env!("CARGO_PKG_VERSION")),
            );
        let mut file = Encoder {
            bytes: vec![0; 128],
            implicit: false,
        };
        file.bytes.extend(b"DICM");
        file.put(0x0002_0000, b"UL", &(meta.bytes.len() as u32).to_le_bytes());
        file.bytes.extend(meta.bytes);
        file.bytes.extend(self.bytes);
        file.bytes
    }
}

/// The shortest text of at most 16 characters that is nearest to a number.
fn decimal(value: f64) -> String {
    let plain = format!("{}", value + 0.0);
    if plain.len() <= 16 {
        return plain;
    }
    (0..16)
        .rev()
        .map(|digits| format!("{value:.digits$}"))
        .find(|text| text.len() <= 16)
        .unwrap_or_else(|| format!("{value:.8e}"))
}

/// A UID that follows from what it names: the first 128 bits of a SHA-256.
pub(super) fn uid_of(parts: &[&[u8]]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut number = [0; 16];
    number.copy_from_slice(&hash.finalize()[..16]);
    // The bits that make it a UUID (RFC 9562, version 8).
    number[6] = number[6] & 0x0f | 0x80;
    number[8] = number[8] & 0x3f | 0x80;
    format!("{UID_ROOT}{}", u128::from_be_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_fit_into_sixteen_characters() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.5, "1.5"),
            (0.12345678901234568, "0.12345678901235"),
            (-316.123_456_789_012_3, "-316.12345678901"),
            (-1.2345e-9, "-0.0000000012345"),
        ] {
            assert_eq!(decimal(value), text);
        }
        for value in [f64::MAX, 1e300, -123_456.789_012_345_67, 1.0 / 3.0] {
            let text = decimal(value);
            assert!(text.len() <= 16, "{text}");
        }
    }

    #[test]
    fn uids_follow_from_what_they_name() {
        let uid = uid_of(&[b"a", b"b"]);
        assert_eq!(uid, uid_of(&[b"a", b"b"]));
        assert_ne!(uid, uid_of(&[b"ab", b""]));
        assert!(uid.len() <= 64 && uid.starts_with(UID_ROOT));
    }
}
