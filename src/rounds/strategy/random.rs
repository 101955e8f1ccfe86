//! A random image: one that was never served if there is any, otherwise the more likely the longer
//! ago it was served.

use serde_json::json;

use super::pool::{Candidate, Pick};
use super::{Map, Pool, Rng};

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    let candidates = &pool.candidates;
    let fresh = candidates
        .iter()
        .any(|candidate| candidate.served_s_ago.is_none());
    // At least 1, so that candidates that were all served within this second still have a chance.
    let weight = |candidate: &Candidate<'_>| match candidate.served_s_ago {
        None => 1.0,
        Some(_) if fresh => 0.0,
        Some(seconds) => seconds.max(1) as f64,
    };
    let weights: Vec<f64> = candidates.iter().map(weight).collect();
    let chosen = weighted(&weights, rng);
    let share = weights.get(chosen).unwrap_or(&0.0) / weights.iter().sum::<f64>();
    (
        chosen,
        Map::from_iter([("weight".to_owned(), json!(share))]),
    )
}

/// A position drawn with these weights, which are not negative; the last one with any weight when rounding leaves some.
pub(super) fn weighted(weights: &[f64], rng: &mut Rng) -> usize {
    let mut left = rng.uniform() * weights.iter().sum::<f64>();
    let mut chosen = 0;
    for (index, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        chosen = index;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    chosen
}
