//! Model versions: immutable directories, and a pointer to the one that serves.
//!
//! A version is published like a label: complete and synced files first (moved in by one rename),
//! then one transaction with its row, the pointer and an audit row. A crash in between leaves a
//! directory that no row names and that no later version reuses.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::model::Manifest;
use crate::project::{Map, ModelName, Project, ProjectError, Staged, StoreError};
use crate::store::rows::{self, ModelRecord};
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
    /// Whether it is the version that serves.
    pub live: bool,
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
    project: Project,
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

    /// Publishes a finished model directory, which is moved away, and makes it live.
    ///
    /// # Errors
    /// [`ProjectError::Invalid`] when `staged_dir` holds no complete model of plain files.
    pub async fn publish(
        &self,
        name: &str,
        staged_dir: &Path,
        parent: Option<i64>,
        metrics: Value,
        lineage: Value,
    ) -> Result<ModelVersion, ProjectError> {
        self.add(
            &ModelName::parse(name)?,
            staged_dir,
            parent,
            [metrics, lineage],
            true,
        )
        .await
    }

    /// Publishes other weights for the network of an existing version, and makes them live. The
    /// caller has made sure that they fit the network.
    ///
    /// # Errors
    /// When the files cannot be copied; the live version stays.
    pub async fn publish_weights(
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
                self.publish(
                    &of.name,
                    &copy,
                    Some(of.version),
                    Value::Null,
                    json!({"origin": "upload"}),
                )
                .await
            }
            Err(error) => Err(error),
        };
        remove_dir(&copy)?;
        added
    }

    /// Makes an older or newer version the one that serves.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such version.
    pub async fn set_live(&self, name: &str, version: i64) -> Result<ModelVersion, ProjectError> {
        let model = self.version(name, version).await?;
        let model = model.ok_or_else(|| {
            ProjectError::NotFound(format!("there is no version {version} of model {name:?}"))
        })?;
        let mut tx = self.project.store().database.begin().await?;
        rows::set_live_model(&mut tx, name, version).await?;
        rows::append_audit(
            &mut tx,
            self.project
                .audit_entry("set-live-model", name, json!({"version": version})),
        )
        .await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(ModelVersion {
            live: true,
            ..model
        })
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
                        self.add(
                            &name,
                            &copy,
                            None,
                            [Value::Null, json!({"origin": "import"})],
                            live,
                        )
                        .await
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

    async fn add(
        &self,
        name: &ModelName,
        staged_dir: &Path,
        parent: Option<i64>,
        [metrics, lineage]: [Value; 2],
        live: bool,
    ) -> Result<ModelVersion, ProjectError> {
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
        let row = ModelRecord {
            name: name.to_string(),
            version,
            sha256,
            weights_sha256,
            parent,
            created_ms: self.project.clock().now_ms(),
            metrics: metrics.to_string(),
            lineage: lineage.to_string(),
            live,
        };
        let mut tx = self.project.store().database.begin().await?;
        rows::add_model(&mut tx, &row).await?;
        if live {
            rows::set_live_model(&mut tx, name.as_str(), version).await?;
        }
        let detail =
            json!({"version": version, "sha256": row.sha256, "parent": parent, "live": live});
        rows::append_audit(
            &mut tx,
            self.project
                .audit_entry("publish-model", name.as_str(), detail),
        )
        .await?;
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
            live: row.live,
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
mod tests {
    use super::*;
    use crate::project::tests::Bench;
    use crate::store::sha256_of_file;

    /// A model directory; the registry looks at the manifest only, not at the weights.
    fn model(bench: &Bench, folder: &str, weights: &str) -> PathBuf {
        let dir = bench.project.scratch_dir().join(folder);
        std::fs::create_dir(&dir).unwrap();
        let network = json!({
            "input_size": [32, 32, 32], "resolution_mode": 0, "feature_chns": [4, 8, 16, 24, 32], "num_heads": [2, 4, 4],
            "window_sizes": [6, 6, 6], "depths": [2, 2, 2], "class_num": 3, "in_chns": 1, "dropout": [0, 0, 0.2, 0.2, 0.2],
        });
        let manifest = json!({
            "format": 1, "name": "ct", "network": network, "labels": ["liver", "spleen"],
            "preprocessing": {"spacing_mm": null, "hu_window": [-1000.0, 1000.0]}, "patch": [32, 32, 32], "trained": false,
            "lineage": {"made_by": "test", "code_version": "0"}, "weights_sha256": format!("hash of {weights}"),
        });
        std::fs::write(dir.join(MANIFEST), manifest.to_string()).unwrap();
        std::fs::write(dir.join(WEIGHTS), weights).unwrap();
        dir
    }

    #[tokio::test]
    async fn versions_are_kept_and_live_is_a_pointer() {
        let bench = Bench::with(&[]).await;
        let registry = Registry::new(&bench.project);
        assert_eq!(registry.live("ct").await.unwrap(), None);
        let first = registry
            .import_initial(&model(&bench, "init", "w0"))
            .await
            .unwrap();
        assert_eq!(
            (first.version, first.live, first.weights_sha256.as_str()),
            (1, true, "hash of w0")
        );

        let staged = model(&bench, "round", "w1");
        let metrics = json!({"dice": 0.9});
        let second = registry
            .publish("ct", &staged, Some(1), metrics.clone(), json!({"seed": 3}))
            .await
            .unwrap();
        assert_eq!(
            (second.version, second.parent, &second.metrics, second.live),
            (2, Some(1), &metrics, true)
        );
        assert!(!staged.exists());
        assert_eq!(std::fs::read(second.weights_path()).unwrap(), b"w1");
        assert_eq!(second.manifest().unwrap().name, "ct");
        assert_eq!(registry.live("ct").await.unwrap(), Some(second.clone()));

        // The same model at the next start changes nothing, another one waits for a decision.
        assert_eq!(
            registry
                .import_initial(&bench.project.data_dir().join("models/ct/1"))
                .await
                .unwrap()
                .version,
            1
        );
        let third = registry
            .import_initial(&model(&bench, "other", "w2"))
            .await
            .unwrap();
        assert_eq!((third.version, third.live), (3, false));
        assert_eq!(registry.live("ct").await.unwrap().unwrap().version, 2);

        assert_eq!(registry.set_live("ct", 1).await.unwrap().version, 1);
        let live: Vec<_> = registry
            .models()
            .await
            .unwrap()
            .into_iter()
            .map(|model| (model.version, model.live))
            .collect();
        assert_eq!(live, [(1, true), (2, false), (3, false)]);
        assert!(matches!(
            registry.set_live("ct", 9).await,
            Err(ProjectError::NotFound(_))
        ));
        assert_eq!(
            registry.live("ct").await.unwrap().unwrap().sha256,
            first.sha256
        );
    }

    #[tokio::test]
    async fn other_weights_make_a_version_of_the_same_network() {
        let bench = Bench::with(&[]).await;
        let registry = Registry::new(&bench.project);
        let first = registry
            .import_initial(&model(&bench, "init", "w0"))
            .await
            .unwrap();
        let second = registry
            .publish_weights(&first, bench.stage(b"w9").await)
            .await
            .unwrap();
        assert_eq!(
            (second.version, second.parent, second.live),
            (2, Some(1), true)
        );
        assert_eq!(std::fs::read(second.weights_path()).unwrap(), b"w9");
        assert_eq!(
            second.weights_sha256,
            sha256_of_file(&second.weights_path()).unwrap()
        );
        let manifest = second.manifest().unwrap();
        assert!(manifest.trained && manifest.weights_sha256 == second.weights_sha256);
        assert_eq!(std::fs::read(first.weights_path()).unwrap(), b"w0");
        assert_eq!(
            std::fs::read_dir(bench.project.scratch_dir())
                .unwrap()
                .count(),
            1,
            "only the directory that was imported"
        );
    }

    #[tokio::test]
    async fn a_directory_left_by_a_crash_is_passed_over() {
        let bench = Bench::with(&[]).await;
        let registry = Registry::new(&bench.project);
        let orphan = bench.project.data_dir().join("models/ct/1");
        std::fs::create_dir_all(&orphan).unwrap();
        std::fs::write(orphan.join(WEIGHTS), "half").unwrap();
        let model = registry
            .import_initial(&model(&bench, "init", "w0"))
            .await
            .unwrap();
        assert_eq!(model.version, 2);
        assert_eq!(registry.models().await.unwrap(), [model]);
    }

    #[tokio::test]
    async fn what_is_no_model_is_refused_and_leaves_nothing() {
        let bench = Bench::with(&[]).await;
        let registry = Registry::new(&bench.project);
        let empty = tempfile::tempdir().unwrap();
        let linked = model(&bench, "linked", "w0");
        std::fs::create_dir(linked.join("sub")).unwrap();
        for dir in [empty.path(), &linked] {
            assert!(matches!(
                registry.import_initial(dir).await,
                Err(ProjectError::Invalid(_))
            ));
            assert!(matches!(
                registry
                    .publish("ct", dir, None, json!({}), json!({}))
                    .await,
                Err(ProjectError::Invalid(_))
            ));
        }
        assert!(matches!(
            registry
                .publish("../ct", &linked, None, json!({}), json!({}))
                .await,
            Err(ProjectError::Invalid(_))
        ));
        assert_eq!(registry.models().await.unwrap(), []);
        assert_eq!(
            std::fs::read_dir(bench.project.data_dir().join("models"))
                .unwrap()
                .count(),
            0
        );
    }
}
