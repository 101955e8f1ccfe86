//! Which image an annotator gets next, among the images without an accepted label.
//!
//! Every serving is recorded: in the image's info, as clients know it, and as a row, so that the
//! next choice of the same strategy prefers what it served longest ago.

mod first;
mod last;
mod random;

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::project::{ImageId, ImageRow, Map, Project, ProjectError, Tag};
use crate::rng::Rng;
use crate::store::{StoreError, rows};

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

/// The next image for a client; none when every image has an accepted label.
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
    let mut open: Vec<ImageRow> = project
        .images()
        .await?
        .into_iter()
        .filter(|image| !done.contains(&image.id))
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
    record(project, name, client, &image).await?;
    Ok(Some(Choice { image, extras }))
}

/// Notes the serving, one entry per strategy in the image's info.
async fn record(
    project: &Project,
    name: &str,
    client: &str,
    image: &ImageRow,
) -> Result<(), StrategyError> {
    let mut served = image
        .info
        .get("strategy")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    served.insert(
        name.to_owned(),
        json!({"ts": project.clock().now_s(), "client_id": client}),
    );
    let info = Map::from_iter([("strategy".to_owned(), Value::Object(served))]);
    let mut tx = project.store().database.begin().await?;
    project.merge_image_info(&mut tx, &image.id, info).await?;
    rows::add_serving(
        &mut tx,
        name,
        image.id.as_str(),
        client,
        project.clock().now_ms(),
    )
    .await?;
    Ok(tx.commit().await.map_err(StoreError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tests::{Bench, id};
    use crate::rng::Rng;
    use proptest::prelude::*;

    async fn choose(bench: &Bench, name: &str) -> Option<String> {
        next(&bench.project, name, "client")
            .await
            .unwrap()
            .map(|choice| choice.image.id.to_string())
    }

    #[tokio::test]
    async fn first_and_last_go_by_id_among_images_without_an_accepted_label() {
        let bench = Bench::with(&["b.nii.gz"]).await;
        Bench::write_image(&bench.project.studies().join("a.nii.gz"));
        Bench::write_image(&bench.project.studies().join("c.nii.gz"));
        bench.project.rescan().await.unwrap();
        assert_eq!(choose(&bench, "first").await.as_deref(), Some("a"));
        assert_eq!(choose(&bench, "last").await.as_deref(), Some("c"));
        bench.submit("a", "final", &[1]).await.unwrap();
        bench.submit("c", "final", &[1]).await.unwrap();
        bench.submit("b", "original", &[1]).await.unwrap();
        assert_eq!(choose(&bench, "first").await.as_deref(), Some("b"));
        assert_eq!(choose(&bench, "last").await.as_deref(), Some("b"));
        bench.submit("b", "final", &[1]).await.unwrap();
        for name in NAMES {
            assert_eq!(choose(&bench, name).await, None);
        }
        assert!(matches!(
            next(&bench.project, "best", "c").await,
            Err(StrategyError::Unknown { .. })
        ));
    }

    #[tokio::test]
    async fn random_serves_every_image_once_before_any_twice_and_notes_it() {
        let bench = Bench::with(&["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz"]).await;
        // The first time there is no record of a serving in the answer, afterwards there is.
        let choice = next(&bench.project, "random", "client")
            .await
            .unwrap()
            .unwrap();
        assert!(!choice.image.info.contains_key("strategy"));
        assert!(choice.extras["weight"].as_f64().unwrap() > 0.0);
        let mut served = vec![choice.image.id.to_string()];
        for _ in 0..3 {
            served.push(choose(&bench, "random").await.unwrap());
        }
        served.sort();
        assert_eq!(served, ["a", "b", "c", "d"]);
        // All were served within this second; there is still a choice.
        assert!(choose(&bench, "random").await.is_some());
        choose(&bench, "first").await;
        let info = bench.project.image(&id("a")).await.unwrap().unwrap().info;
        assert_eq!(
            info["strategy"]["random"],
            json!({"ts": 1_700_000_000, "client_id": "client"})
        );
        assert_eq!(
            info["strategy"]["first"],
            json!({"ts": 1_700_000_000, "client_id": "client"})
        );
    }

    #[tokio::test]
    async fn the_same_seed_and_history_give_the_same_order() {
        let names = ["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz", "e.nii.gz"];
        let mut orders = Vec::new();
        for _ in 0..2 {
            let bench = Bench::with(&names).await;
            let mut order = Vec::new();
            for _ in 0..8 {
                order.push(choose(&bench, "random").await.unwrap());
                bench.clock.advance_ms(1000);
            }
            orders.push(order);
        }
        assert_eq!(orders[0], orders[1]);
    }

    proptest! {
        #[test]
        fn random_is_always_a_candidate_and_prefers_fresh_ones(
            served in prop::collection::vec(prop::option::of(-5..1000i64), 1..20),
            seed in any::<u64>(),
        ) {
            let id = id("x");
            let candidates: Vec<_> = served.iter().map(|&served_s_ago| Candidate { id: &id, served_s_ago }).collect();
            let (index, extras) = random::pick(&candidates, &mut Rng::new(seed));
            prop_assert!(index < served.len());
            prop_assert!(served[index].is_none() || served.iter().all(Option::is_some));
            let weight = extras["weight"].as_f64().unwrap();
            prop_assert!(weight > 0.0 && weight <= 1.0);
        }
    }

    #[test]
    fn random_is_the_more_likely_the_longer_ago() {
        let id = id("x");
        let candidates = [Some(900), Some(100)].map(|served_s_ago| Candidate {
            id: &id,
            served_s_ago,
        });
        let mut rng = Rng::new(7);
        let longest = (0..10_000)
            .filter(|_| random::pick(&candidates, &mut rng).0 == 0)
            .count();
        assert!((8_800..9_200).contains(&longest), "{longest}");
    }
}
