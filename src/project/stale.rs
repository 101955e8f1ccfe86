//! Labels whose image was replaced by another content under the same id.
//!
//! A label keeps the hash of the image it was drawn on. When the image has another one now, the label
//! is kept and shown, but nothing is learned from it until somebody looked and confirmed it.

use std::collections::HashSet;

use serde_json::json;

use super::ids::{ImageId, Tag};
use super::{Project, ProjectError};
use crate::imaging;
use crate::store::StoreError;
use crate::store::rows;

/// What clients are told about such a label.
pub const STALE: &str = "the image was changed after this label was drawn; it is not used for training until it is confirmed or submitted again";

impl Project {
    /// Labels that were drawn on another content of their image, and not confirmed since.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn stale_labels(&self) -> Result<HashSet<(ImageId, Tag)>, ProjectError> {
        let mut stale = HashSet::new();
        for row in self.store().database.stale_labels().await? {
            stale.insert((ImageId::parse(&row.image)?, Tag::parse(&row.tag)?));
        }
        Ok(stale)
    }

    /// Says for the current label that it also fits the image as it is now.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such label, [`ProjectError::Invalid`] when the
    /// image has another grid now.
    pub async fn confirm_label(
        &self,
        image: &ImageId,
        tag: &Tag,
        author: &str,
    ) -> Result<(), ProjectError> {
        let facts = self.image_facts(image).await?;
        let label = self.label(image, tag).await?;
        let label = label
            .ok_or_else(|| ProjectError::NotFound(format!("image {image} has no label {tag}")))?;
        let (path, budget) = (self.training_label_path(&label), self.limits.budget);
        let grid = self
            .decode(move || {
                imaging::read_label(&path, &budget)
                    .map(|file| file.geometry)
                    .map_err(|error| ProjectError::Internal(format!("a stored label: {error}")))
            })
            .await?;
        let tolerance_mm = super::submit::tolerance_mm(&facts.geometry);
        if !grid.same_grid(&facts.geometry, tolerance_mm) {
            return Err(ProjectError::Invalid(format!(
                "label {tag} of image {image} lies on another grid than the image has now; it stays as it is, submit a new one"
            )));
        }
        let mut tx = self.store().database.begin().await?;
        let current = rows::current_label(&mut tx, image.as_str(), tag.as_str()).await?;
        let current = current
            .filter(|current| current.revision == label.revision)
            .ok_or_else(|| {
                ProjectError::Conflict(format!(
                    "label {tag} of image {image} was replaced meanwhile; nothing was changed, look at it and repeat"
                ))
            })?;
        let now_ms = self.clock().now_ms();
        rows::confirm_label(&mut tx, current.seq, &facts.sha256, author, now_ms).await?;
        let detail = json!({
            "tag": tag, "revision": label.revision, "drawn_on": label.image_sha256, "image_sha256": facts.sha256,
        });
        let entry = rows::AuditEntry {
            actor: author,
            ..self.audit_entry("confirm-label", image.as_str(), detail)
        };
        rows::append_audit(&mut tx, entry).await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }
}
