//! Which images are learned from, validated on, and held out.
//!
//! An image gets its part when it is first seen, and keeps it:
//!
//! - images of one patient are always in the same part. The patient is `patient` in the image's info
//!   or under `patients` in the `dataset.json` of the studies folder (`{"image id": "patient"}`), else
//!   the first folder of the image's path; else every image is a patient of its own;
//! - in a project of [`WHOLE_SPLIT`] images or more, every [`BLOCK`] patients, in order of first sight,
//!   hold [`SHARES`] of training, validation and test in an order drawn from the seed, so that the
//!   shares are exact at any size;
//! - images seen while there are fewer are never test images: one of every [`SMALL_BLOCK`] patients is
//!   a validation image and the rest is learned from. Who has few images can label and learn from all
//!   of them, and a round with fewer than four labels learns from all of them (`rounds::fine_tune`).
//!
//! The seed is recorded at the first decision; another `--seed` later changes nothing. Test images are
//! never offered as next sample and no round reads them; who wants labels on them submits them by id.
//! A decision can be changed by command until the image was offered or used, for the whole patient.
//! The table is append-only.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::images::unknown;
use super::{ImageId, ImageRow, Project, ProjectError};
use crate::rng::Rng;
use crate::store::StoreError;
use crate::store::rows::{self, SplitRecord, WriteTransaction};

/// Projects of so many images hold test images out.
const WHOLE_SPLIT: usize = 20;
/// Patients that hold the shares exactly.
const BLOCK: usize = 20;
/// Patients of a block in training, validation and test.
const SHARES: [(Part, usize); 3] = [(Part::Train, 14), (Part::Validation, 3), (Part::Test, 3)];
/// In a smaller project one of so many patients is a validation patient.
const SMALL_BLOCK: usize = 5;
/// Setting that holds the seed.
const SEED: &str = "split_seed";

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Learned from.
    Train,
    /// Decides which weights of a round are kept.
    Validation,
    /// Neither queried nor learned from.
    Test,
}

impl Part {
    /// `train`, `validation` or `test`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }

    /// The part of that name.
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Train, Self::Validation, Self::Test];
        all.into_iter().find(|part| part.as_str() == text)
    }
}

/// The part of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitRow {
    /// The image.
    pub image: ImageId,
    /// Whom it shows; the image's id where nobody is known.
    pub patient: String,
    /// What it is for.
    pub part: Part,
    /// `first sight`, `same patient` or `command`.
    pub reason: String,
    /// Who decided.
    pub actor: String,
    /// When, in seconds since 1970-01-01 UTC.
    pub ts: i64,
}

impl Project {
    /// The part of every image, in the order of the decisions; decides for images that have none yet.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn split(&self) -> Result<Vec<SplitRow>, ProjectError> {
        self.split_new_images().await?;
        let rows = self.store().database.splits().await?;
        rows.into_iter().map(row).collect()
    }

    /// The test images; decides for images that have no part yet.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn test_images(&self) -> Result<HashSet<String>, ProjectError> {
        self.split_new_images().await?;
        let images = self.store().database.test_images().await?;
        Ok(images.into_iter().collect())
    }

    /// Notes that images were used, in the transaction of that use: their part is fixed from then on.
    pub(crate) async fn mark_used(
        &self,
        tx: &mut WriteTransaction,
        images: impl IntoIterator<Item = &str>,
        used_for: &str,
    ) -> Result<(), StoreError> {
        for image in images {
            rows::mark_used(tx, image, used_for, self.clock().now_ms()).await?;
        }
        Ok(())
    }

    /// Moves an image, and all other images of its patient, to another part; returns which.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such image, [`ProjectError::Conflict`] with the reason
    /// when one of the images was used before; nothing is changed then.
    pub async fn set_part(
        &self,
        image: &ImageId,
        part: Part,
    ) -> Result<Vec<ImageId>, ProjectError> {
        self.split_new_images().await?;
        let mut tx = self.store().database.begin().await?;
        let all = rows::splits(&mut tx).await?;
        let patient = all.iter().find(|row| row.image == image.as_str());
        let patient = patient.ok_or_else(|| unknown(image))?.patient.clone();
        let mut moved = Vec::new();
        for before in all.iter().filter(|row| row.patient == patient) {
            if let Some(used_for) = rows::use_of(&mut tx, &before.image).await? {
                return Err(ProjectError::Conflict(format!(
                    "image {} was used before ({used_for}), so its part stays {}; nothing was changed. A part can be \
                     changed until the image, or another one of the same patient, is offered or used",
                    before.image, before.part
                )));
            }
            let decision = SplitRecord {
                part: part.as_str().to_owned(),
                reason: "command".to_owned(),
                actor: self.actor.to_string(),
                created_ms: self.clock().now_ms(),
                ..before.clone()
            };
            rows::add_split(&mut tx, &decision).await?;
            let detail = json!({"from": before.part, "to": part, "patient": patient});
            let entry = self.audit_entry("set-split", &before.image, detail);
            rows::append_audit(&mut tx, entry).await?;
            moved.push(ImageId::parse(&before.image)?);
        }
        tx.commit().await.map_err(StoreError::from)?;
        Ok(moved)
    }

    /// Decides for every image that has no part yet.
    pub(super) async fn split_new_images(&self) -> Result<(), ProjectError> {
        if !self.store().database.has_unsplit_images().await? {
            return Ok(());
        }
        let images = self.images().await?;
        let patients = self.patients_of_dataset().await;
        let mut tx = self.store().database.begin().await?;
        let seed = self.split_seed(&mut tx).await?;
        let decided = rows::splits(&mut tx).await?;
        let known: HashSet<&str> = decided.iter().map(|row| row.image.as_str()).collect();
        let mut parts: HashMap<String, Part> = HashMap::new();
        for row in &decided {
            parts.insert(row.patient.clone(), part(&row.part)?);
        }
        let new: Vec<&ImageRow> = images
            .iter()
            .filter(|image| !known.contains(image.id.as_str()))
            .collect();
        let size = decided.len() + new.len();
        for image in new {
            let patient = patients
                .get(image.id.as_str())
                .cloned()
                .unwrap_or_else(|| self.patient_of(image));
            let (part, reason) = match parts.get(&patient) {
                Some(part) => (*part, "same patient"),
                None => (draw(seed, parts.len(), size), "first sight"),
            };
            parts.insert(patient.clone(), part);
            let decision = SplitRecord {
                seq: 0,
                image: image.id.to_string(),
                patient,
                part: part.as_str().to_owned(),
                reason: reason.to_owned(),
                actor: self.actor.to_string(),
                created_ms: self.clock().now_ms(),
            };
            rows::add_split(&mut tx, &decision).await?;
        }
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }

    /// The recorded seed; recorded with the first decision.
    async fn split_seed(&self, tx: &mut WriteTransaction) -> Result<u64, ProjectError> {
        match self.store().database.setting(SEED).await? {
            Some(seed) => seed.parse().map_err(|_| {
                ProjectError::Internal("the seed of the split in the store is no number".to_owned())
            }),
            None => {
                rows::put_setting(tx, SEED, &self.seed().to_string()).await?;
                Ok(self.seed())
            }
        }
    }

    fn patient_of(&self, image: &ImageRow) -> String {
        let said = match image.info.get("patient") {
            Some(Value::String(text)) if !text.trim().is_empty() => Some(text.trim().to_owned()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let folder = || {
            let below = image.path.strip_prefix(self.studies()).ok()?;
            let mut parts = below.components();
            let first = parts.next()?;
            parts.next()?;
            Some(first.as_os_str().to_string_lossy().into_owned())
        };
        said.or_else(folder).unwrap_or_else(|| image.id.to_string())
    }

    /// `patients` of the studies folder's `dataset.json`: image id to patient.
    async fn patients_of_dataset(&self) -> HashMap<String, String> {
        let file = self.studies().join("dataset.json");
        let Ok(bytes) = tokio::fs::read(file).await else {
            return HashMap::new();
        };
        let dataset: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let named = dataset["patients"].as_object().into_iter().flatten();
        named
            .filter_map(|(image, patient)| Some((image.clone(), patient.as_str()?.to_owned())))
            .collect()
    }
}

/// The part of the patient of that number in a project of `size` images.
fn draw(seed: u64, patient: usize, size: usize) -> Part {
    let rng = Rng::new(seed).named("split");
    if size < WHOLE_SPLIT {
        let block = (patient / SMALL_BLOCK) as u64;
        let chosen = rng.named("small").stream(block).below(SMALL_BLOCK);
        return if patient % SMALL_BLOCK == chosen {
            Part::Validation
        } else {
            Part::Train
        };
    }
    let mut block: Vec<Part> = SHARES
        .into_iter()
        .flat_map(|(part, count)| std::iter::repeat_n(part, count))
        .collect();
    rng.stream((patient / BLOCK) as u64).shuffle(&mut block);
    block[patient % BLOCK]
}

fn row(record: SplitRecord) -> Result<SplitRow, ProjectError> {
    Ok(SplitRow {
        image: ImageId::parse(&record.image)?,
        part: part(&record.part)?,
        patient: record.patient,
        reason: record.reason,
        actor: record.actor,
        ts: record.created_ms.div_euclid(1000),
    })
}

fn part(text: &str) -> Result<Part, ProjectError> {
    Part::parse(text)
        .ok_or_else(|| ProjectError::Internal(format!("{text:?} in the store is no part")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tests::{Bench, id};

    fn count(rows: &[SplitRow], part: Part) -> usize {
        rows.iter().filter(|row| row.part == part).count()
    }

    async fn with_images(count: usize) -> Bench {
        let names: Vec<String> = (0..count).map(|n| format!("c{n:03}.nii.gz")).collect();
        Bench::with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    #[test]
    fn every_block_holds_its_shares() {
        for seed in 0..20 {
            for block in 0..5 {
                let parts: Vec<Part> = (0..BLOCK)
                    .map(|n| draw(seed, block * BLOCK + n, 400))
                    .collect();
                for (part, share) in SHARES {
                    assert_eq!(parts.iter().filter(|drawn| **drawn == part).count(), share);
                }
            }
            let small: Vec<Part> = (0..15).map(|n| draw(seed, n, 15)).collect();
            for five in small.chunks(SMALL_BLOCK) {
                assert_eq!(
                    five.iter()
                        .filter(|part| **part == Part::Validation)
                        .count(),
                    1
                );
            }
            assert!(!small.contains(&Part::Test));
        }
        let drawn = |seed| (0..100).map(|n| draw(seed, n, 100)).collect::<Vec<_>>();
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[tokio::test]
    async fn an_image_keeps_its_part_when_others_come_and_the_seed_changes() {
        let bench = with_images(6).await;
        let before = bench.project.split().await.unwrap();
        assert_eq!((before.len(), count(&before, Part::Test)), (6, 0));
        for n in 6..60 {
            Bench::write_image(&bench.project.studies().join(format!("c{n:03}.nii.gz")));
        }
        bench.project.rescan().await.unwrap();
        let after = bench.project.split().await.unwrap();
        assert_eq!(after[..6], before);
        assert_eq!(after.len(), 60);
        assert!((4..=9).contains(&count(&after, Part::Test)));
        assert_eq!(bench.project.split().await.unwrap(), after);
        let held_out = bench.project.test_images().await.unwrap();
        assert_eq!(held_out.len(), count(&after, Part::Test));
    }

    #[tokio::test]
    async fn images_of_a_patient_are_never_apart() {
        let bench = with_images(0).await;
        let patients: serde_json::Map<_, _> = (0..40)
            .map(|n| (format!("c{n:03}"), json!(format!("p{}", n % 10))))
            .collect();
        let dataset = json!({"labels": {}, "patients": patients});
        std::fs::write(
            bench.project.studies().join("dataset.json"),
            dataset.to_string(),
        )
        .unwrap();
        for n in 0..40 {
            Bench::write_image(&bench.project.studies().join(format!("c{n:03}.nii.gz")));
        }
        bench.project.rescan().await.unwrap();
        let rows = bench.project.split().await.unwrap();
        assert_eq!(rows.len(), 40);
        for a in &rows {
            assert!(
                rows.iter()
                    .all(|b| a.patient != b.patient || a.part == b.part)
            );
        }
        assert_eq!(rows.iter().filter(|row| row.patient == "p3").count(), 4);
    }

    #[tokio::test]
    async fn a_part_changes_by_command_until_the_image_is_used() {
        let bench = with_images(3).await;
        let lead = bench.project.acting_as("lead");
        assert_eq!(
            lead.set_part(&id("c001"), Part::Test).await.unwrap(),
            [id("c001")]
        );
        assert!(bench.project.test_images().await.unwrap().contains("c001"));
        let row = &bench.project.split().await.unwrap()[2];
        assert_eq!(
            (
                row.image.as_str(),
                row.part,
                row.actor.as_str(),
                row.reason.as_str()
            ),
            ("c001", Part::Test, "lead", "command")
        );
        let mut tx = bench.project.store().database.begin().await.unwrap();
        let project = &bench.project;
        project
            .mark_used(&mut tx, ["c002"], "a next sample")
            .await
            .unwrap();
        tx.commit().await.unwrap();
        match lead.set_part(&id("c002"), Part::Test).await {
            Err(ProjectError::Conflict(text)) => {
                assert!(text.contains("a next sample"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            lead.set_part(&id("other"), Part::Test).await,
            Err(ProjectError::NotFound(_))
        ));
        assert_eq!(bench.project.test_images().await.unwrap().len(), 1);
    }
}
