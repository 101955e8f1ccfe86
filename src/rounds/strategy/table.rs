//! All strategies by name, and the choice of one image or of several.

use super::pool::Pick;
use super::{
    Map, Pool, Rng, StrategyError, auto, bald, clasp, cold_start, entropy, first, foreground,
    k_center, last, margin, power, random, stochastic, typicality,
};

/// One way to choose.
pub struct Strategy {
    /// What clients call it.
    pub name: &'static str,
    /// One line about it.
    pub description: &'static str,
    /// Whether it goes by what the model says of the images.
    pub needs_scores: bool,
    method: Method,
}

#[derive(Clone, Copy)]
enum Method {
    /// One image after the other.
    One(fn(&Pool, &mut Rng) -> Pick),
    /// All at once.
    Batch(fn(&Pool, usize, &mut Rng) -> Vec<usize>),
}

const fn plain(
    name: &'static str,
    description: &'static str,
    pick: fn(&Pool, &mut Rng) -> Pick,
) -> Strategy {
    Strategy {
        name,
        description,
        needs_scores: false,
        method: Method::One(pick),
    }
}

const fn scored(
    name: &'static str,
    description: &'static str,
    pick: fn(&Pool, &mut Rng) -> Pick,
) -> Strategy {
    Strategy {
        needs_scores: true,
        ..plain(name, description, pick)
    }
}

/// The strategies there are; clients offer the first one first.
#[rustfmt::skip] // a table
pub static ALL: [Strategy; 15] = [
    scored("auto", "The most typical image at first, the most uncertain one, structures in turn, after the first round", auto::pick),
    plain("random", "A random image without label; those that were offered long ago or never come first", random::pick),
    plain("first", "The first image without label, by id", first::pick),
    plain("last", "The last image without label, by id", last::pick),
    scored("foreground_random", "A random image, likelier with more of a random structure in the prediction", foreground::pick),
    scored("clasp", "The most uncertain image, structures in turn (ClaSP)", clasp::pick),
    scored("entropy", "The image with the most uncertain voxels", entropy::pick),
    scored("power_entropy", "As entropy, with noise for variety", power::pick_entropy),
    scored("margin", "The image whose voxels are nearest to a tie of two structures", margin::pick),
    scored("bald", "The image on which several answers of the model disagree most", bald::pick),
    scored("power_bald", "As bald, with noise for variety", power::pick_bald),
    Strategy {
        name: "stochastic_batch",
        description: "From the most uncertain of several random groups of images",
        needs_scores: true,
        method: Method::Batch(stochastic::batch),
    },
    scored("k_center", "The image that is least like any labelled one", k_center::pick),
    scored("typicality", "The most typical image of the largest group without a label", typicality::pick),
    scored("cold_start", "A structure that is in no label yet where one is predicted, else the most typical image", cold_start::pick),
];

/// The strategy of a name.
///
/// # Errors
/// [`StrategyError::Unknown`] for any other name.
pub fn find(name: &str) -> Result<&'static Strategy, StrategyError> {
    let found = ALL.iter().find(|strategy| strategy.name == name);
    found.ok_or_else(|| StrategyError::Unknown {
        name: name.to_owned(),
    })
}

/// Positions of `count` images among the candidates of a pool, in the order of choice; all of them where there are fewer.
pub fn choose(strategy: &Strategy, mut pool: Pool, count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut open: Vec<usize> = (0..pool.candidates.len()).collect();
    if let Method::Batch(batch) = strategy.method {
        let chosen = batch(&pool, count, rng);
        if !chosen.is_empty() {
            return chosen;
        }
    }
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count && !open.is_empty() {
        let (index, _) = one(strategy, &pool, rng);
        let index = index.min(open.len() - 1);
        pool.take(index);
        chosen.push(open.remove(index));
    }
    chosen
}

/// One image and what to tell about it. There is at least one candidate.
pub(super) fn one(strategy: &Strategy, pool: &Pool, rng: &mut Rng) -> Pick {
    match strategy.method {
        Method::One(pick) => pick(pool, rng),
        Method::Batch(batch) => match batch(pool, stochastic::SERVED, rng).first() {
            Some(index) => (*index, Map::new()),
            None => pool.instead(rng),
        },
    }
}
