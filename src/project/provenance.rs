//! Where a revision comes from: who sent it with what, after how long, and how far it is from what
//! the model proposed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::labels::Origin;
use super::{ImageId, Job, JobId, Map, Project, ProjectError, Tag};

/// Longest text that is kept of what a client says about itself.
const MAX_TEXT_CHARS: usize = 200;
/// Larger proposals (an uncompressed NRRD of a large scan) are not kept for comparison.
const MAX_PROPOSAL_BYTES: u64 = 64 << 20;
/// How long a proposal is kept for the comparison with its correction.
const PROPOSAL_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A version of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MadeBy {
    /// Its name.
    pub model: String,
    /// Its number.
    pub version: Option<i64>,
    /// Hash of its weights.
    pub sha256: Option<String>,
}

/// How a revision came about. What is not known is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// What the client calls itself (`User-Agent`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The program that the label was drawn with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_version: Option<String>,
    /// Seconds from when the author got the image to the submit: as the client says, else since the
    /// server last served the image, or a proposal for it, to this author.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_open: Option<f64>,
    /// Voxels whose class differs from the proposal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voxels_changed: Option<u64>,
    /// The model of that proposal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proposal: Option<MadeBy>,
}

impl Provenance {
    /// From the `User-Agent` (its first product is the tool) and the texts `tool` and `tool_version`
    /// and the number `seconds_open` among the parameters of the submit, which go first.
    pub fn of_client(user_agent: &str, params: &Map) -> Self {
        let kept = |text: &str| {
            let text: String = text.trim().chars().take(MAX_TEXT_CHARS).collect();
            (!text.is_empty()).then_some(text)
        };
        let said = |key: &str| params.get(key).and_then(Value::as_str).and_then(kept);
        let product = user_agent.split_whitespace().next().unwrap_or_default();
        let (name, version) = product.split_once('/').unwrap_or((product, ""));
        let tool = said("tool");
        Self {
            client: kept(user_agent),
            tool_version: said("tool_version")
                .or_else(|| tool.is_none().then(|| kept(version)).flatten()),
            tool: tool.or_else(|| kept(name)),
            seconds_open: params
                .get("seconds_open")
                .and_then(Value::as_f64)
                .filter(|seconds| seconds.is_finite() && *seconds >= 0.0),
            ..Self::default()
        }
    }
}

/// What an author started from.
pub(super) struct Proposal {
    /// The label file.
    pub path: PathBuf,
    pub made_by: MadeBy,
}

impl Project {
    /// Keeps the result of an inference for a day, so that its correction can be compared with it. A
    /// result that cannot be kept is not compared.
    pub fn keep_proposal(&self, job: JobId, file: &Path) {
        let small = std::fs::metadata(file).is_ok_and(|about| about.len() <= MAX_PROPOSAL_BYTES);
        if !small || self.staging().check_space().is_err() {
            return;
        }
        let folder = self.proposals();
        let kept = std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::hard_link(file, folder.join(job.to_string())));
        if let Err(error) = kept {
            tracing::debug!(%error, "a proposal is not kept for comparison");
        }
    }

    /// Removes proposals that nobody corrected within a day. Blocks.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(super) fn sweep_proposals(&self) -> Result<(), ProjectError> {
        let folder = self.proposals();
        if !folder.is_dir() {
            return Ok(());
        }
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let age = SystemTime::now()
                .duration_since(entry.metadata()?.modified()?)
                .unwrap_or_default();
            if age >= PROPOSAL_LIFETIME {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn proposals(&self) -> PathBuf {
        self.scratch_dir().join("proposals")
    }

    /// Fills in what the server knows itself: the proposal that this author got last for the image, or
    /// the one that is stored for it, and when that was.
    pub(super) async fn look_up_proposal(
        &self,
        image: &ImageId,
        tag: &Tag,
        author: &str,
        provenance: &mut Provenance,
    ) -> Result<Option<Proposal>, ProjectError> {
        let job = self
            .jobs()
            .inference_of(image.as_str(), |request| {
                // What shows a single structure is no proposal for the whole label.
                request["client_id"] == author && request.get("single").is_none()
            })
            .await?;
        if provenance.seconds_open.is_none() {
            let database = &self.store().database;
            let served_ms = database.last_serving(image.as_str(), author).await?;
            let opened_ms = served_ms.or_else(|| job.as_ref().and_then(|job| job.end_ts));
            provenance.seconds_open = opened_ms
                .map(|opened_ms| self.clock().now_ms() - opened_ms)
                .filter(|open_ms| *open_ms >= 0)
                .map(|open_ms| open_ms as f64 / 1000.0);
        }
        let sent = job.map(|job| Proposal {
            path: self.proposals().join(job.id.to_string()),
            made_by: made_by(&job),
        });
        let found = match sent {
            Some(sent) => Some(sent),
            None if *tag == Tag::original() => None,
            None => {
                let stored = self.label(image, &Tag::original()).await?;
                stored.and_then(|label| {
                    let path = self.training_label_path(&label);
                    match label.origin {
                        Origin::Auto(made_by) => Some(Proposal { path, made_by }),
                        _ => None,
                    }
                })
            }
        };
        provenance.proposal = found.as_ref().map(|found| found.made_by.clone());
        Ok(found.filter(|found| found.path.is_file()))
    }
}

/// The model version that an inference used.
fn made_by(job: &Job) -> MadeBy {
    let params = &job.result["params"];
    MadeBy {
        model: params["model"].as_str().unwrap_or_default().to_owned(),
        version: params["model_version"].as_i64(),
        sha256: params["model_sha256"].as_str().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_says_what_it_is() {
        let of =
            |agent: &str, params: Value| Provenance::of_client(agent, params.as_object().unwrap());
        let slicer = of("Slicer/5.8.1 (linux)", json!({}));
        assert_eq!(
            (slicer.tool.as_deref(), slicer.tool_version.as_deref()),
            (Some("Slicer"), Some("5.8.1"))
        );
        assert_eq!(slicer.client.as_deref(), Some("Slicer/5.8.1 (linux)"));
        let said = of("python", json!({"tool": "OHIF", "seconds_open": 12.5}));
        assert_eq!(
            (said.tool.as_deref(), said.tool_version, said.seconds_open),
            (Some("OHIF"), None, Some(12.5))
        );
        assert_eq!(
            of("", json!({"tool": 7, "seconds_open": -1})),
            Provenance::default()
        );
        let long = of(&"x".repeat(5000), json!({}));
        assert_eq!(long.client.unwrap().len(), MAX_TEXT_CHARS);
    }
}
