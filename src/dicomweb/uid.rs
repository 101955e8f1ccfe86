//! Unique identifiers (PS3.5, 9.1).

use std::fmt;

/// Longest identifier, in characters.
const MAX_CHARS: usize = 64;

/// A unique identifier: numbers with dots between them. So it can stand in a path and in a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(String);

impl Uid {
    /// The identifier in a text, which may be padded as in a file; none when it is another text.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_end_matches(['\0', ' ']);
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        (text.len() <= MAX_CHARS && text.split('.').all(is_number)).then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_and_dots() {
        for good in ["1.2.840.10008", "2.25.1\0", "1.02 "] {
            assert!(Uid::parse(good).is_some(), "{good:?}");
        }
        let long = "1.".repeat(40) + "1";
        for bad in [
            "", ".", "..", "1..2", "1.", "../1", "1/2", "1.2a", "1 2", &long,
        ] {
            assert_eq!(Uid::parse(bad), None, "{bad:?}");
        }
    }
}
