//! The next image for a client of the server: among those without an accepted label that are not held out for testing.
//!
//! Every serving is recorded: in the image's info, as clients know it, and as a row, so that the
//! next choice of the same strategy prefers what it served longest ago.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::pool::{Candidate, Labelled, Pool};
use super::{Strategy, StrategyError, record, table};
use crate::project::{ImageId, ImageMark, ImageRow, Map, Project, ProjectError};
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

/// The next image for a client, none of those in `taken`; none when every other image but the test images has an accepted
/// label.
///
/// # Errors
/// [`StrategyError::Unknown`] for a name that no strategy has.
pub async fn next(
    project: &Project,
    name: &str,
    client: &str,
    taken: &HashSet<String>,
) -> Result<Option<Choice>, StrategyError> {
    let mut offer = Offer::of(project, table::find(name)?, taken).await?;
    let scores_missing = offer.scores_missing();
    let (image, mut extras) = loop {
        let Some((mark, extras)) = offer.take(project.seed()) else {
            return Ok(None);
        };
        // It may be gone since they were all looked at.
        if let Some(image) = project.image(&mark.id).await? {
            break (image, extras);
        }
    };
    extras.extend(where_to_look(project, &image).await?);
    record::serving(project, name, client, &image).await?;
    Ok(Some(Choice {
        image,
        extras,
        scores_missing,
    }))
}

/// The images that the strategy used last will offer next, as things are now; `taken` are leased.
///
/// # Errors
/// When the store does not answer.
pub async fn upcoming(
    project: &Project,
    count: u32,
    taken: &HashSet<String>,
) -> Result<Vec<ImageRow>, StrategyError> {
    let used = project.store().database.last_strategy().await?;
    let known = used.and_then(|name| table::find(&name).ok());
    let strategy = match known {
        Some(strategy) => strategy,
        None => table::find("random")?,
    };
    let mut offer = Offer::of(project, strategy, taken).await?;
    let mut images = Vec::new();
    for _ in 0..count {
        let Some((mark, _)) = offer.take(project.seed()) else {
            break;
        };
        images.extend(project.image(&mark.id).await?);
    }
    Ok(images)
}

/// What a strategy of the server chooses from.
struct Offer {
    strategy: &'static Strategy,
    /// Images that may be served.
    open: Vec<ImageMark>,
    /// Images with an accepted label, and which structures it has.
    labelled: Vec<(ImageMark, Vec<bool>)>,
    /// The version that serves.
    live: Option<ModelVersion>,
    /// What it, or one before it, said of them, where the strategy goes by that.
    scores: HashMap<String, Kept>,
    /// When the strategy last served each image, milliseconds since 1970-01-01 UTC.
    servings: HashMap<String, i64>,
    now_ms: i64,
    round: usize,
    drawn: u64,
}

impl Offer {
    async fn of(
        project: &Project,
        strategy: &'static Strategy,
        taken: &HashSet<String>,
    ) -> Result<Self, StrategyError> {
        let done = project.labelled_images().await?;
        let held_out = project.test_images().await?;
        let (mut open, mut labelled) = (Vec::new(), Vec::new());
        for image in project.image_marks().await? {
            let id = image.id.as_str();
            match done.get(id) {
                Some(annotated) => {
                    let names = project.schema().names().iter();
                    let present = names.map(|name| annotated.contains(name)).collect();
                    labelled.push((image, present));
                }
                None if !held_out.contains(id) && !taken.contains(id) => open.push(image),
                None => {}
            }
        }
        let versions = Registry::new(project).models().await?;
        let live = versions.iter().find(|version| version.live).cloned();
        let scores = match &live {
            Some(live) if strategy.needs_scores => {
                let images = open.iter().chain(labelled.iter().map(|(image, _)| image));
                scoring::kept(project, &live.name, images.cloned(), None).await?
            }
            _ => HashMap::new(),
        };
        let database = &project.store().database;
        let servings = database.last_servings(strategy.name).await?;
        let drawn = database.serving_count().await?;
        Ok(Self {
            strategy,
            open,
            labelled,
            scores,
            servings: servings.into_iter().collect(),
            now_ms: project.clock().now_ms(),
            round: live
                .as_ref()
                .map_or(0, |live| rounds_of(&versions, &live.name)),
            live,
            drawn: u64::try_from(drawn).unwrap_or_default(),
        })
    }

    /// Whether the live version has not been asked about some image that may be served, though the strategy goes by that.
    fn scores_missing(&self) -> bool {
        let Some(live) = self.live.as_ref().filter(|_| self.strategy.needs_scores) else {
            return false;
        };
        let fresh = |image: &ImageMark| {
            let kept = self.scores.get(image.id.as_str());
            kept.is_some_and(|kept| kept.version == live.version)
        };
        !self.open.iter().all(fresh)
    }

    /// Takes the next image out, with what the strategy tells of it; none when none is left.
    fn take(&mut self, seed: u64) -> Option<(ImageMark, Map)> {
        if self.open.is_empty() {
            return None;
        }
        let scores =
            |image: &ImageMark| self.scores.get(image.id.as_str()).map(|kept| &kept.scores);
        let served_s_ago = |id: &ImageId| {
            let at_ms = self.servings.get(id.as_str())?;
            Some((self.now_ms - at_ms).div_euclid(1000))
        };
        let pool = Pool {
            candidates: self
                .open
                .iter()
                .map(|image| Candidate {
                    id: image.id.as_str(),
                    served_s_ago: served_s_ago(&image.id),
                    scores: scores(image),
                })
                .collect(),
            labelled: self
                .labelled
                .iter()
                .map(|(image, present)| Labelled {
                    scores: scores(image),
                    present,
                })
                .collect(),
            round: self.round,
            drawn: self.drawn,
        };
        let mut rng = Rng::new(seed).named("strategy").stream(self.drawn);
        let (index, told) = table::one(self.strategy, &pool, &mut rng);
        self.drawn += 1;
        Some((self.open.swap_remove(index.min(self.open.len() - 1)), told))
    }
}

/// What is told about an image with it: how sure the live model, or one before it, is of it, and where an annotator should
/// look first, as `uncertainty`; nothing where it was not asked. Clients that do not know it pass over it.
///
/// # Errors
/// When the store does not answer.
pub(in crate::rounds) async fn where_to_look(
    project: &Project,
    image: &ImageRow,
) -> Result<Option<(String, Value)>, ProjectError> {
    let versions = Registry::new(project).models().await?;
    let Some(live) = versions.iter().find(|version| version.live) else {
        return Ok(None);
    };
    let only = [ImageMark::from(image)];
    let kept = scoring::kept(project, &live.name, only, Some(image.id.as_str())).await?;
    let kept = kept.get(image.id.as_str());
    Ok(kept.and_then(|kept| uncertainty(project, &live.name, kept)))
}

/// Rounds of training behind a model: its versions that have a parent.
fn rounds_of(versions: &[ModelVersion], name: &str) -> usize {
    let trained = |version: &&ModelVersion| version.name == name && version.parent.is_some();
    versions.iter().filter(trained).count()
}

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
