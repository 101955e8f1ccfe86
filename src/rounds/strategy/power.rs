//! PowerPE and PowerBALD: scores with noise, so that a batch is not the same finding several times.
//!
//! The image with the largest `ln(score) + Gumbel(0, 1 / beta)`, which draws images with probability in proportion to
//! `score^beta` without putting any back (Kirsch and others, TMLR 2023, arXiv 2106.12059); `beta = 1`.

use super::pool::Pick;
use super::{Pool, Rng};

const BETA: f64 = 1.0;

/// The score with its noise; larger `beta` is less noise.
pub(super) fn noisy(score: f64, beta: f64, rng: &mut Rng) -> f64 {
    // 1 - u is never 0; a score of 0 stays below every other.
    let gumbel = -(-(1.0 - rng.uniform()).ln()).max(f64::MIN_POSITIVE).ln();
    score.max(f64::MIN_POSITIVE).ln() + gumbel / beta
}

pub(super) fn pick_entropy(pool: &Pool, rng: &mut Rng) -> Pick {
    pool.highest(rng, |scores, rng| noisy(scores.entropy, BETA, rng))
}

pub(super) fn pick_bald(pool: &Pool, rng: &mut Rng) -> Pick {
    pool.highest(rng, |scores, rng| noisy(scores.bald, BETA, rng))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_drawn_in_proportion_to_their_scores() {
        let mut rng = Rng::new(3);
        let mut first = |beta: f64| {
            let wins = (0..20_000)
                .filter(|_| noisy(3.0, beta, &mut rng) > noisy(1.0, beta, &mut rng))
                .count();
            wins as f64 / 20_000.0
        };
        assert!((first(1.0) - 0.75).abs() < 0.02, "3 : 1");
        assert!((first(2.0) - 0.9).abs() < 0.02, "9 : 1");
        assert!(first(100.0) == 1.0);
        assert!(noisy(0.0, 1.0, &mut rng).is_finite());
    }
}
