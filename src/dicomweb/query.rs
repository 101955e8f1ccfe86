//! Which series and instances there are (QIDO-RS, PS3.18, 8.3.4 and 10.6).

use std::collections::HashSet;

use hyper::StatusCode;
use serde_json::Value;

use super::error::WebError;
use super::uid::Uid;
use super::{Pacs, SeriesKey};

/// Matches that are asked for at once. A server may send fewer.
const PAGE: usize = 500;
/// Longest answer to one question, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Most series of one server, and most instances of one series.
const MAX_MATCHES: usize = 500_000;
const JSON: &str = "application/dicom+json, application/json;q=0.9";

const STUDY: &str = "0020000D";
const SERIES: &str = "0020000E";
const INSTANCE: &str = "00080018";
const MODALITY: &str = "00080060";
const PATIENT_ID: &str = "00100020";
const INSTANCES_OF_SERIES: &str = "00201209";

/// Series of these kinds are no images of slices (PS3.3, C.7.3.1.1.1); results of ours are among them.
const NO_IMAGES: [&str; 14] = [
    "AU", "DOC", "ECG", "FID", "KO", "M3D", "PLAN", "PR", "REG", "RTDOSE", "RTPLAN", "RTSTRUCT",
    "SEG", "SR",
];
/// What is asked for by this program itself.
const RESERVED: [&str; 3] = ["limit", "offset", "includefield"];

/// A series that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSeries {
    /// Names it, and the number of its instances.
    pub key: SeriesKey,
    /// Its kind, as `CT`.
    pub modality: String,
    /// The patient id, to be kept by nobody; only a hash of it tells which series are of one patient.
    pub patient_id: Option<String>,
}

/// The series that fit the filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// In the order of their identifiers.
    pub series: Vec<FoundSeries>,
    /// Matches that cannot be used.
    pub unusable: usize,
}

/// # Errors
/// [`WebError::Setup`] for an attribute that cannot be.
pub(super) fn check_filter(filter: &[(String, String)]) -> Result<(), WebError> {
    for (name, _) in filter {
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
        if name.is_empty() || !is_name || RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(WebError::Setup(format!(
                "the filter {name:?} is no attribute to search for; give one like Modality=CT or StudyDate=20240101-"
            )));
        }
    }
    Ok(())
}

impl Pacs {
    /// All series that fit the filter, asked for page by page.
    ///
    /// # Errors
    /// A server that does not answer, or not in this way. A list that breaks off is no list.
    pub async fn list(&self) -> Result<Listing, WebError> {
        let rows = self.pages("/series", &self.series_query(), SERIES).await?;
        let mut listing = Listing::default();
        for row in rows {
            match found_series(&row) {
                Some(found) if NO_IMAGES.contains(&found.modality.as_str()) => {}
                Some(found) => listing.series.push(found),
                None => listing.unusable += 1,
            }
        }
        listing
            .series
            .sort_by(|a, b| a.key.series.cmp(&b.key.series));
        listing.series.dedup_by(|a, b| a.key.series == b.key.series);
        Ok(listing)
    }

    fn series_query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.inner.filter);
        for field in [STUDY, SERIES, MODALITY, PATIENT_ID, INSTANCES_OF_SERIES] {
            query.append_pair("includefield", field);
        }
        query.finish()
    }

    /// The instances of a series.
    ///
    /// # Errors
    /// As [`Pacs::list`]; [`WebError::NotFound`] when there are none.
    pub(super) async fn instances(&self, key: &SeriesKey) -> Result<Vec<Uid>, WebError> {
        let path = format!("/studies/{}/series/{}/instances", key.study, key.series);
        let rows = self
            .pages(&path, &format!("includefield={INSTANCE}"), INSTANCE)
            .await?;
        let uids: Option<Vec<Uid>> = rows.iter().map(|row| uid(row, INSTANCE)).collect();
        let uids = uids.ok_or_else(|| {
            WebError::Answer("an instance of the series has no SOP Instance UID".to_owned())
        })?;
        if uids.is_empty() {
            return Err(WebError::NotFound);
        }
        Ok(uids)
    }

    /// All matches, each once by its value of `identity`. A server may send fewer than it was asked for, so only a page
    /// without anything new is the last one.
    async fn pages(&self, path: &str, query: &str, identity: &str) -> Result<Vec<Value>, WebError> {
        let (mut rows, mut seen) = (Vec::new(), HashSet::new());
        let mut offset = 0;
        loop {
            let query = format!("{query}&limit={PAGE}&offset={offset}");
            let page = self.page(path, &query).await?;
            offset += page.len();
            let before = rows.len();
            for row in page {
                let name = text(&row, identity).map(str::to_owned);
                if name.is_none_or(|name| seen.insert(name)) {
                    rows.push(row);
                }
            }
            if rows.len() == before {
                return Ok(rows);
            }
            if rows.len() > MAX_MATCHES {
                return Err(WebError::Answer(format!(
                    "it has more than {MAX_MATCHES} matches; give a narrower filter"
                )));
            }
        }
    }

    async fn page(&self, path: &str, query: &str) -> Result<Vec<Value>, WebError> {
        let client = &self.inner.client;
        let uri = client.address.of(path, Some(query))?;
        let mut attempts = client.attempts();
        let body = loop {
            let asked = async {
                let answer = client.get(uri.clone(), JSON).await?;
                if answer.status() == StatusCode::NO_CONTENT {
                    return Ok(Vec::new());
                }
                client.whole(answer.into_body(), MAX_ANSWER).await
            };
            match asked.await {
                Ok(body) => break body,
                Err(error) => attempts.after(error).await?,
            }
        };
        if body.is_empty() {
            return Ok(Vec::new());
        }
        // The parser's words would repeat what it read.
        serde_json::from_slice(&body).map_err(|_| {
            WebError::Answer(
                "it is no DICOM JSON; --studies has to be the address of a DICOMweb service"
                    .to_owned(),
            )
        })
    }
}

fn found_series(row: &Value) -> Option<FoundSeries> {
    let count = &row[INSTANCES_OF_SERIES]["Value"][0];
    let count = count
        .as_u64()
        .or_else(|| count.as_str()?.trim().parse().ok());
    Some(FoundSeries {
        key: SeriesKey {
            study: uid(row, STUDY)?,
            series: uid(row, SERIES)?,
            instances: count.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        },
        modality: text(row, MODALITY).unwrap_or_default().to_owned(),
        patient_id: text(row, PATIENT_ID).map(str::to_owned),
    })
}

fn uid(row: &Value, tag: &str) -> Option<Uid> {
    Uid::parse(text(row, tag)?)
}

/// The first value of an attribute (PS3.18, F.2).
fn text<'r>(row: &'r Value, tag: &str) -> Option<&'r str> {
    row[tag]["Value"][0]
        .as_str()
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_of_servers() {
        let row = |count: Value| {
            json!({
                STUDY: {"vr": "UI", "Value": ["1.2"]}, SERIES: {"vr": "UI", "Value": ["1.2.3"]},
                MODALITY: {"vr": "CS", "Value": ["CT"]}, INSTANCES_OF_SERIES: {"vr": "IS", "Value": count},
                PATIENT_ID: {"vr": "LO"},
            })
        };
        for (count, expected) in [
            (json!([7]), 7),
            (json!(["7"]), 7),
            (json!([]), 0),
            (json!([-1]), 0),
        ] {
            let found = found_series(&row(count)).unwrap();
            assert_eq!(
                (found.key.instances, found.modality.as_str()),
                (expected, "CT")
            );
            assert_eq!(found.patient_id, None);
        }
        for bad in [
            json!({}),
            json!([1]),
            json!({STUDY: {"Value": ["../x"]}, SERIES: {"Value": ["1.2"]}}),
        ] {
            assert_eq!(found_series(&bad), None);
        }
    }

    #[test]
    fn filters() {
        let check = |name: &str| check_filter(&[(name.to_owned(), "x".to_owned())]);
        for good in [
            "Modality",
            "StudyDate",
            "00080060",
            "RequestAttributesSequence.0040A370",
        ] {
            assert!(check(good).is_ok());
        }
        for bad in ["", "limit", "Offset", "includefield", "a&b", "a b"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
