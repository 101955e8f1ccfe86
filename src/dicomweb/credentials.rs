//! What is shown to a DICOMweb server: a token or a name with a password. They come from the environment or from a file,
//! because arguments are seen by every user of a machine.

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;

use super::error::WebError;

const TOKEN: &str = "FEWLABEL_DICOMWEB_TOKEN";
const TOKEN_FILE: &str = "FEWLABEL_DICOMWEB_TOKEN_FILE";
const USERNAME: &str = "MONAI_LABEL_DICOMWEB_USERNAME";
const PASSWORD: &str = "MONAI_LABEL_DICOMWEB_PASSWORD";
const PASSWORD_FILE: &str = "FEWLABEL_DICOMWEB_PASSWORD_FILE";
/// Longest secret, in bytes.
const MAX_BYTES: usize = 16 << 10;

/// A secret, or the file that holds it, which is read each time: tokens are renewed.
#[derive(Clone)]
enum Secret {
    Text(String),
    File(PathBuf),
}

#[derive(Clone)]
enum Kind {
    None,
    Bearer(Secret),
    Basic(String, Secret),
}

/// What is shown to the server. Its text form tells nothing.
#[derive(Clone)]
pub struct Credentials(Kind);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::None => "none",
            Kind::Bearer(_) => "bearer",
            Kind::Basic(..) => "basic",
        })
    }
}

impl Credentials {
    /// Those of this process's environment: a token (`FEWLABEL_DICOMWEB_TOKEN`, or `FEWLABEL_DICOMWEB_TOKEN_FILE` with the
    /// path of a file), or a name and a password (`MONAI_LABEL_DICOMWEB_USERNAME` with `MONAI_LABEL_DICOMWEB_PASSWORD` or
    /// `FEWLABEL_DICOMWEB_PASSWORD_FILE`).
    ///
    /// # Errors
    /// [`WebError::Setup`] when they contradict each other, or a file cannot be read.
    pub fn of_process() -> Result<Self, WebError> {
        let found = Self::read(|name| std::env::var(name).ok().filter(|text| !text.is_empty()))?;
        found.header()?;
        Ok(found)
    }

    fn read(of: impl Fn(&str) -> Option<String>) -> Result<Self, WebError> {
        let secret = |text: &str, file: &str| match (of(text), of(file)) {
            (Some(_), Some(_)) => Err(WebError::Setup(format!(
                "{text} and {file} are both set; unset one of them"
            ))),
            (text, file) => Ok(text
                .map(Secret::Text)
                .or_else(|| file.map(|file| Secret::File(file.into())))),
        };
        let token = secret(TOKEN, TOKEN_FILE)?;
        let password = secret(PASSWORD, PASSWORD_FILE)?;
        Ok(Self(match (token, of(USERNAME), password) {
            (None, None, None) => Kind::None,
            (Some(token), None, None) => Kind::Bearer(token),
            (None, Some(name), Some(_)) if name.contains(':') => {
                return Err(WebError::Setup(format!("{USERNAME} may not hold a colon")));
            }
            (None, Some(name), Some(password)) => Kind::Basic(name, password),
            (Some(_), ..) => {
                return Err(WebError::Setup(format!(
                    "a token and a name with a password are both set for the DICOMweb server; unset {TOKEN} and {TOKEN_FILE}, or {USERNAME}"
                )));
            }
            (None, ..) => {
                return Err(WebError::Setup(format!(
                    "{USERNAME} and {PASSWORD} (or {PASSWORD_FILE}) are set together or not at all"
                )));
            }
        }))
    }

    /// Whether anything is shown.
    pub(super) fn is_some(&self) -> bool {
        !matches!(self.0, Kind::None)
    }

    /// The value of the header `Authorization`.
    ///
    /// # Errors
    /// [`WebError::Setup`] when a file cannot be read, or the secret cannot stand in a header.
    pub(super) fn header(&self) -> Result<Option<HeaderValue>, WebError> {
        let text = match &self.0 {
            Kind::None => return Ok(None),
            Kind::Bearer(token) => format!("Bearer {}", token.read(TOKEN_FILE)?),
            Kind::Basic(name, password) => {
                let pair = format!("{name}:{}", password.read(PASSWORD_FILE)?);
                format!("Basic {}", STANDARD.encode(pair))
            }
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| {
            WebError::Setup(
                "the secret for the DICOMweb server holds a character that cannot be sent"
                    .to_owned(),
            )
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Secret {
    fn read(&self, variable: &str) -> Result<String, WebError> {
        let path = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::File(path) => path,
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            WebError::Setup(format!("{variable}: the file cannot be read: {error}"))
        })?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(WebError::Setup(format!(
                "{variable}: the file is empty, or too long for a secret"
            )));
        }
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Credentials, WebError> {
        Credentials::read(|name| {
            let found = set.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn from_variables_and_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from file\n").unwrap();
        let path = file.path().to_str().unwrap();
        for (set, expected) in [
            (vec![], None),
            (vec![(TOKEN, "abc")], Some("Bearer abc")),
            (vec![(TOKEN_FILE, path)], Some("Bearer from file")),
            (
                vec![(USERNAME, "ann"), (PASSWORD, "x:y")],
                Some("Basic YW5uOng6eQ=="),
            ),
            (
                vec![(USERNAME, "ann"), (PASSWORD_FILE, path)],
                Some("Basic YW5uOmZyb20gZmlsZQ=="),
            ),
        ] {
            let header = read(&set).unwrap().header().unwrap();
            assert_eq!(header.as_ref().map(|h| h.to_str().unwrap()), expected);
            assert!(header.is_none_or(|header| header.is_sensitive()));
        }
        let credentials = read(&[(TOKEN_FILE, path)]).unwrap();
        std::fs::write(file.path(), "renewed").unwrap();
        assert_eq!(credentials.header().unwrap().unwrap(), "Bearer renewed");
    }

    #[test]
    fn contradictions_are_refused_without_telling_them() {
        for set in [
            vec![(TOKEN, "s3cret"), (TOKEN_FILE, "/x")],
            vec![(TOKEN, "s3cret"), (USERNAME, "ann"), (PASSWORD, "s3cret")],
            vec![(USERNAME, "ann")],
            vec![(PASSWORD, "s3cret")],
            vec![(USERNAME, "a:b"), (PASSWORD, "s3cret")],
        ] {
            let refused = read(&set).unwrap_err().to_string();
            assert!(!refused.contains("s3cret"), "{refused}");
        }
        let shown = format!("{:?}", read(&[(TOKEN, "s3cret")]).unwrap());
        assert!(!shown.contains("s3cret"));
        let broken = read(&[(TOKEN, "s3\nkey7")]).unwrap().header();
        assert!(!broken.unwrap_err().to_string().contains("key7"));
        assert!(read(&[(TOKEN_FILE, "/no/such")]).unwrap().header().is_err());
    }
}
