//! Accepted labels stored as DICOM objects on the DICOMweb server that their images are on.
//!
//! Nothing is queued: whatever accepted label says nothing about having been stored is still to be stored. So a kill at any
//! point loses nothing. An object made again from the same revision has the same identifiers, so that storing it twice is
//! storing it once.

use std::time::Duration;

use serde_json::{Value, json};

use super::images::object;
use super::labels::{LabelRow, Origin};
use super::{ImageRow, Project, ProjectError};
use crate::dicomweb::{Pacs, WebError};
use crate::imaging::dicom::{self, Algorithm, Drawn, ResultKind};
use crate::imaging::{Volume, read_label};
use crate::store::StoreError;
use crate::store::rows;

/// Where a label says what became of it.
const KEY: &str = "dicomweb";
/// Pause between two looks at whether there is something to store.
const LOOK: Duration = Duration::from_secs(1);
/// First pause after the server did not take something, and the longest.
const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Which labels are stored as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreResults {
    /// The kind of object.
    pub kind: ResultKind,
    /// Only labels that a second reader approved.
    pub approved_only: bool,
}

/// What became of a label.
enum Outcome {
    Stored(dicom::Identity),
    /// It will not be stored, and why.
    Refused(String),
}

impl Project {
    /// Stores accepted labels on the DICOMweb server as they come; never returns.
    pub async fn store_results(&self, how: StoreResults) {
        let Some(pacs) = self.dicomweb() else {
            return;
        };
        let (mut looked, mut pause) = (None, PAUSE);
        loop {
            let round = async {
                // Every submit and every verdict has its row there.
                let written = self.store().database.audit_rows_written().await?;
                if looked != Some(written) {
                    self.store_waiting(pacs, how).await?;
                    looked = Some(written);
                }
                Ok::<(), ProjectError>(())
            };
            match round.await {
                Ok(()) => {
                    pause = PAUSE;
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => {
                    tracing::warn!(
                        "labels are safe here and stored on the DICOMweb server later: {error}"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Stores what was not stored yet, in the order of the images.
    async fn store_waiting(&self, pacs: &Pacs, how: StoreResults) -> Result<(), ProjectError> {
        let mut without_study = None;
        for label in self.accepted_labels().await? {
            let is_approved = !how.approved_only || label.is_approved();
            if !is_approved || label.info.contains_key(KEY) {
                continue;
            }
            let Some(image) = self.image(&label.image).await? else {
                continue;
            };
            // An upload is not on the server.
            let Some(series) = &image.series else {
                continue;
            };
            let outcome = match self.encoded(&label, &image, how.kind).await {
                Ok((file, identity)) => match pacs.store(&series.study, &file).await {
                    Ok(()) => Outcome::Stored(identity),
                    // It was understood, and not taken.
                    Err(error @ (WebError::Answer(_) | WebError::Refused(_))) => {
                        Outcome::Refused(error.to_string())
                    }
                    // Tried again, but the others do not wait for it.
                    Err(error @ WebError::NotFound) => {
                        without_study.get_or_insert(error);
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                },
                Err(ProjectError::Invalid(reason) | ProjectError::NotFound(reason)) => {
                    Outcome::Refused(reason)
                }
                Err(error) => return Err(error),
            };
            self.note_result(&label, how.kind, &outcome).await?;
        }
        without_study.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The bytes of the object.
    async fn encoded(
        &self,
        label: &LabelRow,
        image: &ImageRow,
        kind: ResultKind,
    ) -> Result<(Vec<u8>, dicom::Identity), ProjectError> {
        let facts = self.image_facts(&image.id).await?;
        if facts.sha256 != label.image_sha256 {
            return Err(ProjectError::Invalid(
                "the series is not as it was when the label was drawn; submit the label again"
                    .to_owned(),
            ));
        }
        let copy = self.image_file(image).await?;
        let (labels, budget) = (self.training_label_path(label), self.limits.budget);
        let names = self.schema().values();
        let annotated =
            |name: &String| label.annotated.is_empty() || label.annotated.contains(name);
        let names: Vec<(u16, String)> = names
            .into_iter()
            .filter(|(_, name)| annotated(name))
            .collect();
        let by = drawn_by(label);
        let scratch = self.scratch_dir();
        self.decode(move || {
            let mut layers = read_label(&labels, &budget).map_err(refused)?.layers;
            let voxels = layers.drain(..).next().unwrap_or_default();
            let volume = Volume::new(facts.geometry, voxels).map_err(refused)?;
            let mut scans = dicom::open(copy.path(), &budget).map_err(refused)?;
            let scan = scans.only().map_err(refused)?;
            std::fs::create_dir_all(&scratch)?;
            let dir = tempfile::tempdir_in(&scratch)?;
            let path = dir.path().join("result.dcm");
            dicom::write_labels(&path, (&scans, scan), &volume, &names, &by, kind)
                .map_err(refused)?;
            let file = std::fs::read(&path)?;
            let identity = dicom::identity(&file, &budget).map_err(refused)?;
            Ok((file, identity))
        })
        .await
    }

    /// Notes on a revision what became of it, whether or not it is still the current one.
    async fn note_result(
        &self,
        label: &LabelRow,
        kind: ResultKind,
        outcome: &Outcome,
    ) -> Result<(), ProjectError> {
        let note = match outcome {
            Outcome::Stored(identity) => {
                tracing::info!("an accepted label was stored on the DICOMweb server");
                json!({
                    "state": "stored", "Modality": modality(kind),
                    "StudyInstanceUID": identity.study_uid,
                    "SeriesInstanceUID": identity.series_uid,
                    "SOPInstanceUID": identity.instance_uid,
                })
            }
            Outcome::Refused(reason) => {
                tracing::warn!("an accepted label is not stored on the DICOMweb server: {reason}");
                json!({"state": "refused", "reason": reason})
            }
        };
        let mut tx = self.store().database.begin().await?;
        let (image, tag) = (label.image.as_str(), label.tag.as_str());
        let Some(row) = rows::label_revision(&mut tx, image, tag, label.revision).await? else {
            return Ok(());
        };
        let mut extra = object(&row.extra)?;
        extra.insert(KEY.to_owned(), note.clone());
        rows::set_label_extra(&mut tx, row.seq, &Value::Object(extra).to_string()).await?;
        let detail = json!({"tag": tag, "revision": label.revision, "result": note});
        let entry = self.audit_entry("store-result", image, detail);
        rows::append_audit(&mut tx, entry).await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }
}

/// Why there is no object.
fn refused(error: impl std::fmt::Display) -> ProjectError {
    ProjectError::Invalid(format!("the label gets no DICOM object: {error}"))
}

fn modality(kind: ResultKind) -> &'static str {
    match kind {
        ResultKind::Segmentation(_) => "SEG",
        ResultKind::Structures => "RTSTRUCT",
    }
}

/// How a label came about, as the object says it.
fn drawn_by(label: &LabelRow) -> Algorithm {
    let (made_by, drawn) = match (&label.origin, &label.provenance.proposal) {
        (Origin::Auto(made_by), _) => (Some(made_by), Drawn::Automatically),
        (_, Some(made_by)) => (Some(made_by), Drawn::FromProposal),
        (_, None) => (None, Drawn::ByHand),
    };
    let program = format!("Fewlabel {}", env!("CARGO_PKG_VERSION"));
    Algorithm {
        name: made_by.map_or_else(|| "Fewlabel".to_owned(), |by| by.model.clone()),
        version: match made_by.and_then(|by| by.version) {
            Some(version) => format!("{version} ({program})"),
            None => program,
        },
        sha256: made_by
            .and_then(|by| by.sha256.clone())
            .unwrap_or_else(|| label.sha256.clone()),
        made_ms: label.ts * 1000,
        drawn,
    }
}
