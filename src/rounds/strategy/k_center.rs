//! k-center: the image that is least like any labelled one.
//!
//! Greedy k-center on pooled features: the candidate with the largest distance to its nearest labelled image (Sener and
//! Savarese, ICLR 2018, arXiv 1708.00489). Without any labelled image the most typical one is first.

use super::pool::{Pick, told};
use super::typicality::{self, Described};
use super::{Pool, Rng};

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    let described = Described::of(pool);
    let Described { space, open, done } = &described;
    if open.is_empty() {
        return pool.instead(rng);
    }
    if done.is_empty() {
        return typicality::pick(pool, rng);
    }
    let to_labelled = |at: usize| {
        done.iter()
            .map(|other| space.distance(at, *other))
            .fold(f64::INFINITY, f64::min)
    };
    let (mut best, mut farthest) = (open[0].0, f64::NEG_INFINITY);
    for (index, at) in open {
        let distance = to_labelled(*at);
        if distance > farthest {
            (best, farthest) = (*index, distance);
        }
    }
    (best, told(farthest))
}
