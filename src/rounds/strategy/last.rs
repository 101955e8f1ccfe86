//! The last image by id.

use super::{Candidate, Map, Pick, Rng};

pub(super) fn pick(candidates: &[Candidate<'_>], _: &mut Rng) -> Pick {
    let index = (0..candidates.len())
        .max_by_key(|index| candidates[*index].id)
        .unwrap_or_default();
    (index, Map::new())
}
