//! Taking over the labels of an earlier MONAI Label server, once, without changing its folder.
//!
//! `<studies>/labels/<tag>/<id><ext>` are labels, `<studies>/datastore_v2.json` holds what clients
//! sent with them. Each file goes through the same checks as a submit; what fails them is named in
//! the log and in the audit log, and stays where it is.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ids::{IMAGE_SUFFIXES, ImageId, LABEL_SUFFIXES, Tag, split_suffix};
use super::labels::Origin;
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
        let index = read_index(&self.studies().join("datastore_v2.json"));
        for image in self.images().await? {
            let info = client_info(&index["objects"][image.id.as_str()]["image"]["info"]);
            if !info.is_empty() {
                self.set_image_info(&image.id, info).await?;
            }
        }
        for (tag, path) in label_files(&self.studies().join("labels"))? {
            let file = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            if let Err(error) = self.adopt_label(&tag, &path, &file, &index).await {
                // A fault of the disk is no verdict on the file: the next start tries again.
                if !matches!(error, ProjectError::Invalid(_) | ProjectError::NotFound(_)) {
                    return Err(error);
                }
                tracing::warn!(%tag, file, %error, "a label in the studies folder was not imported; it stays as it is");
                self.audit(
                    "import-refused",
                    &file,
                    json!({"tag": tag, "reason": error.to_string()}),
                )
                .await?;
            }
        }
        let mut tx = self.store().database.begin().await?;
        rows::put_setting(&mut tx, "adopted", &self.clock().now_s().to_string()).await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }

    async fn adopt_label(
        &self,
        tag: &Tag,
        path: &Path,
        file: &str,
        index: &Value,
    ) -> Result<(), ProjectError> {
        let (stem, _) = split_suffix(file, &IMAGE_SUFFIXES)
            .or_else(|| split_suffix(file, &LABEL_SUFFIXES))
            .ok_or_else(|| ProjectError::Invalid("its suffix is no label suffix".to_owned()))?;
        let image = ImageId::parse(stem)?;
        let staged = self.inner.store.staging.copy_of(path).await?;
        let key = format!("import/{tag}/{file}/{}", staged.sha256);
        self.submit_label(SubmitLabel {
            params: client_info(&index["objects"][stem]["labels"][tag.as_str()]["info"]),
            origin: Origin::Import,
            // An import cut short starts again and must not add a second revision.
            idempotency_key: Some(key),
            ..SubmitLabel::new(image, tag.clone(), staged, file, AUTHOR)
        })
        .await?;
        Ok(())
    }
}

/// The index of the earlier server; null when there is none.
fn read_index(path: &Path) -> Value {
    let Ok(bytes) = std::fs::read(path) else {
        return Value::Null;
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, "datastore_v2.json cannot be read; labels are imported without what clients sent with them");
        Value::Null
    })
}

/// What clients sent, without what the server of that time added.
fn client_info(info: &Value) -> Map {
    let info = info.as_object().cloned().unwrap_or_default();
    info.into_iter()
        .filter(|(key, _)| key != "ts" && key != "name")
        .collect()
}

/// Label files below `labels/<tag>/`: proposals first, then accepted labels, then other tags by name.
fn label_files(labels: &Path) -> Result<Vec<(Tag, PathBuf)>, ProjectError> {
    let mut files = Vec::new();
    if !labels.is_dir() {
        return Ok(files);
    }
    for folder in std::fs::read_dir(labels)? {
        let folder = folder?;
        let Some(tag) = folder
            .file_name()
            .to_str()
            .and_then(|name| Tag::parse(name).ok())
        else {
            continue;
        };
        if !folder.path().is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder.path())? {
            let path = file?.path();
            if path.is_file() {
                files.push((tag.clone(), path));
            }
        }
    }
    let rank = |tag: &Tag| (*tag != Tag::original(), *tag != Tag::accepted());
    files.sort_by(|a, b| (rank(&a.0), &a.0, &a.1).cmp(&(rank(&b.0), &b.0, &b.1)));
    Ok(files)
}
