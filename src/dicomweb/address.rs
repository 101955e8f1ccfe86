//! The one origin that is ever asked, and the paths below it.

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::error::WebError;

/// What is escaped in a segment of a path (RFC 3986, `pchar`).
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Where a DICOMweb service is.
#[derive(Debug, Clone)]
pub(super) struct Address {
    scheme: Scheme,
    authority: Authority,
    /// Empty, or with a slash at its start only.
    base: String,
}

impl Address {
    /// # Errors
    /// Anything but `http` or `https` with a host and a path.
    pub fn parse(text: &str) -> Result<Self, WebError> {
        // The text may hold a password, so it is not repeated.
        let refused = |why: &str| WebError::Setup(format!("--studies: the address {why}"));
        let uri: Uri = text.parse().map_err(|_| {
            refused("cannot be read; give one like https://pacs.example.org/dicom-web")
        })?;
        let parts = uri.into_parts();
        let scheme = parts
            .scheme
            .filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
        let (Some(scheme), Some(authority)) = (scheme, parts.authority) else {
            return Err(refused("has to begin with http:// or https:// and a host"));
        };
        if authority.as_str().contains('@') {
            return Err(refused(
                "holds a login, which every list of processes would show; put it into the environment, see --help",
            ));
        }
        let path = parts.path_and_query;
        if path.as_ref().is_some_and(|path| path.query().is_some()) || text.contains('#') {
            return Err(refused(
                "has to end with its path; filters are given with --filter",
            ));
        }
        let path = path.as_ref().map_or("", |path| path.path());
        let base = match path.trim_matches('/') {
            "" => String::new(),
            below => segments(below).map_err(|_| refused("has a path that cannot be"))?,
        };
        Ok(Self {
            scheme,
            authority,
            base,
        })
    }

    /// Host name.
    pub fn host(&self) -> &str {
        self.authority.host()
    }

    /// Whether connections are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Whether what is sent there can be read on the way.
    pub fn is_open(&self) -> bool {
        !self.is_encrypted()
            && !["localhost", "127.0.0.1", "[::1]"].contains(&self.authority.host())
    }

    /// The address of `path`, which begins with a slash and holds nothing to be escaped.
    pub fn of(&self, path: &str, query: Option<&str>) -> Result<Uri, WebError> {
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path}{query}", self.base))
            .build()
            .map_err(|_| WebError::Path("it is no path of an address"))
    }

    /// The address of a path that a client sent, percent-encoded, without a slash at its start.
    ///
    /// # Errors
    /// [`WebError::Path`] when it could lead out of this address.
    pub fn passed_on(&self, path: &str, query: Option<&str>) -> Result<Uri, WebError> {
        self.of(&segments(path)?, query)
    }
}

/// The path with its segments decoded once, checked, and encoded again; a slash is put in front of each.
fn segments(path: &str) -> Result<String, WebError> {
    let mut out = String::new();
    for segment in path.split('/') {
        let text = percent_decode_str(segment)
            .decode_utf8()
            .map_err(|_| WebError::Path("it is not UTF-8"))?;
        // Decoded once more by a careless server, it must still be the same path.
        let again = percent_decode_str(&text).decode_utf8_lossy().into_owned();
        for text in [text.as_ref(), again.as_str()] {
            if text.is_empty() {
                return Err(WebError::Path("it has an empty segment"));
            }
            if text == "." || text == ".." {
                return Err(WebError::Path("it leads to another folder"));
            }
            if text.contains(['/', '\\']) || text.chars().any(char::is_control) {
                return Err(WebError::Path(
                    "a segment holds a separator or a control character",
                ));
            }
        }
        out.push('/');
        out.extend(utf8_percent_encode(&text, ESCAPED));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses() {
        for (text, base) in [
            ("http://127.0.0.1:8042/dicom-web", "/dicom-web"),
            ("https://pacs.example.org/dicom-web/", "/dicom-web"),
            ("https://pacs.example.org", ""),
            ("https://pacs/aets/A%20B/rs", "/aets/A%20B/rs"),
        ] {
            assert_eq!(Address::parse(text).unwrap().base, base, "{text}");
        }
        for text in [
            "https:///dicom-web",
            "ftp://pacs/dicom-web",
            "/dicom-web",
            "https://u:secret@pacs/dicom-web",
            "https://pacs/dicom-web?x=1",
            "https://pacs/a/../b",
            "https://pacs/a//b",
            "https://pa cs/",
        ] {
            let refused = Address::parse(text).unwrap_err().to_string();
            assert!(!refused.contains("secret"), "{refused}");
        }
        assert!(Address::parse("http://pacs/x").unwrap().is_open());
        assert!(!Address::parse("http://localhost:1/x").unwrap().is_open());
    }

    #[test]
    fn paths_of_clients() {
        let address = Address::parse("https://pacs/dicom-web").unwrap();
        let uri = address
            .passed_on(
                "studies/1.2/series/3/instances/4/frames/1,2",
                Some("a=b%2F"),
            )
            .unwrap();
        assert_eq!(
            uri.to_string(),
            "https://pacs/dicom-web/studies/1.2/series/3/instances/4/frames/1,2?a=b%2F"
        );
        for bad in [
            "../admin",
            "studies/../../admin",
            "studies/%2e%2e/admin",
            "studies/%252e%252e/admin",
            "studies/%2E./admin",
            "studies/a%2fb",
            "studies/a%5cb",
            "studies/..%5cadmin",
            "studies//x",
            "http://evil/",
            "//evil/x",
            "/evil",
            "studies/%00",
            "studies/%0d%0aHost:x",
            "",
            "%ff",
        ] {
            assert!(address.passed_on(bad, None).is_err(), "{bad}");
        }
        let at = address.passed_on("@evil.example/x", None).unwrap();
        assert_eq!(at.host(), Some("pacs"));
    }

    proptest! {
        #[test]
        fn no_path_leads_out(path in "[ -~]{0,40}", query in proptest::option::of("[ -~]{0,20}")) {
            let address = Address::parse("https://pacs:8443/dicom-web").unwrap();
            if let Ok(uri) = address.passed_on(&path, query.as_deref()) {
                prop_assert_eq!(uri.scheme_str(), Some("https"));
                prop_assert_eq!(uri.authority().unwrap().as_str(), "pacs:8443");
                prop_assert!(uri.path().starts_with("/dicom-web/"));
                let decoded = percent_decode_str(uri.path()).decode_utf8_lossy().into_owned();
                prop_assert!(decoded.split(['/', '\\']).all(|part| part != ".." && part != "."));
            }
        }
    }
}
