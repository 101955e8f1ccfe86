//! Labels in one form, whatever they were sent as: in the values of the schema, on the grid of the image, as NRRD.

use super::labels::LabelRow;
use super::{Project, ProjectError, Staged};
use crate::imaging::{self, Budget, LabelFormat, Volume};
use crate::store::StoreError;

impl Project {
    /// The label as a compressed NRRD in a file that is removed when it is dropped.
    ///
    /// # Errors
    /// When the stored label cannot be read, or the disk is full.
    pub async fn label_map(&self, label: &LabelRow) -> Result<Staged, ProjectError> {
        self.staging().check_space()?;
        let (path, staging) = (
            self.training_label_path(label),
            self.inner.store.staging.clone(),
        );
        self.decode(move || {
            // Written by this program: no file from outside is opened.
            let file = imaging::read_label(&path, &Budget::default())
                .map_err(|error| StoreError::foreign(&error))?;
            let layer = file.layers.into_iter().next().unwrap_or_default();
            let volume = Volume::new(file.geometry, layer)
                .map_err(|error| ProjectError::Internal(error.to_string()))?;
            let write = |path: &std::path::Path| {
                imaging::write_label(path, &volume, &[], LabelFormat::NrrdGz)
                    .map_err(|error| StoreError::foreign(&error))
            };
            Ok(staging.write_with(write)?)
        })
        .await
    }
}
