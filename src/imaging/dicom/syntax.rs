//! Transfer syntaxes: how a file and its pixels are encoded (PS3.6, table A-1).

use crate::imaging::error::ImagingError;

/// How pixel data are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// As they are.
    Plain,
    /// As they are, and everything after the file meta information is deflated.
    Deflated,
    /// Run lengths of byte planes (PS3.5, annex G).
    Rle,
    /// JPEG of 8 bits with losses, or lossless JPEG (ITU-T T.81).
    Jpeg,
    /// JPEG-LS (ITU-T T.87).
    JpegLs,
    /// JPEG 2000, Part 1 (ITU-T T.800).
    Jpeg2000,
    /// A coding that is not read here, by its name.
    Unread(&'static str),
}

/// A transfer syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Syntax {
    /// Whether numbers are stored with the highest byte first.
    pub big_endian: bool,
    /// Whether elements have no VR.
    pub implicit: bool,
    /// How pixel data are packed.
    pub coding: Coding,
}

const PREFIX: &str = "1.2.840.10008.1.2";

impl Syntax {
    /// Uncompressed little endian.
    pub fn plain(implicit: bool) -> Self {
        Self {
            big_endian: false,
            implicit,
            coding: Coding::Plain,
        }
    }

    /// The syntax of a UID. One that packs pixels in a way that is not read here is still walked; its pixels are
    /// refused by name.
    ///
    /// # Errors
    /// A UID that is no known transfer syntax.
    pub fn from_uid(uid: &str) -> Result<Self, ImagingError> {
        let coded = |coding| Self {
            coding,
            ..Self::plain(false)
        };
        Ok(match uid.strip_prefix(PREFIX) {
            Some("") => Self::plain(true),
            Some(".1") => Self::plain(false),
            Some(".1.98") => coded(Coding::Unread("Encapsulated Uncompressed")),
            Some(".1.99") => coded(Coding::Deflated),
            Some(".2") => Self {
                big_endian: true,
                ..Self::plain(false)
            },
            Some(".5") => coded(Coding::Rle),
            Some(".4.50" | ".4.51" | ".4.57" | ".4.70") => coded(Coding::Jpeg),
            Some(".4.53") => coded(Coding::Unread("JPEG Spectral Selection (retired)")),
            Some(".4.55") => coded(Coding::Unread("JPEG Full Progression (retired)")),
            Some(".4.80" | ".4.81") => coded(Coding::JpegLs),
            Some(".4.90" | ".4.91") => coded(Coding::Jpeg2000),
            Some(".4.92" | ".4.93") => coded(Coding::Unread("JPEG 2000 Part 2")),
            Some(".4.110" | ".4.111" | ".4.112") => coded(Coding::Unread("JPEG XL")),
            Some(".4.201" | ".4.202" | ".4.203") => {
                coded(Coding::Unread("High-Throughput JPEG 2000"))
            }
            _ => {
                let uid: String = uid
                    .chars()
                    .filter(|c| c.is_ascii_digit() || *c == '.')
                    .take(64)
                    .collect();
                return Err(ImagingError::Unsupported(format!(
                    "the DICOM transfer syntax {uid:?} is not known here; convert the series to Explicit VR Little Endian"
                )));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_syntaxes() {
        for (suffix, big_endian, implicit, coding) in [
            ("", false, true, Coding::Plain),
            (".1", false, false, Coding::Plain),
            (".2", true, false, Coding::Plain),
            (".4.70", false, false, Coding::Jpeg),
        ] {
            let syntax = Syntax::from_uid(&format!("{PREFIX}{suffix}")).unwrap();
            assert_eq!(
                (syntax.big_endian, syntax.implicit, syntax.coding),
                (big_endian, implicit, coding)
            );
        }
        assert!(Syntax::from_uid("1.2.3").is_err());
        assert!(matches!(
            Syntax::from_uid("1.2.840.10008.1.2.4.201").unwrap().coding,
            Coding::Unread("High-Throughput JPEG 2000")
        ));
    }
}
