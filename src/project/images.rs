//! The images: files of the studies folder, seen by scanning it, and uploads.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::ids::{FileName, IMAGE_SUFFIXES, ImageId, SERIES_FOLDER, split_suffix};
use super::labels::tombstone;
use super::pacs::series_of;
use super::rescan::size_and_time;
use super::{Map, Project, ProjectError};
use crate::dicomweb::SeriesKey;
use crate::imaging::{self, Geometry, LabelFormat};
use crate::store::rows::{self, ImageFacts, ImageRecord};
use crate::store::{Staged, StoreError, sha256_of_file};

/// What clients get of a DICOM series.
const SERIES_AS: LabelFormat = LabelFormat::NiftiGz;

/// One image of the project.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRow {
    /// Its id: the file name without suffix, or what the uploader chose.
    pub id: ImageId,
    /// Suffix with its dot, as `.nii.gz`; that of the file for clients where the image is a DICOM series.
    pub ext: String,
    /// File name for clients, unique in the project: id and suffix.
    pub name: String,
    /// Where the bytes lie, a file or the folder of a DICOM series; read only. The file of an upload has no suffix. Readers
    /// go through [`Project::image_file`], because a series of a DICOMweb server may not be there yet.
    pub path: PathBuf,
    /// Whether it is a DICOM series; clients get it as [`Project::client_file`].
    pub is_series: bool,
    /// Hash of the bytes, where it is known yet; see [`Project::image_sha256`].
    pub sha256: Option<String>,
    /// Last change of the file, or time of the upload, in seconds since 1970-01-01 UTC.
    pub ts: i64,
    /// Size of the file.
    pub size_bytes: u64,
    /// Which series it is on the DICOMweb server, where it is on one; [`Project::image_file`] fetches it.
    pub(super) series: Option<SeriesKey>,
    /// Whether it was uploaded; otherwise it is a file of the studies folder.
    pub uploaded: bool,
    /// What clients see: `ts`, `name`, and whatever was merged in.
    pub info: Map,
}

/// Which image, and of which size and time: enough to choose among all images, and cheap to read of all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMark {
    /// As in [`ImageRow`], likewise below.
    pub id: ImageId,
    /// Last change of the file, or time of the upload, in seconds since 1970-01-01 UTC.
    pub ts: i64,
    /// Size of the file.
    pub size_bytes: u64,
}

impl From<&ImageRow> for ImageMark {
    fn from(image: &ImageRow) -> Self {
        Self {
            id: image.id.clone(),
            ts: image.ts,
            size_bytes: image.size_bytes,
        }
    }
}

/// What reading an image once tells, for submits.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub sha256: String,
    pub geometry: Geometry,
}

impl Project {
    /// The images there are, in order of first sight.
    ///
    /// # Errors
    /// When the store does not answer; likewise below.
    pub async fn images(&self) -> Result<Vec<ImageRow>, ProjectError> {
        let rows = self.store().database.images().await?;
        rows.into_iter()
            .filter(|row| row.state == "present")
            .map(|row| self.image_row(row))
            .collect()
    }

    /// As [`Project::images`], without what only answers about single images need.
    pub async fn image_marks(&self) -> Result<Vec<ImageMark>, ProjectError> {
        let rows = self.store().database.image_marks().await?;
        rows.into_iter()
            .map(|(id, mtime_ms, size_bytes)| {
                Ok(ImageMark {
                    id: ImageId::parse(&id)?,
                    ts: mtime_ms.div_euclid(1000),
                    size_bytes: u64::try_from(size_bytes).unwrap_or_default(),
                })
            })
            .collect()
    }

    /// The image; none when it is unknown, deleted, or its file is gone.
    pub async fn image(&self, id: &ImageId) -> Result<Option<ImageRow>, ProjectError> {
        let row = self.store().database.image(id.as_str()).await?;
        row.filter(|row| row.state == "present")
            .map(|row| self.image_row(row))
            .transpose()
    }

    /// SHA-256 of the image's bytes; computed once for each size and time of the file.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such image.
    pub async fn image_sha256(&self, id: &ImageId) -> Result<String, ProjectError> {
        Ok(self.image_facts(id).await?.sha256)
    }

    /// Takes an uploaded image, which must be readable as a scan. The id follows from `file_name`
    /// when none is given. An image of that id is replaced and keeps its labels: each of them names
    /// the hash of the image it was drawn on.
    ///
    /// # Errors
    /// [`ProjectError::Invalid`] when the file is no scan or its name has no known suffix.
    pub async fn add_image(
        &self,
        id: Option<ImageId>,
        staged: Staged,
        file_name: &str,
        info: Map,
    ) -> Result<ImageId, ProjectError> {
        self.staging().check_space()?;
        let file_name = FileName::from_client(file_name)?;
        let (stem, ext) = split_suffix(file_name.as_str(), &IMAGE_SUFFIXES).ok_or_else(|| {
            ProjectError::Invalid(format!(
                "image file {:?}: the name must end with {}",
                file_name.as_str(),
                IMAGE_SUFFIXES.join(", ")
            ))
        })?;
        let id = id.map_or_else(|| ImageId::parse(stem), Ok)?;
        let (path, budget) = (staged.path.clone(), self.limits.budget);
        let geometry = self.decode(move || read_geometry(&path, &budget)).await?;
        self.store().blobs.put(&staged).await?;

        let mut tx = self.store().database.begin().await?;
        self.check_blob(&staged.sha256)?;
        let before = rows::image(&mut tx, id.as_str())
            .await?
            .filter(|row| row.state != "deleted");
        let mut merged = before.map_or_else(|| Ok(Map::new()), |row| object(&row.info))?;
        merged.shift_remove("ts");
        merged.extend(
            info.into_iter()
                .filter(|(key, _)| key != "ts" && key != "name"),
        );
        let row = ImageRecord {
            id: id.to_string(),
            ext: ext.to_owned(),
            source: "blob".to_owned(),
            file: staged.sha256.clone(),
            state: "present".to_owned(),
            size_bytes: i64::try_from(staged.size_bytes).unwrap_or(i64::MAX),
            mtime_ms: self.clock().now_ms(),
            sha256: Some(staged.sha256.clone()),
            geometry: Some(geometry_json(&geometry)),
            info: json!(merged).to_string(),
        };
        rows::put_image(&mut tx, &row).await?;
        let detail = json!({"sha256": staged.sha256, "size_bytes": staged.size_bytes});
        rows::append_audit(&mut tx, self.audit_entry("add-image", id.as_str(), detail)).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(id)
    }

    /// Takes the image and its labels out of the project. The file in the studies folder is not
    /// touched and not offered again until it changes; label revisions are kept below tombstones.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such image.
    pub async fn delete_image(&self, id: &ImageId) -> Result<(), ProjectError> {
        let mut tx = self.store().database.begin().await?;
        let row = rows::image(&mut tx, id.as_str()).await?;
        row.filter(|row| row.state != "deleted")
            .ok_or_else(|| unknown(id))?;
        for label in rows::current_labels_of(&mut tx, id.as_str()).await? {
            rows::add_label(
                &mut tx,
                &tombstone(&label, &self.actor, self.clock().now_ms()),
            )
            .await?;
        }
        rows::set_image_state(&mut tx, id.as_str(), "deleted").await?;
        rows::append_audit(
            &mut tx,
            self.audit_entry("delete-image", id.as_str(), json!({})),
        )
        .await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }

    /// Merges into what clients see of the image; `ts` and `name` are those of its file.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such image.
    pub async fn set_image_info(&self, id: &ImageId, info: Map) -> Result<(), ProjectError> {
        let info = info
            .into_iter()
            .filter(|(key, _)| key != "ts" && key != "name")
            .collect();
        self.take_image_info(id, info).await
    }

    /// Merges what an earlier server kept of the image, its `ts` included.
    pub(super) async fn take_image_info(
        &self,
        id: &ImageId,
        info: Map,
    ) -> Result<(), ProjectError> {
        let mut tx = self.store().database.begin().await?;
        self.merge_image_info(&mut tx, id, info).await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }

    pub(crate) async fn merge_image_info(
        &self,
        tx: &mut rows::WriteTransaction,
        id: &ImageId,
        info: Map,
    ) -> Result<(), ProjectError> {
        let row = rows::image(tx, id.as_str())
            .await?
            .filter(|row| row.state != "deleted")
            .ok_or_else(|| unknown(id))?;
        let mut merged = object(&row.info)?;
        merged.extend(info);
        Ok(rows::set_image_info(tx, id.as_str(), &json!(merged).to_string()).await?)
    }

    /// Hash and grid of the image, read from the file once for each of its sizes and times.
    pub(super) async fn image_facts(&self, id: &ImageId) -> Result<Facts, ProjectError> {
        // A file that changed since the last look is looked at again, once.
        for _ in 0..2 {
            let row = self.store().database.image(id.as_str()).await?;
            let row = row
                .filter(|row| row.state == "present")
                .ok_or_else(|| unknown(id))?;
            if let (Some(sha256), Some(geometry)) = (&row.sha256, &row.geometry) {
                return Ok(Facts {
                    sha256: sha256.clone(),
                    geometry: parse_geometry(geometry)?,
                });
            }
            if let Some(facts) = self.read_facts(&row).await? {
                return Ok(facts);
            }
            self.rescan().await?;
        }
        Err(ProjectError::Unavailable(format!(
            "image {id} is being written; repeat when its file is complete"
        )))
    }

    /// Reads the image and keeps what it tells; none when its file is not that of the row any more.
    pub(super) async fn read_facts(
        &self,
        row: &ImageRecord,
    ) -> Result<Option<Facts>, ProjectError> {
        let image = self.image_row(row.clone())?;
        let file = self.image_file(&image).await?;
        let budget = self.limits.budget;
        // The copy of a series is named by what it is a copy of.
        let in_folder = row.source == "study" && image.series.is_none();
        let expected = in_folder.then_some((row.size_bytes, row.mtime_ms));
        let unchanged = move |path: &Path| {
            expected.is_none_or(|expected| size_and_time(path).ok() == Some(expected))
        };
        let facts = self
            .decode(move || {
                let path = file.path();
                if !unchanged(path) {
                    return Ok(None);
                }
                let facts = Facts {
                    geometry: read_geometry(path, &budget)?,
                    sha256: match path.is_dir() || image.series.is_some() {
                        true => imaging::dicom::content_sha256(path, &budget).map_err(refused)?,
                        false => sha256_of_file(path)?,
                    },
                };
                Ok(unchanged(path).then_some(facts))
            })
            .await?;
        // What can only be looked at is read again each time.
        if let Some(facts) = &facts
            && self.read_only().is_none()
        {
            let geometry = geometry_json(&facts.geometry);
            let kept = ImageFacts {
                sha256: &facts.sha256,
                geometry: &geometry,
            };
            self.store().database.set_image_facts(row, kept).await?;
        }
        Ok(facts)
    }

    /// The file of an image that clients get, and its SHA-256: the image's own, or a DICOM series as int16 NIfTI, which
    /// is made at the first call and kept until it was not asked for during a day.
    ///
    /// # Errors
    /// A series that cannot be read.
    pub async fn client_file(&self, image: &ImageRow) -> Result<(PathBuf, String), ProjectError> {
        let sha256 = self.image_sha256(&image.id).await?;
        if !image.is_series {
            return Ok((image.path.clone(), sha256));
        }
        let file = self
            .scratch_dir()
            .join(format!("series-{sha256}{}", SERIES_AS.suffix()));
        let (path, budget) = (file.clone(), self.limits.budget);
        if path.is_file() {
            // Kept from the sweep of scratch files.
            let kept = std::fs::File::options().append(true).open(&path);
            if kept
                .and_then(|kept| kept.set_modified(std::time::SystemTime::now()))
                .is_ok()
            {
                let sha256 = self.decode(move || Ok(sha256_of_file(&path)?)).await?;
                return Ok((file, sha256));
            }
        }
        let source = self.image_file(image).await?;
        let sha256 = self
            .decode(move || {
                std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
                let scan = imaging::read_scan(source.path(), &budget).map_err(refused)?;
                imaging::write_scan(&path, &scan.volume, SERIES_AS).map_err(refused)?;
                Ok(sha256_of_file(&path)?)
            })
            .await?;
        Ok((file, sha256))
    }

    /// Runs blocking work that holds a whole volume, a few at a time.
    pub(super) async fn decode<T, F>(&self, work: F) -> Result<T, ProjectError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ProjectError> + Send + 'static,
    {
        let permit = self.inner.decoders.clone().acquire_owned().await;
        let permit = permit.map_err(|_| {
            ProjectError::Unavailable("the server is closing; repeat later".to_owned())
        })?;
        // The permit moves along: the work goes on when the client that asked for it goes away.
        tokio::task::spawn_blocking(move || {
            let outcome = work();
            drop(permit);
            outcome
        })
        .await
        .map_err(StoreError::from)?
    }

    /// Makes sure, under the write lock, that no sweep took the blob since it was put.
    pub(super) fn check_blob(&self, sha256: &str) -> Result<(), ProjectError> {
        if self.store().blobs.exists(sha256) {
            return Ok(());
        }
        Err(ProjectError::Unavailable(
            "a stored file was swept before it was committed; nothing was changed, repeat"
                .to_owned(),
        ))
    }

    fn image_path(&self, row: &ImageRecord, series: Option<&SeriesKey>) -> PathBuf {
        match (self.dicomweb(), series) {
            (Some(pacs), Some(series)) => pacs.copy_path(series),
            _ if row.source == "blob" => self.store().blobs.path(&row.file),
            _ => self.studies().join(&row.file),
        }
    }

    fn image_row(&self, row: ImageRecord) -> Result<ImageRow, ProjectError> {
        let is_series = matches!(row.ext.as_str(), SERIES_FOLDER | ".zip");
        let ext = if is_series {
            SERIES_AS.suffix().to_owned()
        } else {
            row.ext.clone()
        };
        let name = format!("{}{ext}", row.id);
        let ts = row.mtime_ms.div_euclid(1000);
        let mut info = Map::from_iter([
            ("ts".to_owned(), json!(ts)),
            ("name".to_owned(), json!(name)),
        ]);
        info.extend(
            object(&row.info)?
                .into_iter()
                .filter(|(key, value)| key != "name" && (key != "ts" || value.is_i64())),
        );
        let on_server = self.dicomweb().is_some() && row.source == "study";
        let series = on_server
            .then(|| series_of(&row.file, row.size_bytes))
            .flatten();
        Ok(ImageRow {
            path: self.image_path(&row, series.as_ref()),
            series,
            id: ImageId::parse(&row.id)?,
            size_bytes: u64::try_from(row.size_bytes).unwrap_or_default(),
            uploaded: row.source == "blob",
            ext,
            is_series,
            sha256: row.sha256,
            name,
            ts,
            info,
        })
    }
}

fn refused(error: imaging::ImagingError) -> ProjectError {
    ProjectError::Invalid(format!("the image is refused: {error}"))
}

fn read_geometry(path: &Path, budget: &imaging::Budget) -> Result<Geometry, ProjectError> {
    let scan = imaging::read_scan(path, budget).map_err(refused)?;
    Ok(scan.volume.geometry)
}

pub(super) fn geometry_json(geometry: &Geometry) -> String {
    json!([
        geometry.shape(),
        geometry.origin_lps_mm(),
        geometry.steps_lps_mm()
    ])
    .to_string()
}

fn parse_geometry(text: &str) -> Result<Geometry, ProjectError> {
    let (shape, origin_lps_mm, steps_lps_mm) =
        serde_json::from_str(text).map_err(StoreError::from)?;
    Geometry::new(shape, origin_lps_mm, steps_lps_mm)
        .map_err(|error| ProjectError::Internal(format!("a stored geometry is damaged: {error}")))
}

/// A JSON object of a row.
pub(super) fn object(text: &str) -> Result<Map, ProjectError> {
    Ok(serde_json::from_str(text).map_err(StoreError::from)?)
}

pub(super) fn unknown(id: &ImageId) -> ProjectError {
    ProjectError::NotFound(format!(
        "there is no image {id} in this project; upload it, or put it into the studies folder"
    ))
}
