//! The text header: fields and key/value pairs.

use std::io::{BufRead, Read};

use crate::imaging::error::ImagingError;

/// Far above the header of a segmentation with hundreds of segments.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// The header as text; names of fields are lower case without spaces.
#[derive(Debug, Default)]
pub(super) struct Header {
    fields: Vec<(String, String)>,
    pairs: Vec<(String, String)>,
    /// Lines after `data file: LIST`.
    pub file_list: Vec<String>,
    /// Bytes up to the first byte of attached data.
    pub size_bytes: u64,
    pub warnings: Vec<String>,
}

pub(super) fn bad(what: impl Into<String>) -> ImagingError {
    ImagingError::Header {
        format: "NRRD",
        what: what.into(),
    }
}

impl Header {
    /// Reads up to and including the blank line, or to the end of a detached header.
    pub fn read(reader: &mut impl BufRead) -> Result<Self, ImagingError> {
        let mut header = Self::default();
        let magic = header.next_line(reader)?.unwrap_or_default();
        match magic.strip_prefix("NRRD000") {
            Some("1" | "2" | "3" | "4" | "5") => {}
            _ => return Err(bad("the first line is not NRRD0001 to NRRD0005")),
        }
        let mut blank_line = false;
        while let Some(line) = header.next_line(reader)? {
            if line.is_empty() {
                blank_line = true;
                break;
            }
            header.take_line(&line)?;
        }
        if !blank_line && header.field("datafile").is_none() {
            return Err(bad(
                "it does not end with a blank line, so there are no data",
            ));
        }
        Ok(header)
    }

    fn next_line(&mut self, reader: &mut impl BufRead) -> Result<Option<String>, ImagingError> {
        let mut line = Vec::new();
        let left = MAX_HEADER_BYTES - self.size_bytes.min(MAX_HEADER_BYTES);
        let count = reader.by_ref().take(left).read_until(b'\n', &mut line)? as u64;
        self.size_bytes += count;
        if self.size_bytes >= MAX_HEADER_BYTES {
            return Err(bad(format!("it is longer than {MAX_HEADER_BYTES} bytes")));
        }
        if count == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }

    fn take_line(&mut self, line: &str) -> Result<(), ImagingError> {
        if line.starts_with('#') {
            return Ok(());
        }
        if self
            .field("datafile")
            .is_some_and(|value| value.starts_with("LIST"))
        {
            self.file_list.push(line.to_owned());
            return Ok(());
        }
        // A field is "name: value", a pair "key:=value"; the first colon decides.
        let Some(colon) = line.find(':') else {
            return Err(bad(format!(
                "the line {:?} is neither a field nor a pair",
                shortened(line)
            )));
        };
        let (name, rest) = (&line[..colon], &line[colon + 1..]);
        if let Some(value) = rest.strip_prefix('=') {
            self.pairs.push((name.to_owned(), value.trim().to_owned()));
            return Ok(());
        }
        let name: String = name
            .chars()
            .filter(|c| !c.is_whitespace())
            .collect::<String>()
            .to_ascii_lowercase();
        let value = rest.trim().to_owned();
        match self.field(&name) {
            None => self.fields.push((name, value)),
            Some(earlier) if earlier == value => self
                .warnings
                .push(format!("the field {name:?} is given twice")),
            Some(_) => {
                return Err(bad(format!(
                    "the field {name:?} is given twice with different values"
                )));
            }
        }
        Ok(())
    }

    /// Value of a field, name in lower case without spaces.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Value of a field that must be there.
    pub fn required(&self, name: &str) -> Result<&str, ImagingError> {
        self.field(name)
            .ok_or_else(|| bad(format!("the field {name:?} is missing")))
    }

    /// Value of a key/value pair.
    pub fn pair(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value.as_str())
    }
}

/// Whitespace-separated numbers.
pub(super) fn numbers<T: std::str::FromStr>(
    name: &str,
    text: &str,
) -> Result<Vec<T>, ImagingError> {
    text.split_whitespace()
        .map(|word| {
            word.parse().map_err(|_| {
                bad(format!(
                    "{:?} in the field {name:?} is no valid number",
                    shortened(word)
                ))
            })
        })
        .collect()
}

/// A list of `(a,b,c)` vectors or `none`.
pub(super) fn vectors(name: &str, text: &str) -> Result<Vec<Option<Vec<f64>>>, ImagingError> {
    let wrong = || bad(format!("the field {name:?} is no list of (x,y,z) vectors"));
    let mut vectors = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('(') {
            let (inside, after) = after.split_once(')').ok_or_else(wrong)?;
            let vector = inside
                .split(',')
                .map(|word| word.trim().parse().map_err(|_| wrong()))
                .collect::<Result<_, _>>()?;
            vectors.push(Some(vector));
            rest = after.trim_start();
        } else if let Some(after) = rest
            .get(..4)
            .filter(|word| word.eq_ignore_ascii_case("none"))
            .map(|_| &rest[4..])
        {
            vectors.push(None);
            rest = after.trim_start();
        } else {
            return Err(wrong());
        }
    }
    Ok(vectors)
}

/// At most 60 characters, so that a message stays readable.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Header, ImagingError> {
        Header::read(&mut text.as_bytes())
    }

    #[test]
    fn fields_pairs_comments_and_line_ends() {
        let header =
            parse("NRRD0004\r\n# c: d\r\nSpace Origin: (1,2,3)\r\nkey:=a:=b\r\nsizes: 1 2\n\ndata")
                .unwrap();
        assert_eq!(header.field("spaceorigin"), Some("(1,2,3)"));
        assert_eq!(header.pair("key"), Some("a:=b"));
        assert_eq!(
            numbers::<u64>("sizes", header.required("sizes").unwrap()).unwrap(),
            [1, 2]
        );
        assert_eq!(header.size_bytes, 64);
    }

    #[test]
    fn refuses_what_is_no_header() {
        for text in [
            "NRRD0009\n\n",
            "NRRDXXXX\n\n",
            "NRRD0004\ntype: short\n",
            "NRRD0004\nnonsense\n\n",
            "NRRD0004\na: 1\na: 2\n\n",
            "",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&format!("NRRD0004\n#{}\n\n", "x".repeat(2 << 20))).is_err());
    }

    #[test]
    fn vector_lists() {
        assert_eq!(
            vectors("v", " none (1, -2.5,3e2) (0,0,1)").unwrap(),
            [
                None,
                Some(vec![1.0, -2.5, 300.0]),
                Some(vec![0.0, 0.0, 1.0])
            ]
        );
        for text in ["(1,2", "1,2)", "(1,,2)", "nonsense(", "(é)"] {
            assert!(vectors("v", text).is_err(), "{text:?}");
        }
    }
}
