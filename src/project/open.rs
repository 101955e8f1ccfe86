//! Opening a project, and what belongs to the project as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};

use super::pacs::{self, Place};
use super::{
    DECODERS, Inner, Jobs, Limits, OpenProject, Project, ProjectError, SETTLE, Staging, Studies,
};
use crate::clock::{Clock, SystemClock};
use crate::model::LabelSchema;
use crate::store::rows::{self, AuditEntry};
use crate::store::{Depth, Store, StoreError};

/// What a project is besides its rows and files.
struct About {
    place: Place,
    schema: LabelSchema,
    seed: u64,
}

impl Project {
    /// Opens the project as its one server: creates the data directory when missing, looks through
    /// the studies folder, and imports the labels of an earlier MONAI Label server once. A damaged
    /// project is opened read only, see [`Project::read_only`].
    ///
    /// # Errors
    /// [`ProjectError::Unavailable`] when another server works on it, [`ProjectError::Conflict`]
    /// when it was created with other labels, [`ProjectError::Damaged`] when nothing can be read.
    pub async fn open(open: OpenProject) -> Result<Self, ProjectError> {
        // A wrong name makes no data directory.
        if let Studies::Folder(folder) = &open.studies {
            Place::open(&open.studies, folder)?;
        }
        std::fs::create_dir_all(&open.data)?;
        let data = std::fs::canonicalize(&open.data)?;
        let place = Place::open(&open.studies, &data)?;
        let store = Store::open_server(&data, open.clock.clone()).await?;
        if store.database.read_only().is_some() {
            return Self::of(store, open.clock, open.settle, "server").await;
        }
        keep_settings(&store, &place, &open).await?;
        let about = About {
            place,
            schema: open.labels,
            seed: open.seed,
        };
        let project = Self::new(store, about, open.clock, open.settle, "server");
        project.first_look().await?;
        if project.dicomweb().is_none() {
            project.adopt().await?;
        }
        project.split_new_images().await?;
        Ok(project)
    }

    /// Opens the project beside its server, in a worker process.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when no server ever opened it.
    pub async fn open_worker(data: &Path) -> Result<Self, ProjectError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Store::open_worker(&canonical(data)?, clock.clone()).await?;
        Self::of(store, clock, SETTLE, "worker").await
    }

    /// Opens the project to look at it only, whoever works on it, also when it is damaged.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when no server ever opened it, [`ProjectError::Damaged`] when
    /// nothing can be read.
    pub async fn open_reader(data: &Path) -> Result<Self, ProjectError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Store::open_reader(&canonical(data)?, clock.clone()).await?;
        Self::of(store, clock, SETTLE, "reader").await
    }

    /// The project as its own settings describe it.
    async fn of(
        store: Store,
        clock: Arc<dyn Clock>,
        settle: Duration,
        actor: &str,
    ) -> Result<Self, ProjectError> {
        let about = About {
            place: Place::of(&store, setting(&store, "studies").await?).await?,
            schema: serde_json::from_str(&setting(&store, "labels").await?)
                .map_err(StoreError::from)?,
            seed: setting(&store, "seed").await?.parse().map_err(|_| {
                ProjectError::Damaged("the seed in the store is no number".to_owned())
            })?,
        };
        Ok(Self::new(store, about, clock, settle, actor))
    }

    fn new(
        store: Store,
        about: About,
        clock: Arc<dyn Clock>,
        settle: Duration,
        actor: &str,
    ) -> Self {
        let inner = Inner {
            store,
            place: about.place,
            schema: about.schema,
            clock,
            seed: about.seed,
            settle,
            decoders: Arc::new(Semaphore::new(DECODERS)),
            scanning: Mutex::default(),
            choosing: Mutex::default(),
            counts: Mutex::default(),
            journal: Default::default(),
        };
        Self {
            inner: Arc::new(inner),
            limits: Limits::default(),
            actor: actor.into(),
        }
    }

    /// Why nothing may be written, when that is so.
    pub fn read_only(&self) -> Option<&str> {
        self.store().database.read_only()
    }

    /// The same project with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same project for one user: this name goes into the audit log.
    #[must_use]
    pub fn acting_as(&self, actor: &str) -> Self {
        Self {
            actor: actor.into(),
            ..self.clone()
        }
    }

    /// The classes.
    pub fn schema(&self) -> &LabelSchema {
        &self.inner.schema
    }

    /// Folder with the images, which is never written to, or with the copies of them.
    pub fn studies(&self) -> &Path {
        &self.inner.place.folder
    }

    /// Looks for images. A server that does not answer now is asked again later, if images of it are known.
    async fn first_look(&self) -> Result<(), ProjectError> {
        match self.rescan().await {
            Err(error @ ProjectError::Unavailable(_)) if self.dicomweb().is_some() => {
                tracing::warn!("no series are listed yet, or those of the last time: {error}");
                Ok(())
            }
            Err(error) if self.dicomweb().is_some() && !self.images().await?.is_empty() => {
                tracing::warn!("the list of series is that of the last time: {error}");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    /// Directory of everything the project writes.
    pub fn data_dir(&self) -> &Path {
        self.inner.store.dir()
    }

    /// Directory for results on their way to a client; swept after a day.
    pub fn scratch_dir(&self) -> PathBuf {
        self.data_dir().join("scratch")
    }

    /// Where the time comes from.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// Seed of everything random in the project.
    pub fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// Name shown to clients: that of the studies folder or of the server.
    pub fn name(&self) -> String {
        if let Some(pacs) = self.dicomweb() {
            return pacs.host().to_owned();
        }
        self.studies().file_name().map_or_else(
            || "studies".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
    }

    /// One line about the project for clients.
    pub fn description(&self) -> &'static str {
        "CT segmentation project of a Fewlabel server"
    }

    /// The queue of work.
    pub fn jobs(&self) -> &Jobs {
        &self.inner.store.jobs
    }

    /// Where uploads are staged, with this project's limits.
    pub fn staging(&self) -> Staging {
        self.inner
            .store
            .staging
            .with_limits(self.limits.max_upload_bytes, self.limits.min_free_bytes)
            .refusing(self.read_only())
    }

    /// The store below, for `rounds` and `sessions`.
    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    /// One at a time: for who chooses an image for an annotator.
    pub(crate) async fn choosing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.inner.choosing.lock().await
    }

    /// Appends to the audit log.
    ///
    /// # Errors
    /// When the row cannot be written.
    pub async fn audit(
        &self,
        action: &str,
        subject: &str,
        detail: Value,
    ) -> Result<(), ProjectError> {
        let mut tx = self.store().database.begin().await?;
        rows::append_audit(&mut tx, self.audit_entry(action, subject, detail)).await?;
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }

    pub(crate) fn audit_entry<'a>(
        &'a self,
        action: &'a str,
        subject: &'a str,
        detail: Value,
    ) -> AuditEntry<'a> {
        AuditEntry {
            now_ms: self.clock().now_ms(),
            actor: &self.actor,
            action,
            subject,
            detail,
        }
    }

    /// Housekeeping, to be called every few minutes: removes left-over files, forgets old
    /// inferences, takes jobs from dead workers.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn sweep(&self) -> Result<(), ProjectError> {
        if self.read_only().is_some() {
            return Ok(());
        }
        self.store().sweep().await?;
        let project = self.clone();
        tokio::task::spawn_blocking(move || project.sweep_proposals())
            .await
            .map_err(StoreError::from)??;
        self.split_new_images().await?;
        self.jobs()
            .prune(std::time::Duration::from_secs(24 * 3600))
            .await?;
        self.jobs().requeue_expired().await?;
        Ok(())
    }

    /// Reads everything that was acknowledged and says what is damaged or missing.
    ///
    /// # Errors
    /// When the database cannot be read at all.
    pub async fn check(&self) -> Result<Vec<String>, ProjectError> {
        Ok(self.store().check().await?)
    }

    /// Reads everything, as [`Project::check`] does, and refuses further writes when something is
    /// damaged. Returns the reason.
    ///
    /// # Errors
    /// When the disk does not answer.
    pub async fn scrub(&self) -> Result<Option<String>, ProjectError> {
        let report = self.store().examine(Depth::Full).await?;
        let reason = report.reason();
        if let Some(reason) = &reason {
            tracing::error!("the store is damaged and read only from now on: {reason}");
            self.store().database.set_read_only(reason);
        }
        Ok(reason)
    }

    /// Writes what was noted and closes the database; what was acknowledged is on the disk with or
    /// without this.
    pub async fn close(&self) {
        if let Err(error) = self.write_notes().await {
            tracing::error!("the last reads are missing in the audit log: {error}");
        }
        self.store().database.close().await;
    }
}

fn canonical(data: &Path) -> Result<PathBuf, ProjectError> {
    std::fs::canonicalize(data).map_err(|error| {
        ProjectError::NotFound(format!(
            "the data directory {} cannot be opened: {error}",
            data.display()
        ))
    })
}

async fn setting(store: &Store, key: &str) -> Result<String, ProjectError> {
    let value = store.database.setting(key).await?;
    value.ok_or_else(|| {
        ProjectError::NotFound(format!(
            "the store has no setting {key:?}; start the server on it first"
        ))
    })
}

/// Fixes the label schema at the first opening and holds later ones to it.
async fn keep_settings(
    store: &Store,
    place: &Place,
    open: &OpenProject,
) -> Result<(), ProjectError> {
    let labels = serde_json::to_string(&open.labels).map_err(StoreError::from)?;
    if let Some(stored) = store.database.setting("labels").await?
        && stored != labels
    {
        return Err(ProjectError::Conflict(format!(
            "this project was created with the labels {stored}, not {labels}; its labels are intact; start with the first list, or choose another data directory"
        )));
    }
    let mut kept = vec![
        ("labels", labels),
        ("studies", place.text.clone()),
        ("seed", open.seed.to_string()),
    ];
    if let Studies::DicomWeb { settings, .. } = &open.studies {
        let settings = serde_json::to_string(settings).map_err(StoreError::from)?;
        kept.push((pacs::SETTING, settings));
    }
    let mut tx = store.database.begin().await?;
    for (key, value) in kept {
        let before = store.database.setting(key).await?;
        rows::put_setting(&mut tx, key, &value).await?;
        if before.as_ref().is_some_and(|before| *before != value) {
            let entry = AuditEntry {
                now_ms: open.clock.now_ms(),
                actor: "server",
                action: "change-setting",
                subject: key,
                detail: json!({"from": before, "to": value}),
            };
            rows::append_audit(&mut tx, entry).await?;
        }
    }
    Ok(tx.commit().await.map_err(StoreError::from)?)
}
