//! A random image: one that was never served if there is any, otherwise the more likely the longer
//! ago it was served.

use serde_json::json;

use super::{Candidate, Map, Pick, Rng};

pub(super) fn pick(candidates: &[Candidate<'_>], rng: &mut Rng) -> Pick {
    let fresh = candidates
        .iter()
        .any(|candidate| candidate.served_s_ago.is_none());
    // At least 1, so that candidates that were all served within this second still have a chance.
    let weight = |candidate: &Candidate<'_>| match candidate.served_s_ago {
        None => 1.0,
        Some(_) if fresh => 0.0,
        Some(seconds) => seconds.max(1) as f64,
    };
    let total: f64 = candidates.iter().map(weight).sum();
    let mut left = rng.uniform() * total;
    let mut chosen = 0;
    for (index, candidate) in candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| weight(candidate) > 0.0)
    {
        chosen = index;
        left -= weight(candidate);
        if left < 0.0 {
            break;
        }
    }
    let share = candidates.get(chosen).map_or(0.0, weight) / total;
    (
        chosen,
        Map::from_iter([("weight".to_owned(), json!(share))]),
    )
}
