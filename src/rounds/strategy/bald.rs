//! BALD: the image on whose voxels the answers of the model disagree.
//!
//! Mutual information of prediction and weights, `H(mean_m p_m) - mean_m H(p_m)` over the answers m of a voxel: draws of
//! dropout, flips, versions, and windows that overlap (Houlsby and others 2011, arXiv 1112.5745; Gal and others, ICML 2017).
//! Not what no answer can know (noise), which all answers agree on. Over an image the mean of the largest values.

use super::entropy;
use super::pool::Pick;
use super::{Pool, Rng};

/// Mutual information in nats from the mean probabilities of a voxel and the mean entropy of its answers.
pub fn voxel(mean: &[f32], expected_entropy: f32) -> f32 {
    (entropy::voxel(mean) - expected_entropy).max(0.0)
}

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    pool.highest(rng, |scores, _| scores.bald)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Two sure answers that contradict each other, and two that know as little as each other.
        assert!((voxel(&[0.5, 0.5], 0.0) - 2f32.ln()).abs() < 1e-6);
        assert_eq!(voxel(&[0.5, 0.5], 2f32.ln()), 0.0);
    }
}
