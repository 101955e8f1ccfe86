//! A whole series as a zip file (WADO-RS, PS3.18, 10.4), checked instance by instance.
//!
//! The query says which instances there are; they come in one answer. When that is cut off, or lacks some, those are asked
//! for one by one, a few at a time, so that a bad connection makes progress. The copy is complete only with all of them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};

use hyper::header::CONTENT_TYPE;
use hyper::{Response, body::Incoming};
use tokio::task::JoinSet;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::cache::{Begun, Held, Part};
use super::error::WebError;
use super::multipart::{Parser, boundary};
use super::uid::Uid;
use super::{Pacs, SeriesKey};
use crate::imaging::Budget;
use crate::imaging::dicom;

/// As it is stored, whatever its coding: decoding is our own matter, and a server that recodes takes its time.
const AS_STORED: &str = "multipart/related; type=\"application/dicom\"; transfer-syntax=*";
/// Instances that are asked for at the same time.
const PARALLEL: usize = 4;
/// Largest series, in bytes.
const MAX_SERIES_BYTES: u64 = 64 << 30;

impl Pacs {
    /// The series as a zip file with a DICOM file for each instance: the copy, which is made now where there is none. It
    /// stays there as long as it is held.
    ///
    /// # Errors
    /// [`WebError::NotFound`] when the series is gone; a server that does not answer; damaged files; a full disk.
    pub async fn series(&self, key: &SeriesKey) -> Result<Held, WebError> {
        let cache = &self.inner.cache;
        if let Some(held) = cache.hold(key)? {
            return Ok(held);
        }
        let part = match cache.begin(key).await? {
            Begun::Done(held) => return Ok(held),
            Begun::Part(part) => part,
        };
        let mut missing: HashSet<Uid> = self.instances(key).await?.into_iter().collect();
        let mut copy = Copy::new(part, key, self.inner.budget)?;
        self.whole(key, &mut copy, &mut missing).await?;
        self.one_by_one(key, &mut copy, &mut missing).await?;
        let held = blocking(move || copy.finish()).await?;
        if let Err(error) = cache.tidy() {
            tracing::warn!("copies of series over their limit could not be removed: {error}");
        }
        Ok(held)
    }

    /// Everything in one answer, as far as it comes.
    async fn whole(
        &self,
        key: &SeriesKey,
        copy: &mut Copy,
        missing: &mut HashSet<Uid>,
    ) -> Result<(), WebError> {
        let client = &self.inner.client;
        let path = format!("/studies/{}/series/{}", key.study, key.series);
        let uri = client.address.of(&path, None)?;
        let all = missing.len();
        let mut attempts = client.attempts();
        loop {
            let asked = async {
                let answer = client.get(uri.clone(), AS_STORED).await?;
                self.parts(answer, copy, missing).await
            };
            match asked.await {
                Ok(()) => return Ok(()),
                // A server that does not give whole series.
                Err(WebError::Refused(_)) => return Ok(()),
                // What came is kept; the rest is asked for one by one.
                Err(error) if error.is_passing() && missing.len() < all => {
                    tracing::debug!(
                        "{} of {all} instances are still missing: {error}",
                        missing.len()
                    );
                    return Ok(());
                }
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// What is still missing, a few at a time.
    async fn one_by_one(
        &self,
        key: &SeriesKey,
        copy: &mut Copy,
        missing: &mut HashSet<Uid>,
    ) -> Result<(), WebError> {
        let mut wanted: Vec<Uid> = missing.iter().cloned().collect();
        wanted.sort();
        let mut asking = JoinSet::new();
        loop {
            while asking.len() < PARALLEL
                && let Some(uid) = wanted.pop()
            {
                let (pacs, key) = (self.clone(), key.clone());
                asking.spawn(async move { pacs.instance(&key, &uid).await });
            }
            let Some(file) = asking.join_next().await else {
                break;
            };
            let file = file.map_err(io::Error::other)??;
            copy.take(file, missing).await?;
        }
        match missing.len() {
            0 => Ok(()),
            n => Err(WebError::Answer(format!(
                "{n} instances of the series are listed, but not sent"
            ))),
        }
    }

    async fn instance(&self, key: &SeriesKey, uid: &Uid) -> Result<Vec<u8>, WebError> {
        let client = &self.inner.client;
        let path = format!(
            "/studies/{}/series/{}/instances/{uid}",
            key.study, key.series
        );
        let uri = client.address.of(&path, None)?;
        let mut attempts = client.attempts();
        loop {
            let asked = async {
                let answer = client.get(uri.clone(), AS_STORED).await?;
                let mut body = self.body(answer)?;
                let part = self.next_part(&mut body).await?;
                part.ok_or_else(|| WebError::Answer("it has no part".to_owned()))
            };
            match asked.await {
                Ok(file) => return Ok(file),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// Takes the parts of an answer until its end.
    async fn parts(
        &self,
        answer: Response<Incoming>,
        copy: &mut Copy,
        missing: &mut HashSet<Uid>,
    ) -> Result<(), WebError> {
        let mut body = self.body(answer)?;
        while let Some(file) = self.next_part(&mut body).await? {
            copy.take(file, missing).await?;
        }
        Ok(())
    }

    fn body(&self, answer: Response<Incoming>) -> Result<(Parser, Incoming), WebError> {
        let kind = answer.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let max_part = usize::try_from(self.inner.budget.max_bytes).unwrap_or(usize::MAX);
        let parser = Parser::new(&boundary(kind)?, max_part);
        Ok((parser, answer.into_body()))
    }

    async fn next_part(
        &self,
        (parser, body): &mut (Parser, Incoming),
    ) -> Result<Option<Vec<u8>>, WebError> {
        loop {
            if let Some(part) = parser.next()? {
                return Ok(Some(part));
            }
            match self.inner.client.next(body).await? {
                Some(bytes) => parser.push(&bytes),
                None if parser.is_complete() => return Ok(None),
                None => return Err(WebError::Cut),
            }
        }
    }
}

/// The zip file that is being written.
struct Copy {
    part: Part,
    /// Absent while something is written.
    zip: Option<ZipWriter<BufWriter<File>>>,
    series: Uid,
    budget: Budget,
    bytes: u64,
}

impl Copy {
    fn new(part: Part, key: &SeriesKey, budget: Budget) -> io::Result<Self> {
        // The copy of the handle shares its lock.
        let writer = BufWriter::new(part.file.try_clone()?);
        Ok(Self {
            part,
            zip: Some(ZipWriter::new(writer)),
            series: key.series.clone(),
            budget,
            bytes: 0,
        })
    }

    /// Checks a file and adds it, if it is one of the missing.
    async fn take(&mut self, file: Vec<u8>, missing: &mut HashSet<Uid>) -> Result<(), WebError> {
        let budget = self.budget;
        let (file, identity) = blocking(move || {
            let identity = dicom::identity(&file, &budget).map_err(|error| {
                WebError::Answer(format!("a DICOM file of the series is refused: {error}"))
            })?;
            Ok((file, identity))
        })
        .await?;
        if Uid::parse(&identity.series_uid).as_ref() != Some(&self.series) {
            return Err(WebError::Answer(
                "it holds a file of another series".to_owned(),
            ));
        }
        let uid = Uid::parse(&identity.instance_uid);
        let Some(uid) = uid.filter(|uid| missing.remove(uid)) else {
            // Twice, or newer than the list.
            return Ok(());
        };
        self.bytes = self.bytes.saturating_add(file.len() as u64);
        if self.bytes > MAX_SERIES_BYTES {
            return Err(WebError::Answer(format!(
                "the series has more than {MAX_SERIES_BYTES} bytes"
            )));
        }
        let Some(mut zip) = self.zip.take() else {
            return Err(WebError::Disk(io::Error::other("the copy failed before")));
        };
        self.zip = Some(
            blocking(move || {
                let options = SimpleFileOptions::default()
                    .compression_method(CompressionMethod::Stored)
                    .large_file(file.len() >= 1 << 30);
                zip.start_file(format!("{uid}.dcm"), options)
                    .map_err(io::Error::from)?;
                zip.write_all(&file)?;
                Ok(zip)
            })
            .await?,
        );
        Ok(())
    }

    fn finish(self) -> Result<Held, WebError> {
        let Some(zip) = self.zip else {
            return Err(WebError::Disk(io::Error::other("the copy failed before")));
        };
        let mut writer = zip.finish().map_err(io::Error::from)?;
        writer.flush()?;
        Ok(self.part.finish()?)
    }
}

/// Work on files, beside the requests.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WebError> + Send + 'static,
) -> Result<T, WebError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)?
}
