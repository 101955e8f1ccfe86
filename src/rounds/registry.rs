//! Model versions: immutable directories, and a pointer to the one that serves (`publish.rs` moves it).
//!
//! A version is added like a label: complete and synced files first (moved in by one rename),
//! then one transaction with its row, the pointer and an audit row. A crash in between leaves a
//! directory that no row names and that no later version reuses.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::model::Manifest;
use crate::project::{Claimed, Map, ModelName, Project, ProjectError, Staged, StoreError};
use crate::store::rows::{self, ModelRecord, Publication, RoundEnd};
use crate::store::{remove_dir, sha256_of_dir, sync_dir};

const MANIFEST: &str = "manifest.json";
const WEIGHTS: &str = "weights.safetensors";

/// One published model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelVersion {
    /// Name of the model.
    pub name: String,
    /// 1, 2, ... per name; numbers may be left out.
    pub version: i64,
    /// Directory with manifest and weights; read only.
    pub dir: PathBuf,
    /// Hash over the names and contents of its files.
    pub sha256: String,
    /// Hash of its weights file.
    pub weights_sha256: String,
    /// The version that it was trained from.
    pub parent: Option<i64>,
    /// When it was published, milliseconds since 1970-01-01 UTC.
    pub created_ts: i64,
    /// Measured on the held-out cases.
    pub metrics: Value,
    /// What it was made of: labels, seeds, configuration.
    pub lineage: Value,
    /// Whether it may serve.
    pub state: VersionState,
    /// Why it is in this state.
    pub reason: String,
    /// Whether it is the version that serves.
    pub live: bool,
    /// Whether it is, and rounds do not replace it.
    pub pinned: bool,
}

/// What was decided about a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// It never served, and nobody decided about it.
    Candidate,
    /// Somebody decided that it does not serve.
    Kept,
    /// It served, or serves.
    Published,
}

impl VersionState {
    /// `candidate`, `kept` or `published`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Kept => "kept",
            Self::Published => "published",
        }
    }

    fn parse(text: &str) -> Result<Self, ProjectError> {
        let all = [Self::Candidate, Self::Kept, Self::Published];
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| {
                ProjectError::Internal(format!("{text:?} in the store is no state of a version"))
            })
    }
}

/// What is known of a version that is added.
pub(super) struct Addition {
    /// The version that it was trained from.
    pub parent: Option<i64>,
    /// Measured on the validation cases.
    pub metrics: Value,
    /// What it was made of.
    pub lineage: Value,
    /// Whether it serves from now on.
    pub live: bool,
    /// Why.
    pub reason: String,
    /// The round that ends with it, and the job that has to be its worker's still.
    pub round: Option<(RoundEnd, Claimed)>,
}

impl ModelVersion {
    /// Its manifest, read from its directory.
    ///
    /// # Errors
    /// When the file is damaged or gone.
    pub fn manifest(&self) -> Result<Manifest, ProjectError> {
        read_manifest(&self.dir)
    }

    /// Its weights, a safetensors file; read only.
    pub fn weights_path(&self) -> PathBuf {
        self.dir.join(WEIGHTS)
    }
}

/// The models of a project. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    pub(super) project: Project,
}

impl Registry {
    /// The models of this project.
    pub fn new(project: &Project) -> Self {
        Self {
            project: project.clone(),
        }
    }

    /// All versions by name and number.
    ///
    /// # Errors
    /// When the store does not answer; likewise below.
    pub async fn models(&self) -> Result<Vec<ModelVersion>, ProjectError> {
        let rows = self.project.store().database.models().await?;
        rows.into_iter()
            .map(|row| self.model_version(row))
            .collect()
    }

    /// The version that serves.
    pub async fn live(&self, name: &str) -> Result<Option<ModelVersion>, ProjectError> {
        Ok(self
            .models()
            .await?
            .into_iter()
            .find(|model| model.name == name && model.live))
    }

    /// One version.
    pub async fn version(
        &self,
        name: &str,
        version: i64,
    ) -> Result<Option<ModelVersion>, ProjectError> {
        Ok(self
            .models()
            .await?
            .into_iter()
            .find(|model| model.name == name && model.version == version))
    }

    /// Keeps other weights for the network of an existing version, as a candidate. The caller has made sure that they fit
    /// the network.
    ///
    /// # Errors
    /// When the files cannot be copied; nothing is added then.
    pub async fn add_weights(
        &self,
        of: &ModelVersion,
        weights: Staged,
    ) -> Result<ModelVersion, ProjectError> {
        let (from, copy) = (of.dir.clone(), self.scratch());
        let to = copy.clone();
        let copied = tokio::task::spawn_blocking(move || with_weights(&from, &to, weights))
            .await
            .map_err(StoreError::from)?;
        let added = match copied {
            Ok(()) => {
                let addition = Addition {
                    parent: Some(of.version),
                    metrics: Value::Null,
                    lineage: json!({"origin": "upload"}),
                    live: false,
                    reason: "uploaded".to_owned(),
                    round: None,
                };
                self.add(&of.name, &copy, addition).await
            }
            Err(error) => Err(error),
        };
        remove_dir(&copy)?;
        added
    }

    /// Takes a copy of a model directory into the registry under the name in its manifest. The same
    /// content is taken once. It goes live only when the model has no live version yet: a restart
    /// must not undo the rounds since.
    ///
    /// # Errors
    /// [`ProjectError::Invalid`] when `dir` holds no complete model of plain files.
    pub async fn import_initial(&self, dir: &Path) -> Result<ModelVersion, ProjectError> {
        let name = ModelName::parse(&read_manifest(dir)?.name)?;
        let (from, copy) = (dir.to_owned(), self.scratch());
        let to = copy.clone();
        let copied =
            tokio::task::spawn_blocking(move || copy_files(&from, &to).and_then(|()| seal(&to)))
                .await
                .map_err(StoreError::from)?;
        let added = match copied {
            Ok(sha256) => {
                let models = self.models().await?;
                match models
                    .iter()
                    .find(|model| model.name == name.as_str() && model.sha256 == sha256)
                {
                    Some(known) => Ok(known.clone()),
                    None => {
                        let live = !models
                            .iter()
                            .any(|model| model.name == name.as_str() && model.live);
                        let reason = match live {
                            true => "the first version",
                            false => "given when the server was started, beside a live version",
                        };
                        let addition = Addition {
                            parent: None,
                            metrics: Value::Null,
                            lineage: json!({"origin": "import"}),
                            live,
                            reason: reason.to_owned(),
                            round: None,
                        };
                        self.add(name.as_str(), &copy, addition).await
                    }
                }
            }
            Err(error) => Err(error),
        };
        remove_dir(&copy)?;
        added
    }

    /// A new name for a directory on the disk of the registry.
    fn scratch(&self) -> PathBuf {
        self.project.scratch_dir().join(Uuid::now_v7().to_string())
    }

    /// Moves a finished model directory into the registry; one transaction then adds the version, sets the pointer and
    /// ends its round.
    ///
    /// # Errors
    /// [`ProjectError::Invalid`] when `staged_dir` holds no complete model of plain files.
    pub(super) async fn add(
        &self,
        name: &str,
        staged_dir: &Path,
        new: Addition,
    ) -> Result<ModelVersion, ProjectError> {
        let name = &ModelName::parse(name)?;
        let weights_sha256 = read_manifest(staged_dir)?.weights_sha256.clone();
        let (from, home) = (
            staged_dir.to_owned(),
            self.project.data_dir().join("models").join(name.as_str()),
        );
        let rows = self.project.store().database.models().await?;
        let last = rows
            .iter()
            .filter(|row| row.name == name.as_str())
            .map(|row| row.version)
            .max()
            .unwrap_or_default();
        let moved = tokio::task::spawn_blocking(move || {
            let sha256 = seal(&from)?;
            Ok::<_, ProjectError>((move_in(&from, &home, last)?, sha256))
        });
        let (version, sha256) = moved.await.map_err(StoreError::from)??;
        let now_ms = self.project.clock().now_ms();
        let state = match new.live {
            true => VersionState::Published,
            false => VersionState::Candidate,
        };
        let row = ModelRecord {
            name: name.to_string(),
            version,
            sha256,
            weights_sha256,
            parent: new.parent,
            created_ms: now_ms,
            metrics: new.metrics.to_string(),
            lineage: new.lineage.to_string(),
            state: state.as_str().to_owned(),
            reason: new.reason,
            live: new.live,
            pinned: false,
        };
        let mut tx = self.project.store().database.begin().await?;
        if let Some((end, claimed)) = &new.round {
            if let Err(lost) = self.project.jobs().check_held(&mut tx, claimed).await {
                let dir = self.project.data_dir().join("models").join(name.as_str());
                remove_dir(&dir.join(version.to_string()))?;
                return Err(lost.into());
            }
            rows::finish_round(&mut tx, end, version, now_ms).await?;
        }
        rows::add_model(&mut tx, &row).await?;
        let action = if new.live {
            "publish-model"
        } else {
            "keep-candidate"
        };
        let detail = json!({
            "version": version, "sha256": row.sha256, "parent": new.parent, "live": new.live, "reason": row.reason,
        });
        let entry = self.project.audit_entry(action, name.as_str(), detail);
        if new.live {
            let publication = Publication {
                name: name.as_str(),
                version,
                pinned: false,
                rollback: false,
                actor: entry.actor,
                now_ms,
            };
            rows::set_live_model(&mut tx, &publication).await?;
        }
        rows::append_audit(&mut tx, entry).await?;
        tx.commit().await.map_err(StoreError::from)?;
        self.model_version(row)
    }

    fn model_version(&self, row: ModelRecord) -> Result<ModelVersion, ProjectError> {
        let name = ModelName::parse(&row.name)?;
        Ok(ModelVersion {
            dir: self
                .project
                .data_dir()
                .join("models")
                .join(name.as_str())
                .join(row.version.to_string()),
            name: row.name,
            version: row.version,
            sha256: row.sha256,
            weights_sha256: row.weights_sha256,
            parent: row.parent,
            created_ts: row.created_ms,
            metrics: serde_json::from_str(&row.metrics).map_err(StoreError::from)?,
            lineage: serde_json::from_str(&row.lineage).map_err(StoreError::from)?,
            state: VersionState::parse(&row.state)?,
            reason: row.reason,
            live: row.live,
            pinned: row.pinned,
        })
    }
}

fn read_manifest(dir: &Path) -> Result<Manifest, ProjectError> {
    Manifest::read(dir).map_err(|error| {
        ProjectError::Invalid(format!("{} holds no usable model: {error}", dir.display()))
    })
}

/// Names of the files of a model directory, sorted. Anything but plain files is refused, so that a
/// version cannot change behind a link.
fn files_of(dir: &Path) -> Result<Vec<String>, ProjectError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_name().into_string() {
            Ok(name) if entry.file_type()?.is_file() => names.push(name),
            _ => {
                return Err(ProjectError::Invalid(format!(
                    "{:?} in a model directory is no plain file; remove it",
                    entry.file_name()
                )));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Syncs the files of a model directory and returns the hash over them.
fn seal(dir: &Path) -> Result<String, ProjectError> {
    for name in files_of(dir)? {
        std::fs::File::open(dir.join(name))?.sync_all()?;
    }
    sync_dir(dir)?;
    Ok(sha256_of_dir(dir)?)
}

fn copy_files(from: &Path, to: &Path) -> Result<(), ProjectError> {
    std::fs::create_dir(to)?;
    for name in files_of(from)? {
        std::fs::copy(from.join(&name), to.join(&name))?;
    }
    Ok(())
}

/// A copy of a model directory with other weights, and a manifest that names them.
fn with_weights(from: &Path, to: &Path, weights: Staged) -> Result<(), ProjectError> {
    copy_files(from, to)?;
    let text = std::fs::read(to.join(MANIFEST))?;
    let mut manifest: Map = serde_json::from_slice(&text).map_err(StoreError::from)?;
    manifest.insert("weights_sha256".to_owned(), json!(weights.sha256));
    manifest.insert("trained".to_owned(), json!(true));
    std::fs::write(to.join(MANIFEST), format!("{:#}\n", json!(manifest)))?;
    std::fs::remove_file(to.join(WEIGHTS))?;
    Ok(weights.move_to(&to.join(WEIGHTS))?)
}

/// Moves a sealed directory to the first free version number after `last`. A rename onto a
/// directory with files fails, so that two processes never share a number.
fn move_in(from: &Path, home: &Path, last: i64) -> Result<i64, ProjectError> {
    std::fs::create_dir_all(home)?;
    let mut version = last;
    loop {
        version += 1;
        match std::fs::rename(from, home.join(version.to_string())) {
            Ok(()) => break,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for dir in [Some(home), home.parent()].into_iter().flatten() {
        sync_dir(dir)?;
    }
    Ok(version)
}

#[cfg(test)]
mod tests;
