//! Taking a MONAI Label studies folder into an existing project, as new images and new revisions.

use super::ids::ImageId;
use super::labels::Origin;
use super::monai::{Folder, FolderImage, FolderLabel};
use super::submit::SubmitLabel;
use super::{Project, ProjectError};
use crate::store::{StoreError, sha256_of_file};

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Images that are new in the project.
    pub images: usize,
    /// New revisions.
    pub labels: usize,
    /// Images and labels that were there already.
    pub unchanged: usize,
    /// Files that were passed over, and why.
    pub refused: Vec<(String, String)>,
}

impl Project {
    /// Takes images that are not in the project as uploads, and labels as new revisions unless they
    /// are the current ones. The folder is not changed. Each file is taken or refused by itself;
    /// repeating an import that was cut short goes on.
    ///
    /// # Errors
    /// [`ProjectError::Invalid`] when the folder holds nothing of the kind; when the store does not
    /// answer.
    pub async fn import(&self, folder: &std::path::Path) -> Result<Imported, ProjectError> {
        let root = folder.to_owned();
        let (folder, images, labels) = tokio::task::spawn_blocking(move || {
            let folder = Folder::open(&root);
            let (images, labels) = (folder.images()?, folder.labels()?);
            Ok::<_, ProjectError>((folder, images, labels))
        })
        .await
        .map_err(StoreError::from)??;
        if images.is_empty() && labels.is_empty() {
            return Err(ProjectError::Invalid(
                "this is no MONAI Label studies folder: it holds neither images (*.nii.gz, *.nii, *.nrrd) nor labels/TAG; nothing was imported".to_owned(),
            ));
        }
        let mut imported = Imported::default();
        for image in &images {
            let outcome = self.import_image(&folder, image).await;
            let file = image.path.display().to_string();
            count(outcome, file, &mut imported, |imported| {
                imported.images += 1
            })?;
        }
        for label in &labels {
            let outcome = self.import_label(&folder, label).await;
            let file = format!("{}/{}", label.tag, label.file);
            count(outcome, file, &mut imported, |imported| {
                imported.labels += 1
            })?;
        }
        self.keep_title(&folder).await?;
        Ok(imported)
    }

    /// Whether it is new.
    async fn import_image(
        &self,
        folder: &Folder,
        image: &FolderImage,
    ) -> Result<bool, ProjectError> {
        let id = ImageId::parse(&image.id)?;
        if self.image(&id).await?.is_some() {
            let path = image.path.clone();
            let sha256 = tokio::task::spawn_blocking(move || sha256_of_file(&path));
            if sha256.await.map_err(StoreError::from)?? == self.image_sha256(&id).await? {
                return Ok(false);
            }
            return Err(ProjectError::Invalid(format!(
                "the project has another image of the id {id}; rename one of them"
            )));
        }
        let staged = self.staging().copy_of(&image.path).await?;
        let info = folder.image_info(&image.id);
        let file_name = image.path.to_string_lossy();
        self.add_image(Some(id.clone()), staged, &file_name, info.clone())
            .await?;
        self.take_image_info(&id, info).await?;
        Ok(true)
    }

    /// Whether it is new.
    async fn import_label(
        &self,
        folder: &Folder,
        label: &FolderLabel,
    ) -> Result<bool, ProjectError> {
        let image = self.image_of(label).await?;
        let staged = self.staging().copy_of(&label.path).await?;
        let info = folder.label_info(image.as_str(), &label.tag);
        if self
            .has_label(&image, &label.tag, &staged.sha256, &info)
            .await?
        {
            return Ok(false);
        }
        let submit = SubmitLabel {
            params: info.clone(),
            origin: Origin::Import,
            ..SubmitLabel::new(image, label.tag.clone(), staged, &label.file, "import")
        };
        let taken = self.submit_label(submit).await?;
        self.keep_time(&taken, &info).await?;
        Ok(true)
    }
}

/// Counts one file; what is wrong with it is no reason to stop.
fn count(
    outcome: Result<bool, ProjectError>,
    file: String,
    imported: &mut Imported,
    add: impl FnOnce(&mut Imported),
) -> Result<(), ProjectError> {
    match outcome {
        Ok(true) => add(imported),
        Ok(false) => imported.unchanged += 1,
        Err(
            error @ (ProjectError::Invalid(_)
            | ProjectError::NotFound(_)
            | ProjectError::TooLarge(_)
            | ProjectError::Conflict(_)),
        ) => imported.refused.push((file, error.to_string())),
        Err(error) => return Err(error),
    }
    Ok(())
}
