//! Labels are never overwritten. A submit adds revision *n + 1* of (image, tag); a deletion adds a
//! tombstone. A pointer names the current revision: the last one, unless an earlier one was made
//! current again (`revisions.rs`). There is no current label while it names a tombstone.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ids::{ImageId, Tag};
use super::images::object;
use super::revisions::check_expected;
use super::{MadeBy, Map, Project, ProjectError, Provenance};
use crate::store::StoreError;
use crate::store::rows::{self, LabelRecord, NewLabel};

/// How a label was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// By a person, with or without a proposal.
    Manual,
    /// By a person with a model that answers to clicks or scribbles.
    Interactive,
    /// By a model alone.
    Auto(MadeBy),
    /// Taken over from an earlier server.
    Import,
}

/// One revision of a label.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelRow {
    /// The image.
    pub image: ImageId,
    /// The tag.
    pub tag: Tag,
    /// 1, 2, ... per image and tag.
    pub revision: i64,
    /// The revision that it replaced.
    pub parent: Option<i64>,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// Suffix of the file as sent, with its dot.
    pub ext: String,
    /// Hash of the file as sent.
    pub sha256: String,
    /// Size of the file as sent.
    pub size_bytes: u64,
    /// Who submitted it.
    pub author: String,
    /// How it was made.
    pub origin: Origin,
    /// When, in seconds since 1970-01-01 UTC.
    pub ts: i64,
    /// What clients see: the parameters as sent, `ts`, `name`, and whatever was merged in.
    pub info: Map,
    /// Names of the classes that were annotated; any other class is unknown, not background.
    pub annotated: Vec<String>,
    /// Hash of the image on which it was drawn.
    pub image_sha256: String,
    /// How it came about.
    pub provenance: Provenance,
    /// Hash of the grid that it lies on; empty for revisions of the first release.
    pub geometry_sha256: String,
    normalised_sha256: String,
}

impl LabelRow {
    /// Name of the file for a download.
    pub fn file_name(&self) -> String {
        format!("{}{}", self.image, self.ext)
    }

    pub(super) fn from_record(row: LabelRecord) -> Result<Self, ProjectError> {
        let ts = row.created_ms.div_euclid(1000);
        let mut info = object(&row.params)?;
        info.insert("ts".to_owned(), json!(ts));
        info.insert(
            "name".to_owned(),
            json!(format!("{}{}", row.image, row.ext)),
        );
        info.extend(object(&row.extra)?);
        Ok(Self {
            image: ImageId::parse(&row.image)?,
            tag: Tag::parse(&row.tag)?,
            revision: row.revision,
            parent: row.parent,
            deleted: row.deleted,
            ext: row.ext,
            sha256: row.sha256,
            size_bytes: u64::try_from(row.size_bytes).unwrap_or_default(),
            author: row.author,
            origin: serde_json::from_str(&row.origin).map_err(StoreError::from)?,
            ts,
            info,
            annotated: serde_json::from_str(&row.annotated).map_err(StoreError::from)?,
            image_sha256: row.image_sha256,
            provenance: serde_json::from_str(&row.provenance).map_err(StoreError::from)?,
            geometry_sha256: row.geometry_sha256,
            normalised_sha256: row.normalised_sha256,
        })
    }
}

/// How far the project is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Images there are.
    pub total: usize,
    /// Images with an accepted label.
    pub completed: usize,
    /// Images per tag, in order of first use.
    pub label_tags: Vec<(String, usize)>,
}

impl Project {
    /// The current label of an image under a tag.
    ///
    /// # Errors
    /// When the store does not answer; likewise below.
    pub async fn label(
        &self,
        image: &ImageId,
        tag: &Tag,
    ) -> Result<Option<LabelRow>, ProjectError> {
        let row = self
            .store()
            .database
            .label(image.as_str(), tag.as_str())
            .await?;
        row.map(LabelRow::from_record).transpose()
    }

    /// The current labels of an image, oldest tag first; a tag submitted again keeps its place.
    pub async fn labels_of(&self, image: &ImageId) -> Result<Vec<LabelRow>, ProjectError> {
        let rows = self.store().database.labels_of(image.as_str()).await?;
        rows.into_iter().map(LabelRow::from_record).collect()
    }

    /// The accepted labels of all images there are, in order of first sight of the images.
    pub async fn accepted_labels(&self) -> Result<Vec<LabelRow>, ProjectError> {
        let database = &self.store().database;
        let rows = database.labels_tagged(Tag::accepted().as_str()).await?;
        rows.into_iter().map(LabelRow::from_record).collect()
    }

    /// The images there are with an accepted label, and the structures that it declares to hold in full.
    pub async fn labelled_images(&self) -> Result<HashMap<String, Vec<String>>, ProjectError> {
        let rows = self
            .store()
            .database
            .annotated(Tag::accepted().as_str())
            .await?;
        Ok(rows.into_iter().collect())
    }

    /// The current labels of all images there are: images in order of first sight, oldest tag first.
    pub async fn all_labels(&self) -> Result<Vec<LabelRow>, ProjectError> {
        let rows = self.store().database.labels().await?;
        rows.into_iter().map(LabelRow::from_record).collect()
    }

    /// Every revision of an image and tag, oldest first, tombstones included.
    pub async fn history(&self, image: &ImageId, tag: &Tag) -> Result<Vec<LabelRow>, ProjectError> {
        let rows = self
            .store()
            .database
            .label_history(image.as_str(), tag.as_str())
            .await?;
        rows.into_iter().map(LabelRow::from_record).collect()
    }

    /// The file as it was sent; read only.
    pub fn label_path(&self, label: &LabelRow) -> PathBuf {
        self.store().blobs.path(&label.sha256)
    }

    /// The label with the values of the schema, on the grid of its image, as `.nii.gz` (the file has
    /// no suffix). The only label file that training reads.
    pub fn training_label_path(&self, label: &LabelRow) -> PathBuf {
        self.store().blobs.path(&label.normalised_sha256)
    }

    /// Takes a label out of use by a tombstone; its revisions are kept. Without such a label nothing
    /// happens.
    ///
    /// # Errors
    /// [`ProjectError::Conflict`] when the current revision (0 for none) is not `expected`.
    pub async fn delete_label(
        &self,
        image: &ImageId,
        tag: &Tag,
        expected: Option<i64>,
    ) -> Result<(), ProjectError> {
        let mut tx = self.store().database.begin().await?;
        let current = rows::current_label(&mut tx, image.as_str(), tag.as_str()).await?;
        let revision = current.as_ref().map_or(0, |row| row.revision);
        check_expected(expected, revision, image, tag)?;
        let Some(current) = current else {
            return Ok(());
        };
        rows::add_label(
            &mut tx,
            &tombstone(&current, &self.actor, self.clock().now_ms()),
        )
        .await?;
        let detail = json!({"tag": tag, "revision": current.revision, "sha256": current.sha256});
        rows::append_audit(
            &mut tx,
            self.audit_entry("delete-label", image.as_str(), detail),
        )
        .await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }

    /// Merges into what clients see of the current label; the parameters as sent are kept below.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such label.
    pub async fn merge_label_info(
        &self,
        image: &ImageId,
        tag: &Tag,
        info: Map,
    ) -> Result<(), ProjectError> {
        let mut tx = self.store().database.begin().await?;
        let current = rows::current_label(&mut tx, image.as_str(), tag.as_str()).await?;
        let current = current
            .ok_or_else(|| ProjectError::NotFound(format!("image {image} has no label {tag}")))?;
        let mut extra = object(&current.extra)?;
        extra.extend(info.clone());
        rows::set_label_extra(&mut tx, current.seq, &json!(extra).to_string()).await?;
        let detail = json!({"tag": tag, "revision": current.revision, "info": info});
        rows::append_audit(
            &mut tx,
            self.audit_entry("merge-label-info", image.as_str(), detail),
        )
        .await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }
}

/// The revision that ends a label.
pub(super) fn tombstone(of: &LabelRecord, actor: &str, now_ms: i64) -> NewLabel {
    NewLabel {
        image: of.image.clone(),
        tag: of.tag.clone(),
        deleted: true,
        ext: of.ext.clone(),
        sha256: of.sha256.clone(),
        normalised_sha256: of.normalised_sha256.clone(),
        size_bytes: of.size_bytes,
        author: actor.to_owned(),
        origin: of.origin.clone(),
        params: "{}".to_owned(),
        annotated: of.annotated.clone(),
        image_sha256: of.image_sha256.clone(),
        created_ms: now_ms,
        idempotency_key: None,
        provenance: "{}".to_owned(),
        geometry_sha256: of.geometry_sha256.clone(),
    }
}
