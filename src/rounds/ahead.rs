//! Proposals for the images that will probably be asked for next, made while the worker has nothing else to do.
//!
//! They lie in a folder below `scratch/`, under a name made of all that a proposal depends on: the hash of the weights, of
//! the image and of the options. So another version, or another image under the same id, is never answered with an old
//! one. What is neither probable nor leased any more is removed, which also bounds the folder.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::registry::{ModelVersion, Registry};
use super::settings::Settings;
use super::strategy::{self, StrategyError};
use crate::imaging::{Budget, LabelFormat, Volume, read_label, write_label};
use crate::project::{ImageId, ImageRow, Project, ProjectError};

/// So many are made ahead at most.
pub const MOST: u32 = 32;
/// Pause between two looks at which series may be fetched.
const LOOK: Duration = Duration::from_secs(1);
/// Likewise, after one could not be.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// The proposals of a project that are kept ahead.
#[derive(Debug, Clone)]
pub struct Ahead {
    dir: PathBuf,
}

/// A proposal that may be made.
#[derive(Debug)]
pub struct Wanted {
    /// The version that makes it.
    pub version: ModelVersion,
    /// The image.
    pub image: ImageRow,
    /// Its name.
    key: String,
}

impl Ahead {
    /// Those of a project.
    pub fn of(project: &Project) -> Self {
        Self {
            dir: project.scratch_dir().join("ahead"),
        }
    }

    /// Changes whenever [`Ahead::look`] may find something else; cheap enough to be asked for all the time.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn state(project: &Project) -> Result<String, ProjectError> {
        let database = &project.store().database;
        let models = database.models().await?;
        let live: Vec<_> = models
            .iter()
            .filter(|row| row.live)
            .map(|row| row.version)
            .collect();
        let leases = database.leases(project.clock().now_ms()).await?;
        let leased: Vec<_> = leases.iter().map(|lease| &lease.image).collect();
        let state = json!([
            live,
            leased,
            database.serving_count().await?,
            database.counter("label_changes").await?,
            database.counter("images_present").await?,
            database.images_read().await?,
            Settings::of(project).await?.ahead,
        ]);
        Ok(state.to_string())
    }

    /// Removes what is not wanted any more, and returns what is and is not there yet, the most probable first.
    ///
    /// # Errors
    /// When the store or the disk does not answer.
    pub async fn look(&self, project: &Project) -> Result<Vec<Wanted>, StrategyError> {
        let settings = Settings::of(project).await?;
        let models = Registry::new(project)
            .models()
            .await
            .map_err(StrategyError::from)?;
        // What a version proposes that has learned nothing is worth neither the time nor the memory.
        let live = models
            .into_iter()
            .find(|model| model.live)
            .filter(|live| live.manifest().is_ok_and(|manifest| manifest.trained));
        let (Some(live), true) = (live, settings.ahead > 0) else {
            self.retain(&HashSet::new())?;
            return Ok(Vec::new());
        };
        let now_ms = project.clock().now_ms();
        let leases = project.store().database.leases(now_ms).await?;
        let leased: HashSet<String> = leases.into_iter().map(|lease| lease.image).collect();
        let mut keys = HashSet::new();
        for image in &leased {
            let image = ImageId::parse(image).map_err(ProjectError::from)?;
            // A leased image may have gone.
            if let Ok(Some(sha256)) = project.sha256_at_hand(&image).await {
                keys.insert(key(&live.weights_sha256, &sha256));
            }
        }
        let mut wanted = Vec::new();
        for image in strategy::upcoming(project, settings.ahead, &leased).await? {
            let Ok(Some(sha256)) = project.sha256_at_hand(&image.id).await else {
                continue;
            };
            let key = key(&live.weights_sha256, &sha256);
            keys.insert(key.clone());
            if !self.about(&key).exists() && !self.trying(&key).exists() {
                wanted.push(Wanted {
                    version: live.clone(),
                    image,
                    key,
                });
            }
        }
        self.retain(&keys)?;
        Ok(wanted)
    }

    /// Notes that a proposal is being made. One whose worker dies over it is not tried again.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn begin(&self, wanted: &Wanted) -> Result<(), ProjectError> {
        std::fs::create_dir_all(&self.dir)?;
        Ok(std::fs::write(self.trying(&wanted.key), "")?)
    }

    /// The end of what [`Ahead::begin`] noted.
    pub fn end(&self, wanted: &Wanted) {
        // What stays is only not tried again.
        let _ = std::fs::remove_file(self.trying(&wanted.key));
    }

    /// Keeps a proposal; `about` is told with it later.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn keep(
        &self,
        wanted: &Wanted,
        labels: &Volume<u16>,
        about: &Value,
    ) -> Result<(), ProjectError> {
        std::fs::create_dir_all(&self.dir)?;
        let part = self.dir.join(format!("{}.part.nii.gz", wanted.key));
        write_label(&part, labels, &[], LabelFormat::NiftiGz)
            .map_err(|error| ProjectError::Internal(error.to_string()))?;
        std::fs::rename(&part, self.labels(&wanted.key))?;
        // The last of the two: who finds it finds both.
        let part = self.dir.join(format!("{}.part.json", wanted.key));
        std::fs::write(&part, about.to_string())?;
        Ok(std::fs::rename(&part, self.about(&wanted.key))?)
    }

    /// The proposal of a version for an image, if it is there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn find(
        &self,
        project: &Project,
        version: &ModelVersion,
        image: &ImageId,
    ) -> Result<Option<(Volume<u16>, Value)>, ProjectError> {
        if !self.dir.is_dir() {
            return Ok(None);
        }
        let key = key(&version.weights_sha256, &project.image_sha256(image).await?);
        // What was removed or damaged is made again.
        let Ok(about) = std::fs::read(self.about(&key)) else {
            return Ok(None);
        };
        let about = serde_json::from_slice(&about).ok();
        let file = read_label(&self.labels(&key), &Budget::default()).ok();
        let labels = file.and_then(|mut file| {
            let voxels = file.layers.drain(..).next()?;
            Volume::new(file.geometry, voxels).ok()
        });
        Ok(labels.zip(about))
    }

    fn retain(&self, keys: &HashSet<String>) -> Result<(), ProjectError> {
        if !self.dir.is_dir() {
            return Ok(());
        }
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let key = name.split('.').next().unwrap_or_default();
            if !keys.contains(key) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn labels(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.nii.gz"))
    }

    fn trying(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.trying"))
    }

    fn about(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.json"))
    }
}

/// Fetches the series that will probably be asked for next from a DICOMweb server, beside the worker, which would be kept
/// from its work by waiting for them; never returns where the images are on one.
pub async fn fetch(project: Project) {
    if project.dicomweb().is_none() {
        return;
    }
    let mut done_at = String::new();
    loop {
        let pause = match fetch_upcoming(&project, &mut done_at).await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::debug!("no series are fetched ahead for now: {error}");
                AFTER_FAILURE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn fetch_upcoming(project: &Project, done_at: &mut String) -> Result<(), StrategyError> {
    let state = Ahead::state(project).await?;
    if state == *done_at {
        return Ok(());
    }
    let settings = Settings::of(project).await?;
    if settings.ahead > 0 {
        let leases = project.store().database.leases(project.clock().now_ms());
        let leased = leases.await.map_err(ProjectError::from)?;
        let leased = leased.into_iter().map(|lease| lease.image).collect();
        for image in strategy::upcoming(project, settings.ahead, &leased).await? {
            match project.image_sha256(&image.id).await {
                // Whoever asks for it is told.
                Ok(_) | Err(ProjectError::NotFound(_) | ProjectError::Invalid(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    *done_at = state;
    Ok(())
}

impl Wanted {
    /// Names it, also among those that failed.
    pub fn key(&self) -> &str {
        &self.key
    }
}

fn key(weights_sha256: &str, image_sha256: &str) -> String {
    let text = json!([weights_sha256, image_sha256]).to_string();
    let digest = Sha256::digest(text);
    digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PctNetConfig, create_untrained};
    use crate::project::tests::{Bench, schema};
    use crate::rounds::leases;

    #[tokio::test]
    async fn a_version_that_has_learned_nothing_proposes_nothing() {
        let bench = Bench::with(&["a.nii.gz"]).await;
        let small = PctNetConfig::pct_net_s(schema().class_count(), [16, 32, 32], 1);
        let dir = bench.dir.path().join("model");
        create_untrained(&dir, "ct", &small, &schema(), 1).unwrap();
        let registry = Registry::new(&bench.project);
        assert!(registry.import_initial(&dir).await.unwrap().live);
        let ahead = Ahead::of(&bench.project);
        assert!(ahead.look(&bench.project).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_next_is_kept_until_the_version_or_the_choice_changes() {
        // The last one has other bytes: proposals are kept by content.
        let bench = Bench::with(&["a.nii.gz", "b.nii.gz", "c.nrrd"]).await;
        let project = &bench.project;
        let registry = Registry::new(project);
        let small = PctNetConfig::pct_net_s(schema().class_count(), [16, 32, 32], 1);
        for seed in [1, 2] {
            let dir = bench.dir.path().join(format!("model {seed}"));
            create_untrained(&dir, "ct", &small, &schema(), seed).unwrap();
            let path = dir.join("manifest.json");
            let manifest = std::fs::read_to_string(&path).unwrap();
            let trained = manifest.replace("\"trained\": false", "\"trained\": true");
            assert_ne!(manifest, trained);
            std::fs::write(path, trained).unwrap();
            registry.import_initial(&dir).await.unwrap();
        }
        let ahead = Ahead::of(project);
        let names = |wanted: &[Wanted]| -> Vec<String> {
            wanted
                .iter()
                .map(|wanted| wanted.image.id.to_string())
                .collect()
        };
        leases::next(project, "first", Some("ann"), false)
            .await
            .unwrap();
        let wanted = ahead.look(project).await.unwrap();
        assert_eq!(names(&wanted), ["b", "c"], "a is leased");
        let grid = crate::imaging::read_scan(&wanted[0].image.path, &Budget::default()).unwrap();
        let voxels = vec![1; grid.volume.voxels.len()];
        let labels = Volume::new(grid.volume.geometry, voxels).unwrap();
        ahead
            .keep(&wanted[0], &labels, &json!({"windows": 3}))
            .unwrap();
        assert_eq!(names(&ahead.look(project).await.unwrap()), ["c"]);
        let (version, image) = (&wanted[0].version, &wanted[0].image.id);
        let (found, about) = ahead.find(project, version, image).await.unwrap().unwrap();
        assert_eq!(
            (found.voxels, about),
            (labels.voxels, json!({"windows": 3}))
        );
        assert!(
            ahead
                .find(project, version, &wanted[1].image.id)
                .await
                .unwrap()
                .is_none()
        );

        // What a worker died over is left alone.
        ahead.begin(&wanted[1]).unwrap();
        assert!(ahead.look(project).await.unwrap().is_empty());
        ahead.end(&wanted[1]);

        // Leased, it is still wanted, but not made again.
        leases::next(project, "first", Some("bob"), false)
            .await
            .unwrap();
        assert_eq!(names(&ahead.look(project).await.unwrap()), ["c"]);
        assert!(ahead.find(project, version, image).await.unwrap().is_some());

        registry.publish("ct", 2, false).await.unwrap();
        let live = registry.live("ct").await.unwrap().unwrap();
        assert!(ahead.find(project, &live, image).await.unwrap().is_none());
        ahead.look(project).await.unwrap();
        assert!(
            ahead.find(project, version, image).await.unwrap().is_none(),
            "removed"
        );
        assert_eq!(std::fs::read_dir(&ahead.dir).unwrap().count(), 0);
    }
}
