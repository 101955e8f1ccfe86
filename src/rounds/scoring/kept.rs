//! Scores in the store: one row per image and model, so that the scoring of a pool goes on where it was interrupted.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::json;

use super::scores::ImageScores;
use crate::model::Passes;
use crate::project::{ImageMark, ImageRow, Map, Project, ProjectError, StoreError};
use crate::rounds::registry::{ModelVersion, Registry};
use crate::store::rows::{self, ScoreRecord};

/// How a model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// How each version is asked.
    pub passes: Passes,
    /// The live version, and so many before it less one, as an ensemble; at least 1.
    pub versions: usize,
}

impl How {
    fn as_text(self) -> String {
        format!("{} of {}", self.passes, self.versions)
    }
}

/// Scores of an image, and the version that gave them.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The version.
    pub version: i64,
    /// What it said.
    pub scores: ImageScores,
}

/// Directories of the version and of those before it that make an ensemble with it: trained, with the same labels, network
/// and preprocessing, the newest first.
///
/// # Errors
/// When the store does not answer; likewise below.
pub async fn model_members(
    project: &Project,
    version: &ModelVersion,
    how: How,
) -> Result<Vec<PathBuf>, ProjectError> {
    let live = version.manifest()?;
    let mut before: Vec<ModelVersion> = Registry::new(project)
        .models()
        .await?
        .into_iter()
        .filter(|other| other.name == version.name && other.version < version.version)
        .collect();
    before.sort_by_key(|other| std::cmp::Reverse(other.version));
    let mut dirs = vec![version.dir.clone()];
    for other in before {
        if dirs.len() >= how.versions {
            break;
        }
        let manifest = other.manifest()?;
        let alike = manifest.labels == live.labels
            && manifest.network == live.network
            && manifest.preprocessing == live.preprocessing
            && manifest.patch == live.patch;
        if manifest.trained && alike {
            dirs.push(other.dir);
        }
    }
    Ok(dirs)
}

/// The images that this version has not been asked about in this way: those without an accepted label first, test images
/// never.
pub async fn pending(
    project: &Project,
    version: &ModelVersion,
    how: How,
) -> Result<Vec<ImageRow>, ProjectError> {
    let rows = project.store().database.scores(&version.name, None).await?;
    let known: HashMap<&str, &ScoreRecord> =
        rows.iter().map(|row| (row.image.as_str(), row)).collect();
    let held_out = project.test_images().await?;
    let labelled = project.labelled_images().await?;
    let asked = how.as_text();
    let is_known = |image: &ImageRow| {
        known.get(image.id.as_str()).is_some_and(|row| {
            row.version == version.version
                && row.asked == asked
                && fits(row, image.size_bytes, image.ts)
        })
    };
    let mut pending: Vec<ImageRow> = project
        .images()
        .await?
        .into_iter()
        .filter(|image| !held_out.contains(image.id.as_str()) && !is_known(image))
        .collect();
    pending.sort_by_key(|image| labelled.contains_key(image.id.as_str()));
    Ok(pending)
}

/// Keeps what a version said of an image, in the image's info too, under the names that clients know.
///
/// # Errors
/// [`ProjectError::NotFound`] when the image is not there any more.
pub async fn keep(
    project: &Project,
    version: &ModelVersion,
    how: How,
    image: &ImageRow,
    scores: &ImageScores,
) -> Result<(), ProjectError> {
    let row = ScoreRecord {
        image: image.id.to_string(),
        version: version.version,
        asked: how.as_text(),
        size_bytes: i64::try_from(image.size_bytes).unwrap_or(i64::MAX),
        mtime_s: image.ts,
        scores: json!(scores).to_string(),
    };
    let mut tx = project.store().database.begin().await?;
    if let Some(uncertainty) = &scores.uncertainty {
        let info = Map::from_iter([
            ("epistemic_entropy".to_owned(), json!(uncertainty.entropy)),
            ("epistemic_ts".to_owned(), json!(project.clock().now_s())),
        ]);
        project.merge_image_info(&mut tx, &image.id, info).await?;
    }
    rows::put_score(&mut tx, &version.name, &row, project.clock().now_ms()).await?;
    Ok(tx.commit().await.map_err(StoreError::from)?)
}

/// What the model said of these images as they are now, whichever version it was; `only` of one, to read less.
pub async fn kept(
    project: &Project,
    model: &str,
    images: impl IntoIterator<Item = ImageMark>,
    only: Option<&str>,
) -> Result<HashMap<String, Kept>, ProjectError> {
    let rows = project.store().database.scores(model, only).await?;
    let by_id: HashMap<String, ImageMark> = images
        .into_iter()
        .map(|image| (image.id.to_string(), image))
        .collect();
    Ok(rows
        .into_iter()
        .filter(|row| {
            by_id
                .get(row.image.as_str())
                .is_some_and(|image| fits(row, image.size_bytes, image.ts))
        })
        .filter_map(|row| {
            // A row of another release, whose scores have another form, is as good as none.
            let scores = serde_json::from_str(&row.scores).ok()?;
            let version = row.version;
            Some((row.image, Kept { version, scores }))
        })
        .collect())
}

/// Whether the scores are of the image as it is now.
fn fits(row: &ScoreRecord, size_bytes: u64, ts: i64) -> bool {
    u64::try_from(row.size_bytes) == Ok(size_bytes) && row.mtime_s == ts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PctNetConfig, create_untrained};
    use crate::project::tests::{Bench, schema};

    #[tokio::test]
    async fn what_was_scored_is_not_asked_again_until_something_changes() {
        let bench = Bench::with(&["a.nii.gz", "b.nii.gz", "c.nii.gz"]).await;
        let project = &bench.project;
        let network = PctNetConfig {
            feature_chns: [4, 8, 16, 16, 16],
            num_heads: [2, 2, 2],
            ..PctNetConfig::pct_net_s(schema().class_count(), [16, 32, 32], 1)
        };
        let dir = bench.dir.path().join("model");
        create_untrained(&dir, "tiny", &network, &schema(), 1).unwrap();
        let registry = Registry::new(project);
        registry.import_initial(&dir).await.unwrap();
        let live = registry.live("tiny").await.unwrap().unwrap();
        let how = How {
            passes: Passes::Single,
            versions: 1,
        };
        bench.submit("a", "final", &[1]).await.unwrap();
        let names = async |version: &ModelVersion, how: How| -> Vec<String> {
            let images = pending(project, version, how).await.unwrap();
            images.iter().map(|image| image.id.to_string()).collect()
        };
        assert_eq!(
            names(&live, how).await,
            ["b", "c", "a"],
            "those without a label first"
        );
        let scores = ImageScores {
            features: vec![1.0, 2.5],
            uncertainty: None,
        };
        let images = project.images().await.unwrap();
        let marks = || images.iter().map(ImageMark::from);
        let b = images
            .iter()
            .find(|image| image.id.as_str() == "b")
            .unwrap();
        keep(project, &live, how, b, &scores).await.unwrap();
        assert_eq!(names(&live, how).await, ["c", "a"]);
        let found = kept(project, "tiny", marks(), None).await.unwrap();
        let version = live.version;
        assert_eq!(
            found["b"],
            Kept {
                version,
                scores: scores.clone()
            }
        );
        assert!(
            kept(project, "other", marks(), None)
                .await
                .unwrap()
                .is_empty()
        );

        let next = ModelVersion {
            version: version + 1,
            ..live.clone()
        };
        let twice = How { versions: 2, ..how };
        assert_eq!(names(&next, how).await.len(), 3, "a new version");
        assert_eq!(names(&live, twice).await.len(), 3, "asked in another way");
        let members = model_members(project, &live, twice).await.unwrap();
        assert!(members.len() == 1 && members[0] == live.dir);
        let changed = ImageMark {
            size_bytes: b.size_bytes + 1,
            ..b.into()
        };
        assert!(
            kept(project, "tiny", [changed], None)
                .await
                .unwrap()
                .is_empty()
        );
    }
}
