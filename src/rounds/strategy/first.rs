//! The first image by id.

use super::pool::Pick;
use super::{Map, Pool, Rng};

pub(super) fn pick(pool: &Pool, _: &mut Rng) -> Pick {
    let index = (0..pool.candidates.len())
        .min_by_key(|index| pool.candidates[*index].id)
        .unwrap_or_default();
    (index, Map::new())
}
