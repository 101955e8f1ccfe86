//! The next image for a client of the server: among those without an accepted label that are not held out for testing.
//!
//! Every serving is recorded: in the image's info, as clients know it, and as a row, so that the
//! next choice of the same strategy prefers what it served longest ago.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::pool::{Candidate, Labelled, Pool};
use super::{StrategyError, record, table};
use crate::project::{ImageId, ImageRow, LabelRow, Map, Project, ProjectError, Tag};
use crate::rng::Rng;
use crate::rounds::registry::{ModelVersion, Registry};
use crate::rounds::scoring::{self, Kept};

/// What a strategy chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The image as it was before this serving.
    pub image: ImageRow,
    /// What the strategy tells about its choice, and where the model is least sure, for the answer.
    pub extras: Map,
    /// Whether the strategy goes by scores, and the live version has not given any for some image yet.
    pub scores_missing: bool,
}

/// The next image for a client; none when every image but the test images has an accepted label. `model` is the one whose
/// scores count; the first of the server when it is not given.
///
/// # Errors
/// [`StrategyError::Unknown`] for a name that no strategy has.
pub async fn next(
    project: &Project,
    name: &str,
    client: &str,
    model: Option<&str>,
) -> Result<Option<Choice>, StrategyError> {
    let strategy = table::find(name)?;
    let done = labelled_images(project).await?;
    let held_out = project.test_images().await?;
    let (labelled, mut open): (Vec<ImageRow>, Vec<ImageRow>) = project
        .images()
        .await?
        .into_iter()
        .filter(|image| !held_out.contains(image.id.as_str()))
        .partition(|image| done.contains_key(&image.id));
    if open.is_empty() {
        return Ok(None);
    }
    let versions = Registry::new(project).models().await?;
    let live = versions
        .iter()
        .find(|version| version.live && model.is_none_or(|name| name == version.name));
    let scores = match live {
        Some(live) if strategy.needs_scores => {
            let images: Vec<ImageRow> = open.iter().chain(&labelled).cloned().collect();
            scoring::kept(project, &live.name, &images, None).await?
        }
        _ => HashMap::new(),
    };
    let scores_of = |image: &ImageRow| scores.get(image.id.as_str());
    let scores_missing = live.is_some_and(|live| {
        let fresh = |image: &ImageRow| scores_of(image).is_some_and(|k| k.version == live.version);
        strategy.needs_scores && !open.iter().all(fresh)
    });

    let database = &project.store().database;
    let servings: HashMap<String, i64> = database.last_servings(name).await?.into_iter().collect();
    let now_ms = project.clock().now_ms();
    let served_s_ago = |id: &ImageId| {
        servings
            .get(id.as_str())
            .map(|at_ms| (now_ms - at_ms).div_euclid(1000))
    };
    let drawn = u64::try_from(database.serving_count().await?).unwrap_or_default();
    let present: HashMap<&ImageId, Vec<bool>> = done
        .iter()
        .map(|(id, label)| {
            let names = project.schema().names();
            let annotated = names.iter().map(|name| label.annotated.contains(name));
            (id, annotated.collect())
        })
        .collect();
    let pool = Pool {
        candidates: open
            .iter()
            .map(|image| Candidate {
                id: image.id.as_str(),
                served_s_ago: served_s_ago(&image.id),
                scores: scores_of(image).map(|kept| &kept.scores),
            })
            .collect(),
        labelled: labelled
            .iter()
            .map(|image| Labelled {
                scores: scores_of(image).map(|kept| &kept.scores),
                present: present.get(&image.id).map_or(&[], Vec::as_slice),
            })
            .collect(),
        round: live.map_or(0, |live| rounds_of(&versions, &live.name)),
        drawn,
    };
    let mut rng = Rng::new(project.seed()).named("strategy").stream(drawn);
    let (index, mut extras) = table::one(strategy, &pool, &mut rng);
    let image = open.swap_remove(index.min(open.len() - 1));
    if let Some(live) = live {
        let one = scoring::kept(project, &live.name, &[], Some(&image)).await?;
        if let Some(kept) = one.get(image.id.as_str()) {
            extras.extend(uncertainty(project, &live.name, kept));
        }
    }
    record::serving(project, name, client, &image).await?;
    Ok(Some(Choice {
        image,
        extras,
        scores_missing,
    }))
}

/// The accepted labels by image.
///
/// # Errors
/// When the store does not answer.
pub(in crate::rounds) async fn labelled_images(
    project: &Project,
) -> Result<HashMap<ImageId, LabelRow>, ProjectError> {
    let accepted = Tag::accepted();
    let labels = project.all_labels().await?.into_iter();
    Ok(labels
        .filter(|label| label.tag == accepted)
        .map(|label| (label.image.clone(), label))
        .collect())
}

/// Rounds of training behind a model: its versions that have a parent.
fn rounds_of(versions: &[ModelVersion], name: &str) -> usize {
    let trained = |version: &&ModelVersion| version.name == name && version.parent.is_some();
    versions.iter().filter(trained).count()
}

/// How sure a model was of an image, and where an annotator should look first. Clients that do not know it pass over it.
fn uncertainty(project: &Project, model: &str, kept: &Kept) -> Option<(String, Value)> {
    let found = kept.scores.uncertainty.as_ref()?;
    let classes: Map = project
        .schema()
        .names()
        .iter()
        .cloned()
        .zip(found.classes.iter().map(|class| json!(class)))
        .collect();
    let told = json!({
        "model": model,
        "version": kept.version,
        "answers": found.answers,
        "entropy": found.entropy,
        "margin": found.margin,
        "bald": found.bald,
        "classes": classes,
        "slices": found.slices,
        "region": found.region,
    });
    Some(("uncertainty".to_owned(), told))
}
