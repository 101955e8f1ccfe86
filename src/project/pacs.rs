//! Images that lie on a DICOMweb server: the list is that of the server, and the files are copies that are made when
//! somebody needs them. This file, with [`Project::image_file`], is the only place that tells them from files of a folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::ids::{ImageId, SERIES_FOLDER};
use super::rescan::{Found, StudyFile};
use super::{ImageRow, Map, Project, ProjectError};
use crate::dicomweb::{self, Credentials, Held, Pacs, SeriesKey, Uid, WebError};
use crate::store::rows::SeenImage;
use crate::store::{Store, StoreError, hex};

/// Folder of the copies below the data folder.
const COPIES: &str = "dicomweb";
/// The setting that holds what is kept of the server.
pub(super) const SETTING: &str = "dicomweb";
/// Characters of the name that a patient gets.
const PSEUDONYM_CHARS: usize = 12;

/// Where the images are.
#[derive(Debug, Clone)]
pub enum Studies {
    /// In a folder.
    Folder(PathBuf),
    /// On a DICOMweb server.
    DicomWeb {
        /// Its address.
        url: String,
        /// What is taken from it.
        settings: dicomweb::Settings,
    },
}

impl From<PathBuf> for Studies {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

/// The studies of an open project.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The folder with the images, or with the copies of them.
    pub folder: PathBuf,
    /// The server, where they are on one.
    pub pacs: Option<Pacs>,
    /// As it is kept in the store: the path, or the address.
    pub text: String,
}

impl Place {
    /// # Errors
    /// [`ProjectError::Invalid`] when there is no such folder, or the address or the credentials cannot be.
    pub fn open(studies: &Studies, data: &Path) -> Result<Self, ProjectError> {
        match studies {
            Studies::Folder(folder) => {
                let folder = std::fs::canonicalize(folder).map_err(|error| {
                    ProjectError::Invalid(format!(
                        "the studies folder {} cannot be opened: {error}",
                        folder.display()
                    ))
                })?;
                Ok(Self::of_folder(folder))
            }
            Studies::DicomWeb { url, settings } => {
                let folder = data.join(COPIES);
                let credentials = Credentials::of_process()?;
                Ok(Self {
                    pacs: Some(Pacs::new(url, credentials, settings, &folder)?),
                    folder,
                    text: url.clone(),
                })
            }
        }
    }

    /// As the store describes it.
    ///
    /// # Errors
    /// As [`Place::open`]; when the store does not answer.
    pub async fn of(store: &Store, text: String) -> Result<Self, ProjectError> {
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Ok(Self::of_folder(PathBuf::from(text)));
        }
        let settings = match store.database.setting(SETTING).await? {
            Some(kept) => serde_json::from_str(&kept).map_err(StoreError::from)?,
            None => dicomweb::Settings::default(),
        };
        Self::open(
            &Studies::DicomWeb {
                url: text,
                settings,
            },
            store.dir(),
        )
    }

    fn of_folder(folder: PathBuf) -> Self {
        Self {
            text: folder.to_string_lossy().into_owned(),
            folder,
            pacs: None,
        }
    }
}

/// The bytes of an image on this machine; they stay there as long as this is held.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    /// Keeps the copy of a series of a server.
    _copy: Option<Held>,
}

impl ImageFile {
    /// The file, or the folder of a DICOM series; read only.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Project {
    /// The DICOMweb server with the images, if they are on one.
    pub fn dicomweb(&self) -> Option<&Pacs> {
        self.inner.place.pacs.as_ref()
    }

    /// The bytes of an image, for whoever reads them: from where they lie, or fetched from the server they are on.
    ///
    /// # Errors
    /// [`ProjectError::Unavailable`] when the server does not answer, [`ProjectError::NotFound`] when the series is gone
    /// there, [`ProjectError::Invalid`] when what it sends is refused.
    pub async fn image_file(&self, image: &ImageRow) -> Result<ImageFile, ProjectError> {
        let copy = match (self.dicomweb(), &image.series) {
            (Some(pacs), Some(series)) => {
                if !image.path.exists() {
                    self.staging().check_space()?;
                }
                Some(pacs.series(series).await?)
            }
            _ => None,
        };
        Ok(ImageFile {
            path: image.path.clone(),
            _copy: copy,
        })
    }

    /// As [`Project::image_sha256`], but none for a series of a server that was not fetched yet.
    ///
    /// # Errors
    /// As [`Project::image_sha256`].
    pub async fn sha256_at_hand(&self, id: &ImageId) -> Result<Option<String>, ProjectError> {
        match self.image(id).await? {
            Some(image) if image.series.is_some() => Ok(image.sha256),
            _ => self.image_sha256(id).await.map(Some),
        }
    }

    /// The bytes of every image that has an accepted label, for a round, which reads them again and again.
    ///
    /// # Errors
    /// As [`Project::image_file`]. Images that are gone or refused are left to their reader.
    pub async fn labelled_image_files(&self) -> Result<Vec<ImageFile>, ProjectError> {
        let mut files = Vec::new();
        if self.dicomweb().is_none() {
            return Ok(files);
        }
        for label in self.accepted_labels().await? {
            let Some(image) = self.image(&label.image).await? else {
                continue;
            };
            match self.image_file(&image).await {
                Ok(file) => files.push(file),
                Err(ProjectError::NotFound(_) | ProjectError::Invalid(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    /// What the server has. A series is as old as its first sight, because servers do not tell.
    pub(super) async fn list_pacs(
        &self,
        pacs: &Pacs,
        before: &HashMap<String, SeenImage>,
    ) -> Result<Found, ProjectError> {
        let listing = pacs.list().await?;
        let mut found = Found::default();
        if listing.unusable > 0 {
            let reason = format!(
                "{} series of the DICOMweb server have no usable Study and Series Instance UID",
                listing.unusable
            );
            found.skipped.push((pacs.host().to_owned(), reason));
        }
        let salt = self.salt().await?;
        for series in listing.series {
            let SeriesKey {
                study,
                series: uid,
                instances,
            } = &series.key;
            let file = file_of(&series.key);
            let size_bytes = i64::from(*instances);
            let same = before
                .get(uid.as_str())
                .filter(|row| row.file == file && row.size_bytes == size_bytes);
            let mut info = Map::from_iter([
                ("SeriesInstanceUID".to_owned(), json!(uid.as_str())),
                ("StudyInstanceUID".to_owned(), json!(study.as_str())),
                ("Modality".to_owned(), json!(series.modality)),
            ]);
            if let Some(patient) = &series.patient_id {
                // Images of one patient have to be in one part of the split; who it is, nobody has to know.
                let hash = hex(&Sha256::digest(format!("{salt} {patient}")));
                let name = hash.get(..PSEUDONYM_CHARS).unwrap_or_default();
                info.insert("patient".to_owned(), json!(name));
            }
            found.files.push(StudyFile {
                id: ImageId::parse(uid.as_str())?,
                ext: SERIES_FOLDER,
                file,
                size_bytes,
                mtime_ms: same.map_or_else(|| self.clock().now_ms(), |row| row.mtime_ms),
                touched: UNIX_EPOCH,
                info,
            });
        }
        Ok(found)
    }

    /// Of new and changed series those that had as many instances a moment later, so that none is taken while it is sent to
    /// the server. At the first look there is nothing to compare with, and everything is taken.
    pub(super) async fn settled_on_pacs<'f>(
        &self,
        pacs: &Pacs,
        files: Vec<&'f StudyFile>,
        is_first: bool,
        unsettled: &mut Vec<String>,
    ) -> Result<Vec<&'f StudyFile>, ProjectError> {
        if files.is_empty() || is_first {
            return Ok(files);
        }
        tokio::time::sleep(self.inner.settle).await;
        let again = pacs.list().await?;
        let again: HashMap<String, u32> = again
            .series
            .into_iter()
            .map(|series| (file_of(&series.key), series.key.instances))
            .collect();
        let mut settled = Vec::with_capacity(files.len());
        for file in files {
            match again.get(&file.file) {
                Some(instances) if i64::from(*instances) == file.size_bytes => settled.push(file),
                _ => unsettled.push(file.id.to_string()),
            }
        }
        Ok(settled)
    }

    /// Keeps the list of images up to date; never returns.
    pub(super) async fn follow_pacs(&self, poll: Duration) {
        let mut well = true;
        loop {
            tokio::time::sleep(poll).await;
            match self.rescan().await {
                Ok(found) => {
                    if !well {
                        tracing::info!("the DICOMweb server answers again");
                    }
                    well = true;
                    if !found.is_unchanged() {
                        tracing::info!(
                            "DICOMweb server: {} new series, {} changed, {} gone",
                            found.added.len(),
                            found.changed.len(),
                            found.vanished.len()
                        );
                    }
                }
                Err(error) => {
                    well = false;
                    tracing::warn!("the list of series is as it was before: {error}");
                }
            }
        }
    }

    /// A text that makes hashes of patient ids mean nothing elsewhere.
    async fn salt(&self) -> Result<String, ProjectError> {
        let key = "patient_salt";
        let database = &self.store().database;
        if let Some(salt) = database.setting(key).await? {
            return Ok(salt);
        }
        let salt = uuid::Uuid::new_v4().to_string();
        let mut tx = database.begin().await?;
        crate::store::rows::put_setting(&mut tx, key, &salt).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(salt)
    }
}

/// How the row of an image names its series.
fn file_of(key: &SeriesKey) -> String {
    format!("{}/{}", key.study, key.series)
}

/// The series that a row names, and how many instances it had.
pub(super) fn series_of(file: &str, size_bytes: i64) -> Option<SeriesKey> {
    let (study, series) = file.split_once('/')?;
    Some(SeriesKey {
        study: Uid::parse(study)?,
        series: Uid::parse(series)?,
        instances: u32::try_from(size_bytes).ok()?,
    })
}

impl From<WebError> for ProjectError {
    fn from(error: WebError) -> Self {
        let text = error.to_string();
        match error {
            WebError::Setup(_) | WebError::Answer(_) | WebError::Path(_) => Self::Invalid(text),
            WebError::NotFound => Self::NotFound(text),
            WebError::Disk(error) => match StoreError::from(error) {
                StoreError::NoSpace(_) => Self::NoSpace(format!(
                    "{text}; free space on the disk of the data folder, or give a smaller --cache-gib"
                )),
                _ => Self::Internal(text),
            },
            WebError::Unreachable(_)
            | WebError::Certificate(_)
            | WebError::Silent(_)
            | WebError::Cut
            | WebError::Login(_)
            | WebError::Busy { .. }
            | WebError::Refused(_)
            | WebError::Redirect(_) => Self::Unavailable(text),
        }
    }
}
