//! Values of elements, read on demand.

use super::{DataSet, Element, bad, name, trimmed};
use crate::imaging::error::ImagingError;

/// An item of a sequence, or the data set itself. Values are read on demand.
#[derive(Debug, Clone, Copy)]
pub(in crate::imaging::dicom) struct Item<'d> {
    pub(super) set: &'d DataSet,
    pub(super) item: u32,
}

impl<'d> Item<'d> {
    fn element(&self, tag: u32) -> Option<&'d Element> {
        let numbers = &self.set.items[self.item as usize];
        let element = |number: u32| &self.set.elements[number as usize];
        let at = numbers.partition_point(|&number| element(number).tag < tag);
        let found = element(*numbers.get(at)?);
        (found.tag == tag).then_some(found)
    }

    /// The value as it is in the file; none when it is absent or empty.
    pub fn bytes(&self, tag: u32) -> Option<&'d [u8]> {
        let element = self.element(tag)?;
        Some(&self.set.bytes[element.value.clone()]).filter(|raw| !raw.is_empty())
    }

    /// Whether the element is there, with or without a value.
    pub fn element_is_there(&self, tag: u32) -> bool {
        self.element(tag).is_some()
    }

    /// Text without its padding; none when nothing is left.
    pub fn text(&self, tag: u32) -> Option<String> {
        let text = trimmed(self.bytes(tag)?);
        (!text.is_empty()).then_some(text)
    }

    /// Numbers written as text (DS, IS).
    ///
    /// # Errors
    /// Text that is no number.
    pub fn decimals(&self, tag: u32) -> Result<Option<Vec<f64>>, ImagingError> {
        let Some(text) = self.text(tag) else {
            return Ok(None);
        };
        text.split('\\')
            .map(|part| part.trim_matches(['\0', ' ']).parse::<f64>())
            .collect::<Result<_, _>>()
            .map(Some)
            .map_err(|_| bad(format!("{} holds text that is no number", name(tag))))
    }

    /// Exactly `N` finite numbers written as text.
    ///
    /// # Errors
    /// Another number of them, or text that is no finite number.
    pub fn decimal<const N: usize>(&self, tag: u32) -> Result<Option<[f64; N]>, ImagingError> {
        let Some(values) = self.decimals(tag)? else {
            return Ok(None);
        };
        let count = values.len();
        match <[f64; N]>::try_from(values) {
            Ok(values) if values.iter().all(|value| value.is_finite()) => Ok(Some(values)),
            Ok(_) => Err(bad(format!("{} is not finite", name(tag)))),
            Err(_) => Err(bad(format!("{} has {count} values, not {N}", name(tag)))),
        }
    }

    /// A binary number of 16 bits (US, SS).
    pub fn u16(&self, tag: u32) -> Option<u16> {
        let raw = *self.bytes(tag)?.first_chunk::<2>()?;
        Some(match self.set.syntax.big_endian {
            true => u16::from_be_bytes(raw),
            false => u16::from_le_bytes(raw),
        })
    }

    /// Binary numbers of 32 bits (UL).
    pub fn u32s(&self, tag: u32) -> Vec<u32> {
        let big_endian = self.set.syntax.big_endian;
        let read = |raw: &[u8]| {
            let raw = [raw[0], raw[1], raw[2], raw[3]];
            if big_endian {
                u32::from_be_bytes(raw)
            } else {
                u32::from_le_bytes(raw)
            }
        };
        self.bytes(tag)
            .unwrap_or_default()
            .chunks_exact(4)
            .map(read)
            .collect()
    }

    /// Binary numbers of 64 bits (OV).
    pub fn u64s(&self, tag: u32) -> Vec<u64> {
        self.u32s(tag)
            .chunks_exact(2)
            .map(|pair| match self.set.syntax.big_endian {
                true => u64::from(pair[0]) << 32 | u64::from(pair[1]),
                false => u64::from(pair[1]) << 32 | u64::from(pair[0]),
            })
            .collect()
    }

    /// The items of a sequence.
    pub fn items(&self, tag: u32) -> impl ExactSizeIterator<Item = Item<'d>> + use<'d> {
        let set = self.set;
        let items: &'d [u32] = self
            .element(tag)
            .map_or(&[][..], |element| element.items.as_slice());
        items.iter().map(move |&item| Item { set, item })
    }

    /// The first item of a sequence.
    pub fn first(&self, tag: u32) -> Option<Item<'d>> {
        self.items(tag).next()
    }
}
