//! Looking through the studies folder: which images are new, changed or gone.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::ids::{IMAGE_SUFFIXES, ImageId, SERIES_FOLDER, split_suffix};
use super::images::object;
use super::{Map, Project, ProjectError};
use crate::imaging::dicom;
use crate::store::StoreError;
use crate::store::rows::{self, ImageRecord, SeenImage};

/// Folders of the studies folder that never are a series.
const NO_SERIES: [&str; 3] = ["labels", "labelsTr", "labelsTs"];
/// Images written in one transaction, so that others are not kept waiting.
const BATCH: usize = 2000;

/// A file that was passed over, and why.
pub type Skipped = (String, String);

/// What a look through the studies folder found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rescan {
    /// New images, in the order of their names.
    pub added: Vec<ImageId>,
    /// Images whose file has another size or time than before.
    pub changed: Vec<ImageId>,
    /// Images whose file is gone; their labels are kept.
    pub vanished: Vec<ImageId>,
    /// Files that look like images but cannot be offered, and why.
    pub skipped: Vec<Skipped>,
    /// Files that are still being written; they are taken when they are quiet.
    pub unsettled: Vec<String>,
    /// Whether there are subfolders: what happens in them is not told, it has to be looked for.
    pub has_folders: bool,
}

impl Rescan {
    /// Whether the list of images is as before.
    pub fn is_unchanged(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.vanished.is_empty()
    }
}

impl Project {
    /// Asks the DICOMweb server, or looks through the studies folder (top level: `.nii.gz`, `.nii`, `.nrrd`, `.zip`, and folders that hold a DICOM
    /// series; neither hidden nor `.seg.nrrd`). Writes only when something changed. New files that were written to just now are
    /// waited for, and left out while they grow.
    ///
    /// # Errors
    /// When the folder or the store does not answer.
    pub async fn rescan(&self) -> Result<Rescan, ProjectError> {
        let _one_at_a_time = self.inner.scanning.lock().await;
        let before: HashMap<String, SeenImage> = self
            .store()
            .database
            .images_seen()
            .await?
            .into_iter()
            .map(|row| (row.id.clone(), row))
            .collect();

        let Found {
            files,
            skipped,
            has_folders,
        } = match self.dicomweb() {
            Some(pacs) => self.list_pacs(pacs, &before).await?,
            None => {
                let studies = self.studies().to_owned();
                tokio::task::spawn_blocking(move || list(&studies))
                    .await
                    .map_err(StoreError::from)??
            }
        };
        let mut found = Rescan {
            skipped,
            has_folders,
            ..Rescan::default()
        };
        let there: HashSet<&str> = files.iter().map(|file| file.id.as_str()).collect();
        for row in before.values() {
            if row.source == "study" && row.state == "present" && !there.contains(row.id.as_str()) {
                found.vanished.push(ImageId::parse(&row.id)?);
            }
        }
        found.vanished.sort();

        let other: Vec<&StudyFile> = files
            .iter()
            .filter(|file| file.is_news_to(before.get(file.id.as_str())))
            .collect();
        let (mut new, mut known) = (Vec::new(), Vec::new());
        let settled = match self.dicomweb() {
            Some(pacs) => {
                let is_first = before.is_empty();
                self.settled_on_pacs(pacs, other, is_first, &mut found.unsettled)
                    .await?
            }
            None => self.settled(other, &mut found).await,
        };
        for file in settled {
            match before.get(file.id.as_str()) {
                None => new.push(file),
                Some(row) => {
                    let list = if row.state == "present" {
                        &mut found.changed
                    } else {
                        &mut found.added
                    };
                    list.push(file.id.clone());
                    known.push(file);
                }
            }
        }
        found.added.extend(new.iter().map(|file| file.id.clone()));
        found.added.sort();
        self.write_images(&new, &known, &found.vanished).await?;
        // A series of a server is compared when it is fetched; until then its labels count as stale.
        if self.dicomweb().is_none() {
            for file in known {
                self.compare_with_labels(&file.id).await?;
            }
        }
        Ok(found)
    }

    /// The files that nobody writes to; a copy that is under way is told in `found`.
    async fn settled<'f>(
        &self,
        files: Vec<&'f StudyFile>,
        found: &mut Rescan,
    ) -> Vec<&'f StudyFile> {
        let settle = self.inner.settle;
        let now = SystemTime::now();
        let is_young = |file: &StudyFile| {
            // A time in the future is one of another clock, and says nothing.
            now.duration_since(file.touched).unwrap_or_default() < settle
        };
        if !files.iter().any(|file| is_young(file)) {
            return files;
        }
        tokio::time::sleep(settle).await;
        let mut settled = Vec::with_capacity(files.len());
        for file in files {
            let same = || {
                let path = self.studies().join(&file.file);
                size_and_time(&path).ok() == Some((file.size_bytes, file.mtime_ms))
            };
            if !is_young(file) || same() {
                settled.push(file);
            } else {
                found.unsettled.push(file.file.clone());
            }
        }
        settled
    }

    async fn write_images(
        &self,
        new: &[&StudyFile],
        known: &[&StudyFile],
        vanished: &[ImageId],
    ) -> Result<(), ProjectError> {
        for batch in new.chunks(BATCH) {
            let list: Vec<_> = batch.iter().map(|file| file.values()).collect();
            let mut tx = self.store().database.begin().await?;
            rows::add_study_images(&mut tx, &json!(list).to_string()).await?;
            tx.commit().await.map_err(StoreError::from)?;
        }
        for batch in known.chunks(BATCH) {
            let mut tx = self.store().database.begin().await?;
            for file in batch {
                let row = rows::image(&mut tx, file.id.as_str()).await?;
                rows::put_image(&mut tx, &file.record(row)?).await?;
            }
            tx.commit().await.map_err(StoreError::from)?;
        }
        for batch in vanished.chunks(BATCH) {
            let mut tx = self.store().database.begin().await?;
            for id in batch {
                rows::set_image_state(&mut tx, id.as_str(), "missing").await?;
            }
            tx.commit().await.map_err(StoreError::from)?;
        }
        Ok(())
    }

    /// Finds out whether the labels of a file that changed still belong to its content.
    async fn compare_with_labels(&self, id: &ImageId) -> Result<(), ProjectError> {
        let database = &self.store().database;
        let Some(row) = database.image(id.as_str()).await? else {
            return Ok(());
        };
        if row.sha256.is_none() && database.has_labels(id.as_str()).await? {
            match self.read_facts(&row).await {
                Ok(_) => {}
                // Its labels count as stale until it can be read.
                // The reason may name a file; it is told to who asks for the image.
                Err(ProjectError::Invalid(_)) => {
                    tracing::warn!("an image with labels was changed and cannot be read any more");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A candidate of the studies folder, or of the DICOMweb server.
pub(super) struct StudyFile {
    pub id: ImageId,
    pub ext: &'static str,
    /// Name below the folder; of a series on a server, study and series.
    pub file: String,
    /// Size; of a series on a server, the number of its instances.
    pub size_bytes: i64,
    pub mtime_ms: i64,
    /// The last time that anything about it changed.
    pub touched: SystemTime,
    /// What is known besides.
    pub info: Map,
}

/// What there is.
#[derive(Default)]
pub(super) struct Found {
    /// Images in the order of their names.
    pub files: Vec<StudyFile>,
    /// What was passed over, with the reason.
    pub skipped: Vec<Skipped>,
    /// Whether there are subfolders that may become images.
    pub has_folders: bool,
}

impl StudyFile {
    fn is_that_of(&self, file: &str, size_bytes: i64, mtime_ms: i64) -> bool {
        self.file == file && self.size_bytes == size_bytes && self.mtime_ms == mtime_ms
    }

    fn is_news_to(&self, row: Option<&SeenImage>) -> bool {
        let Some(row) = row else { return true };
        if row.source == "blob" && row.state == "present" {
            // An upload of the same name stands in front of the file.
            return false;
        }
        let same = self.is_that_of(&row.file, row.size_bytes, row.mtime_ms);
        row.source != "study" || !same || row.state == "missing"
    }

    /// For [`rows::add_study_images`].
    fn values(&self) -> serde_json::Value {
        let info = json!(self.info).to_string();
        json!([
            self.id,
            self.ext,
            self.file,
            self.size_bytes,
            self.mtime_ms,
            info
        ])
    }

    /// The row of this file; what clients noted on the image stays.
    fn record(&self, before: Option<ImageRecord>) -> Result<ImageRecord, ProjectError> {
        let before = before.filter(|row| row.state != "deleted");
        let same = before.as_ref().filter(|row| {
            row.source == "study" && self.is_that_of(&row.file, row.size_bytes, row.mtime_ms)
        });
        let info = match &before {
            None => json!(self.info).to_string(),
            Some(row) if same.is_some() => row.info.clone(),
            Some(row) => {
                let mut info = object(&row.info)?;
                // That of the file as it was.
                info.shift_remove("ts");
                info.extend(self.info.clone());
                json!(info).to_string()
            }
        };
        Ok(ImageRecord {
            id: self.id.to_string(),
            ext: self.ext.to_owned(),
            source: "study".to_owned(),
            file: self.file.clone(),
            state: "present".to_owned(),
            size_bytes: self.size_bytes,
            mtime_ms: self.mtime_ms,
            sha256: same.and_then(|row| row.sha256.clone()),
            geometry: same.and_then(|row| row.geometry.clone()),
            info,
        })
    }
}

fn list(studies: &Path) -> Result<Found, ProjectError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(studies)? {
        names.push(entry?.file_name());
    }
    names.sort();
    let (mut files, mut skipped) = (Vec::<StudyFile>::new(), Vec::new());
    let (mut taken, mut has_folders) = (HashSet::new(), false);
    for name in names {
        let file = name.to_string_lossy().into_owned();
        let path = studies.join(&name);
        let (stem, ext) = if path.is_dir() {
            if file.starts_with('.') || NO_SERIES.contains(&file.as_str()) {
                continue;
            }
            has_folders = true;
            if !dicom::is_series(&path) {
                continue;
            }
            (file.as_str(), SERIES_FOLDER)
        } else {
            match split_suffix(&file, &IMAGE_SUFFIXES) {
                Some(split) => split,
                None => continue,
            }
        };
        if file.starts_with('.') || file.to_ascii_lowercase().ends_with(".seg.nrrd") {
            continue;
        }
        let reason = match (name.to_str(), ImageId::parse(stem), Seen::of(&path)) {
            (None, ..) => "its name is not UTF-8".to_owned(),
            (_, Err(error), _) => error.to_string(),
            (.., Err(error)) => format!("it cannot be read: {error}"),
            (.., Ok(None)) => continue,
            (_, Ok(id), _) if !taken.insert(id.clone()) => {
                format!("another file already has the id {id}")
            }
            (_, Ok(id), Ok(Some(seen))) => {
                files.push(StudyFile {
                    id,
                    ext,
                    file,
                    size_bytes: seen.size_bytes,
                    mtime_ms: seen.mtime_ms,
                    touched: seen.touched,
                    info: Map::new(),
                });
                continue;
            }
        };
        skipped.push((file, reason));
    }
    Ok(Found {
        files,
        skipped,
        has_folders,
    })
}

/// The time of the inode where there is one: a copy may set the other one back.
fn touched(metadata: &std::fs::Metadata) -> std::io::Result<SystemTime> {
    let modified = metadata.modified()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
        let nanos = u64::try_from(metadata.ctime_nsec()).unwrap_or_default();
        let changed = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanos);
        Ok(modified.max(changed))
    }
    #[cfg(not(unix))]
    Ok(modified)
}

/// Size and times of a file, or of all files of a folder together.
struct Seen {
    size_bytes: i64,
    mtime_ms: i64,
    touched: SystemTime,
}

impl Seen {
    /// None for what is neither file nor folder.
    fn of(path: &Path) -> std::io::Result<Option<Self>> {
        let metadata = std::fs::metadata(path)?;
        if metadata.is_file() {
            return Self::of_file(&metadata).map(Some);
        }
        if !metadata.is_dir() {
            return Ok(None);
        }
        let mut all = Self::of_file(&metadata)?;
        all.size_bytes = 0;
        for file in dicom::files_below(path)? {
            let one = Self::of_file(&std::fs::metadata(file)?)?;
            all.size_bytes = all.size_bytes.saturating_add(one.size_bytes);
            all.mtime_ms = all.mtime_ms.max(one.mtime_ms);
            all.touched = all.touched.max(one.touched);
        }
        Ok(Some(all))
    }

    fn of_file(metadata: &std::fs::Metadata) -> std::io::Result<Self> {
        let mtime = metadata
            .modified()?
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            size_bytes: i64::try_from(metadata.len()).unwrap_or(i64::MAX),
            mtime_ms: i64::try_from(mtime.as_millis()).unwrap_or(i64::MAX),
            touched: touched(metadata)?,
        })
    }
}

/// Size in bytes, and time of the last change in milliseconds since 1970-01-01 UTC.
pub(super) fn size_and_time(path: &Path) -> std::io::Result<(i64, i64)> {
    let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let seen = Seen::of(path)?.ok_or_else(gone)?;
    Ok((seen.size_bytes, seen.mtime_ms))
}
