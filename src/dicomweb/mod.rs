//! A DICOMweb server (PS3.18) as the place where series come from and results go to.
//!
//! | file | what it is about |
//! |---|---|
//! | `address` | the one origin that is ever asked, and the paths below it |
//! | `credentials` | what is shown to it, from the environment or a file |
//! | `client`, `connection` | requests with time limits, and when they are repeated; proxy and certificates |
//! | `query` | which series and instances there are (QIDO-RS) |
//! | `series` | a whole series, checked instance by instance (WADO-RS) |
//! | `cache` | series that were fetched, as zip files, the least recently used removed |
//! | `results` | labels stored as DICOM objects (STOW-RS) |
//! | `multipart`, `uid`, `error` | bodies of several parts, identifiers, and what can go wrong |
//!
//! Metadata come first: a series is known from the query alone, and its instances are fetched when somebody needs them, all
//! in one answer, those that a cut connection lost one by one. Frames and bulk data are never asked for one by one, because
//! a CT series is read as a whole anyway. Every instance passes the walker of [`crate::imaging::dicom`] before it is kept.
//!
//! Answers hold patients: nothing of them is put into a message or a log line. Redirects are not followed.

mod address;
mod cache;
mod client;
mod connection;
mod credentials;
mod error;
mod multipart;
mod query;
mod results;
mod series;
mod uid;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::imaging::Budget;
pub use cache::Held;
pub use client::Pace;
pub use credentials::Credentials;
pub use error::WebError;
pub use query::{FoundSeries, Listing};
pub use uid::Uid;
use {address::Address, cache::Cache, client::Client};

/// What is kept of a DICOMweb server besides its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Query attributes that choose series, as `Modality=CT`; names or tags of PS3.18, 8.3.4.
    pub filter: Vec<(String, String)>,
    /// Fetched series are kept until they have so many bytes together.
    pub cache_limit_bytes: u64,
}

impl Default for Settings {
    /// CT, and 50 GiB.
    fn default() -> Self {
        Self {
            filter: vec![("Modality".to_owned(), "CT".to_owned())],
            cache_limit_bytes: 50 << 30,
        }
    }
}

/// One series of one state: other instances make it another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesKey {
    /// Its study.
    pub study: Uid,
    /// Itself.
    pub series: Uid,
    /// How many instances it had when it was seen; 0 when the server does not say.
    pub instances: u32,
}

/// A DICOMweb server with the copies of its series. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pacs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    cache: Cache,
    filter: Vec<(String, String)>,
    budget: Budget,
}

impl Pacs {
    /// The server at `url` (`https://host/dicom-web`), with its copies in `cache`. Nothing is asked yet.
    ///
    /// # Errors
    /// An address or filter that cannot be; no certificates to trust.
    pub fn new(
        url: &str,
        credentials: Credentials,
        settings: &Settings,
        cache: &Path,
    ) -> Result<Self, WebError> {
        Self::with_pace(url, credentials, settings, cache, Pace::default())
    }

    /// As [`Pacs::new`], in its errors too, with other time limits.
    pub fn with_pace(
        url: &str,
        credentials: Credentials,
        settings: &Settings,
        cache: &Path,
        pace: Pace,
    ) -> Result<Self, WebError> {
        query::check_filter(&settings.filter)?;
        let inner = Inner {
            client: Client::new(Address::parse(url)?, credentials, pace)?,
            cache: Cache::new(cache, settings.cache_limit_bytes),
            filter: settings.filter.clone(),
            budget: Budget::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Host name of the server.
    pub fn host(&self) -> &str {
        self.inner.client.address.host()
    }

    /// Where a copy of a series lies, when there is one.
    pub fn copy_path(&self, key: &SeriesKey) -> PathBuf {
        self.inner.cache.path(key)
    }

    /// Passes a request on: `path` is what stands below the address, still percent-encoded. The answer is what the server
    /// says, whatever its status; nothing is repeated.
    ///
    /// # Errors
    /// A path that leads out of the address, a redirect, a server that does not answer.
    pub async fn forward(
        &self,
        method: hyper::Method,
        (path, query): (&str, Option<&str>),
        headers: hyper::HeaderMap,
        body: client::RequestBody,
    ) -> Result<hyper::Response<hyper::body::Incoming>, WebError> {
        let client = &self.inner.client;
        let uri = client.address.passed_on(path, query)?;
        client.once(method, uri, headers, body).await
    }
}
