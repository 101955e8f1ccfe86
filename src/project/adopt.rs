//! Taking over the labels of an earlier MONAI Label server, once, without changing its folder.
//!
//! Each file goes through the same checks as a submit; what fails them is named in the log and in
//! the audit log, and stays where it is. What clients sent with a label is kept whole, `ts` included.

use serde_json::json;

use super::ids::{ImageId, Tag};
use super::labels::{LabelRow, Origin};
use super::monai::{Folder, FolderLabel};
use super::submit::SubmitLabel;
use super::{Map, Project, ProjectError};
use crate::store::{StoreError, rows};

/// Author of what was taken over.
const AUTHOR: &str = "import";

impl Project {
    /// Imports the labels in the studies folder, unless that was done before.
    pub(super) async fn adopt(&self) -> Result<(), ProjectError> {
        if self.store().database.setting("adopted").await?.is_some() {
            return Ok(());
        }
        let folder = Folder::open(self.studies());
        for image in self.images().await? {
            let info = folder.image_info(image.id.as_str());
            if !info.is_empty() {
                self.take_image_info(&image.id, info).await?;
            }
        }
        for label in folder.labels()? {
            if let Err(error) = self.adopt_label(&folder, &label).await {
                // A fault of the disk is no verdict on the file: the next start tries again.
                if !matches!(error, ProjectError::Invalid(_) | ProjectError::NotFound(_)) {
                    return Err(error);
                }
                let (tag, file) = (&label.tag, &label.file);
                tracing::warn!(%tag, file, %error, "a label in the studies folder was not imported; it stays as it is");
                self.audit(
                    "import-refused",
                    file,
                    json!({"tag": tag, "reason": error.to_string()}),
                )
                .await?;
            }
        }
        self.keep_title(&folder).await?;
        let mut tx = self.store().database.begin().await?;
        rows::put_setting(&mut tx, "adopted", &self.clock().now_s().to_string()).await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }

    async fn adopt_label(&self, folder: &Folder, label: &FolderLabel) -> Result<(), ProjectError> {
        let image = self.image_of(label).await?;
        let staged = self.inner.store.staging.copy_of(&label.path).await?;
        // An import cut short starts again and must not add a second revision.
        let key = format!("import/{}/{}/{}", label.tag, label.file, staged.sha256);
        let info = folder.label_info(image.as_str(), &label.tag);
        let submit = SubmitLabel {
            params: info.clone(),
            origin: Origin::Import,
            idempotency_key: Some(key),
            ..SubmitLabel::new(image, label.tag.clone(), staged, &label.file, AUTHOR)
        };
        let taken = self.submit_label(submit).await?;
        self.keep_time(&taken, &info).await
    }

    /// The image that a label file is of.
    pub(super) async fn image_of(&self, label: &FolderLabel) -> Result<ImageId, ProjectError> {
        let mut first = None;
        for id in &label.images {
            let id = ImageId::parse(id)?;
            if self.image(&id).await?.is_some() {
                return Ok(id);
            }
            first.get_or_insert(id);
        }
        match first {
            Some(id) => Err(super::images::unknown(&id)),
            None => Err(ProjectError::Invalid(
                "its suffix is no label suffix".to_owned(),
            )),
        }
    }

    /// Shows clients the time at which the earlier server took a label.
    pub(super) async fn keep_time(&self, label: &LabelRow, info: &Map) -> Result<(), ProjectError> {
        match info.get("ts") {
            Some(ts) if label.info.get("ts") != Some(ts) => {
                let ts = Map::from_iter([("ts".to_owned(), ts.clone())]);
                self.merge_label_info(&label.image, &label.tag, ts).await
            }
            _ => Ok(()),
        }
    }

    /// Keeps name and description of the earlier server, unless there are some already.
    pub(super) async fn keep_title(&self, folder: &Folder) -> Result<(), ProjectError> {
        for (key, part) in [("title", "name"), ("about", "description")] {
            if let Some(text) = folder.text(part)
                && self.store().database.setting(key).await?.is_none()
            {
                let mut tx = self.store().database.begin().await?;
                rows::put_setting(&mut tx, key, text).await?;
                tx.commit().await.map_err(StoreError::from)?;
            }
        }
        Ok(())
    }

    /// Whether the current label is this file with this info.
    pub(super) async fn has_label(
        &self,
        image: &ImageId,
        tag: &Tag,
        sha256: &str,
        info: &Map,
    ) -> Result<bool, ProjectError> {
        let current = self.label(image, tag).await?;
        Ok(current.is_some_and(|label| label.sha256 == sha256 && label.info == *info))
    }
}
