//! Stochastic batches: of several random batches the one with the highest summed entropy.
//!
//! Scores are compared between whole random batches, not between images, so that a batch stays mixed (Gaillochet and
//! others, Medical Image Analysis 2023, arXiv 2301.07670). The server serves one image at a time: the first of such a batch.

use super::{Pool, Rng};

/// Random batches that are compared.
const BATCHES: usize = 20;
/// Images of a batch when only one is asked for.
pub(super) const SERVED: usize = 4;

/// Positions of the batch of `count` images; none while there are no scores.
pub(super) fn batch(pool: &Pool, count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut scored = pool.uncertain();
    let count = count.min(scored.len());
    let mut best: (f64, Vec<usize>) = (f64::NEG_INFINITY, Vec::new());
    for _ in 0..BATCHES {
        rng.shuffle(&mut scored);
        let sum = scored[..count].iter().map(|(_, s)| s.entropy).sum();
        if sum > best.0 {
            best = (sum, scored[..count].iter().map(|(i, _)| *i).collect());
        }
    }
    best.1
}
