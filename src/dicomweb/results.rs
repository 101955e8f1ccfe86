//! Results stored on the server (STOW-RS, PS3.18, 10.5).

use serde_json::Value;

use super::Pacs;
use super::error::WebError;
use super::multipart;
use super::uid::Uid;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 4 << 20;
const JSON: &str = "application/dicom+json";
/// Failed SOP Sequence, and Failure Reason.
const FAILED: &str = "00081198";
const REASON: &str = "00081197";

impl Pacs {
    /// Stores one DICOM file in its study. To repeat that is harmless: the file names itself.
    ///
    /// # Errors
    /// A server that does not answer, or does not take the file.
    pub async fn store(&self, study: &Uid, file: &[u8]) -> Result<(), WebError> {
        let client = &self.inner.client;
        let uri = client.address.of(&format!("/studies/{study}"), None)?;
        let (kind, body) = multipart::of_one(file);
        let body = hyper::body::Bytes::from(body);
        let mut attempts = client.attempts();
        let answer = loop {
            let asked = async {
                let sent = (kind.as_str(), body.clone());
                let answer = client.post(uri.clone(), sent, JSON).await?;
                client.whole(answer.into_body(), MAX_ANSWER).await
            };
            match asked.await {
                Ok(answer) => break answer,
                Err(error) => attempts.after(error).await?,
            }
        };
        match failure(&answer) {
            None => Ok(()),
            Some(reason) => Err(WebError::Answer(format!(
                "it does not store the result (failure reason {reason}, see PS3.18, table I.2-2)"
            ))),
        }
    }
}

/// The reason why a file was not stored, if it was not. An answer in another form has nothing to say.
fn failure(answer: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let failed = answer[FAILED]["Value"].as_array()?.first()?;
    Some(failed[REASON]["Value"][0].to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures() {
        let failed =
            br#"{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}"#;
        assert_eq!(failure(failed).as_deref(), Some("272"));
        let stored = br#"{"00081199": {"vr": "SQ", "Value": [{}]}, "00081198": {"vr": "SQ"}}"#;
        for good in [&stored[..], b"", b"<xml/>"] {
            assert_eq!(failure(good), None);
        }
    }
}
