//! Which image an annotator gets next, among the images without an accepted label that are not held
//! out for testing.
//!
//! Every serving is recorded: in the image's info, as clients know it, and as a row, so that the
//! next choice of the same strategy prefers what it served longest ago.

mod first;
mod last;
mod random;
mod record;

use std::collections::{HashMap, HashSet};

use crate::project::{ImageId, ImageRow, Map, Project, ProjectError, Tag};
use crate::rng::Rng;
use crate::store::StoreError;

/// The strategies there are.
pub const NAMES: [&str; 3] = ["random", "first", "last"];

/// What a strategy chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The image as it was before this serving.
    pub image: ImageRow,
    /// What the strategy tells about its choice, for the answer.
    pub extras: Map,
}

/// Why there is no choice.
#[derive(Debug, thiserror::Error)]
pub enum StrategyError {
    /// No such strategy.
    #[error("there is no strategy {name:?}; use one of: {}", NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The project failed.
    #[error(transparent)]
    Project(#[from] ProjectError),
}

impl From<StoreError> for StrategyError {
    fn from(error: StoreError) -> Self {
        Self::Project(error.into())
    }
}

/// One image that may be served.
struct Candidate<'a> {
    id: &'a ImageId,
    /// Since this strategy last served it; none when it never did.
    served_s_ago: Option<i64>,
}

/// Index of the chosen candidate, and what to tell about it. There is at least one candidate.
type Pick = (usize, Map);

/// The next image for a client; none when every image but the test images has an accepted label.
///
/// # Errors
/// [`StrategyError::Unknown`] for a name that is not in [`NAMES`].
pub async fn next(
    project: &Project,
    name: &str,
    client: &str,
) -> Result<Option<Choice>, StrategyError> {
    let pick: fn(&[Candidate<'_>], &mut Rng) -> Pick = match name {
        "random" => random::pick,
        "first" => first::pick,
        "last" => last::pick,
        _ => {
            return Err(StrategyError::Unknown {
                name: name.to_owned(),
            });
        }
    };
    let accepted = Tag::accepted();
    let labels = project.all_labels().await?;
    let done: HashSet<&ImageId> = labels
        .iter()
        .filter(|label| label.tag == accepted)
        .map(|label| &label.image)
        .collect();
    let held_out = project.test_images().await?;
    let mut open: Vec<ImageRow> = project
        .images()
        .await?
        .into_iter()
        .filter(|image| !done.contains(&image.id) && !held_out.contains(image.id.as_str()))
        .collect();
    if open.is_empty() {
        return Ok(None);
    }

    let database = &project.store().database;
    let servings: HashMap<String, i64> = database.last_servings(name).await?.into_iter().collect();
    let now_ms = project.clock().now_ms();
    let served_s_ago = |id: &ImageId| {
        servings
            .get(id.as_str())
            .map(|at_ms| (now_ms - at_ms).div_euclid(1000))
    };
    let candidates: Vec<Candidate<'_>> = open
        .iter()
        .map(|image| Candidate {
            id: &image.id,
            served_s_ago: served_s_ago(&image.id),
        })
        .collect();
    let draw = u64::try_from(database.serving_count().await?).unwrap_or_default();
    let mut rng = Rng::new(project.seed()).named("strategy").stream(draw);
    let (index, extras) = pick(&candidates, &mut rng);
    let image = open.swap_remove(index.min(open.len() - 1));
    record::serving(project, name, client, &image).await?;
    Ok(Some(Choice { image, extras }))
}

#[cfg(test)]
mod tests;
