//! Bodies of several parts (RFC 2046, 5.1): `multipart/related` as PS3.18, 8.6 uses it.

use memchr::memmem;

use super::error::WebError;

/// Longest delimiter that is taken; RFC 2046 allows 70 characters.
const MAX_BOUNDARY: usize = 200;
/// Longest header of a part, and longest text before the first, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// The delimiter that a content type names.
///
/// # Errors
/// Another content type.
pub(super) fn boundary(content_type: &str) -> Result<String, WebError> {
    let other = || {
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        WebError::Answer(format!("it is {kind:.60?} instead of multipart/related"))
    };
    let mut parameters = content_type.split(';').map(str::trim);
    let kind = parameters.next().unwrap_or_default();
    if !kind.to_ascii_lowercase().starts_with("multipart/") {
        return Err(other());
    }
    let named = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_it = name.trim().eq_ignore_ascii_case("boundary");
        is_it.then(|| value.trim().trim_matches('"').to_owned())
    });
    named
        .filter(|value| !value.is_empty() && value.len() <= MAX_BOUNDARY)
        .ok_or_else(other)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first part.
    Preamble,
    /// After a delimiter.
    Delimiter,
    /// In the header of a part.
    Head,
    /// In the content of a part.
    Content,
    /// After the last part.
    End,
}

/// Takes a body piece by piece, however it is cut, and gives the content of each part once it is complete.
#[derive(Debug)]
pub(super) struct Parser {
    delimiter: Vec<u8>,
    buffer: Vec<u8>,
    /// How much of the buffer was looked through for the delimiter.
    searched: usize,
    state: State,
    max_part: usize,
}

impl Parser {
    /// For parts of at most `max_part` bytes.
    pub fn new(boundary: &str, max_part: usize) -> Self {
        Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // The first delimiter may be the first line.
            buffer: b"\r\n".to_vec(),
            searched: 0,
            state: State::Preamble,
            max_part,
        }
    }

    /// Takes the next bytes; [`Parser::next`] is to be called until it has nothing more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.state != State::End {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next complete part, without its header; none before more bytes came.
    ///
    /// # Errors
    /// A body that is none of several parts, or a part that is too long.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, WebError> {
        loop {
            match self.state {
                State::End => return Ok(None),
                State::Preamble => {
                    let Some(at) = self.find_delimiter() else {
                        if self.buffer.len() > MAX_HEAD {
                            return Err(WebError::Answer(
                                "its first part does not begin".to_owned(),
                            ));
                        }
                        return Ok(None);
                    };
                    self.drop_front(at + self.delimiter.len());
                    self.state = State::Delimiter;
                }
                State::Delimiter => {
                    if self.buffer.starts_with(b"--") {
                        self.buffer = Vec::new();
                        self.state = State::End;
                        return Ok(None);
                    }
                    // Blanks may follow the delimiter.
                    let Some(end) = memmem::find(&self.buffer, b"\r\n") else {
                        if self.buffer.len() > MAX_HEAD {
                            return Err(too_long());
                        }
                        return Ok(None);
                    };
                    // The end of the line stays: with the next one it ends a header, which may be empty.
                    self.drop_front(end);
                    self.state = State::Head;
                }
                State::Head => {
                    let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") else {
                        if self.buffer.len() > MAX_HEAD {
                            return Err(too_long());
                        }
                        return Ok(None);
                    };
                    // The content may be empty, and the delimiter begins with an end of line.
                    self.drop_front(end + 4);
                    self.state = State::Content;
                }
                State::Content => {
                    let Some(at) = self.find_delimiter() else {
                        if self.buffer.len() > self.max_part.saturating_add(self.delimiter.len()) {
                            return Err(too_long());
                        }
                        return Ok(None);
                    };
                    if at > self.max_part {
                        return Err(too_long());
                    }
                    let rest = self.buffer.split_off(at + self.delimiter.len());
                    let mut part = std::mem::replace(&mut self.buffer, rest);
                    part.truncate(at);
                    self.searched = 0;
                    self.state = State::Delimiter;
                    return Ok(Some(part));
                }
            }
        }
    }

    /// Whether the last part was ended by the last delimiter: without it, something is missing.
    pub fn is_complete(&self) -> bool {
        self.state == State::End
    }

    /// Where the next delimiter begins. Bytes are looked through once.
    fn find_delimiter(&mut self) -> Option<usize> {
        let from = self.searched;
        let found = memmem::find(&self.buffer[from..], &self.delimiter);
        self.searched = match found {
            Some(at) => from + at,
            None => self
                .buffer
                .len()
                .saturating_sub(self.delimiter.len() - 1)
                .max(from),
        };
        found.map(|at| from + at)
    }

    fn drop_front(&mut self, bytes: usize) {
        self.buffer.drain(..bytes);
        self.searched = 0;
    }
}

fn too_long() -> WebError {
    WebError::Answer("a part of it is longer than what is read".to_owned())
}

/// A body of one DICOM file, and its content type.
pub(super) fn of_one(file: &[u8]) -> (String, Vec<u8>) {
    let boundary = format!("fewlabel-{}", uuid::Uuid::new_v4().simple());
    let mut body = format!("--{boundary}\r\nContent-Type: application/dicom\r\n\r\n").into_bytes();
    body.extend_from_slice(file);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let kind = format!("multipart/related; type=\"application/dicom\"; boundary={boundary}");
    (kind, body)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn parts(
        boundary: &str,
        pieces: &[&[u8]],
        max_part: usize,
    ) -> Result<(Vec<Vec<u8>>, bool), WebError> {
        let mut parser = Parser::new(boundary, max_part);
        let mut found = Vec::new();
        for piece in pieces {
            parser.push(piece);
            while let Some(part) = parser.next()? {
                found.push(part);
            }
        }
        Ok((found, parser.is_complete()))
    }

    #[test]
    fn what_servers_write() {
        let body = b"preamble\r\n--b\r\nContent-Type: application/dicom\r\n\r\none\r\n--b \r\n\r\n\r\n--b\r\nA: b\r\n\r\nx\r\n\r\n--b--\r\nepilogue\r\n--b\r\n";
        let (found, complete) = parts("b", &[body], 100).unwrap();
        assert_eq!(found, [b"one".to_vec(), Vec::new(), b"x\r\n".to_vec()]);
        assert!(complete);
        let cut = b"--b\r\n\r\none\r\n--b\r\n\r\ntw";
        assert_eq!(
            parts("b", &[cut], 100).unwrap(),
            (vec![b"one".to_vec()], false)
        );
        assert!(parts("b", &[b"--b\r\n\r\n", &[0; 200]], 100).is_err());
        assert!(parts("b", &[&[b'x'; 40_000]], 100).is_err());
        assert!(parts("b", &[b"--b", &[b'x'; 40_000]], 100).is_err());
        let (kind, body) = of_one(b"DICM");
        let found = parts(&boundary(&kind).unwrap(), &[&body], 4).unwrap();
        assert_eq!(found, (vec![b"DICM".to_vec()], true));
    }

    #[test]
    fn boundaries() {
        for (kind, expected) in [
            (
                "multipart/related; type=\"application/dicom\"; boundary=\"a b\"",
                "a b",
            ),
            ("Multipart/Related;BOUNDARY=x;type=application/dicom", "x"),
        ] {
            assert_eq!(boundary(kind).unwrap(), expected);
        }
        let long = format!("multipart/related; boundary={}", "x".repeat(300));
        for kind in [
            "application/dicom",
            "multipart/related",
            "multipart/related; boundary=",
            &long,
        ] {
            assert!(boundary(kind).is_err(), "{kind}");
        }
    }

    proptest! {
        #[test]
        fn parts_come_back_however_the_body_is_cut(
            contents in vec(vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'b'), any::<u8>()], 0..60), 0..5),
            cuts in vec(0usize..400, 0..12),
            end in any::<bool>(),
        ) {
            let boundary = "b-0123456789";
            let delimiter = format!("--{boundary}").into_bytes();
            let contains = |content: &Vec<u8>| memmem::find(content, &delimiter).is_some();
            prop_assume!(!contents.iter().any(contains));
            let mut body = Vec::new();
            for content in &contents {
                body.extend(&delimiter);
                body.extend(b"\r\nContent-Type: application/dicom\r\n\r\n");
                body.extend(content);
                body.extend(b"\r\n");
            }
            body.extend(&delimiter);
            if end {
                body.extend(b"--\r\n");
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            cuts.extend([0, body.len()]);
            cuts.sort();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
            let (found, complete) = parts(boundary, &pieces, 1000).unwrap();
            prop_assert_eq!(found, contents);
            prop_assert_eq!(complete, end);
        }
    }
}
