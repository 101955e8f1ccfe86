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

/// Whether there is such a strategy.
///
/// # Errors
/// [`StrategyError::Unknown`] for a name that is not in [`NAMES`].
pub fn check(name: &str) -> Result<(), StrategyError> {
    if NAMES.contains(&name) {
        return Ok(());
    }
    Err(StrategyError::Unknown {
        name: name.to_owned(),
    })
}

/// Images that may be offered, and what was offered before.
struct Pool {
    open: Vec<ImageRow>,
    /// Image and when the strategy last served it, milliseconds since 1970-01-01 UTC.
    servings: HashMap<String, i64>,
    now_ms: i64,
    /// Number of the next draw.
    draw: u64,
}

impl Pool {
    async fn of(
        project: &Project,
        name: &str,
        taken: &HashSet<String>,
    ) -> Result<Self, StrategyError> {
        let accepted = Tag::accepted();
        let labels = project.all_labels().await?;
        let done: HashSet<&ImageId> = labels
            .iter()
            .filter(|label| label.tag == accepted)
            .map(|label| &label.image)
            .collect();
        let held_out = project.test_images().await?;
        let free = |image: &ImageRow| {
            let id = image.id.as_str();
            !done.contains(&image.id) && !held_out.contains(id) && !taken.contains(id)
        };
        let open = project.images().await?.into_iter().filter(free).collect();
        let database = &project.store().database;
        let servings = database.last_servings(name).await?.into_iter().collect();
        let draw = database.serving_count().await?;
        Ok(Self {
            open,
            servings,
            now_ms: project.clock().now_ms(),
            draw: u64::try_from(draw).unwrap_or_default(),
        })
    }

    /// Takes the next image out; none when none is left.
    fn pick(&mut self, project: &Project, name: &str) -> Result<Option<Choice>, StrategyError> {
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
        if self.open.is_empty() {
            return Ok(None);
        }
        let served_s_ago = |id: &ImageId| {
            self.servings
                .get(id.as_str())
                .map(|at_ms| (self.now_ms - at_ms).div_euclid(1000))
        };
        let candidates: Vec<Candidate<'_>> = self
            .open
            .iter()
            .map(|image| Candidate {
                id: &image.id,
                served_s_ago: served_s_ago(&image.id),
            })
            .collect();
        let mut rng = Rng::new(project.seed()).named("strategy").stream(self.draw);
        let (index, extras) = pick(&candidates, &mut rng);
        self.draw += 1;
        let image = self.open.swap_remove(index.min(self.open.len() - 1));
        Ok(Some(Choice { image, extras }))
    }
}

/// The next image for a client, none of those in `taken`; none when every other image but the test images has an accepted
/// label.
///
/// # Errors
/// [`StrategyError::Unknown`] for a name that is not in [`NAMES`].
pub async fn next(
    project: &Project,
    name: &str,
    client: &str,
    taken: &HashSet<String>,
) -> Result<Option<Choice>, StrategyError> {
    let mut pool = Pool::of(project, name, taken).await?;
    let Some(choice) = pool.pick(project, name)? else {
        return Ok(None);
    };
    record::serving(project, name, client, &choice.image).await?;
    Ok(Some(choice))
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
    let known = used.filter(|name| NAMES.contains(&name.as_str()));
    let name = known.as_deref().unwrap_or("random");
    let mut pool = Pool::of(project, name, taken).await?;
    let mut images = Vec::new();
    for _ in 0..count {
        let Some(choice) = pool.pick(project, name)? else {
            break;
        };
        images.push(choice.image);
    }
    Ok(images)
}

#[cfg(test)]
mod tests;
