//! Predictive entropy: the image with the most uncertain voxels.
//!
//! `PE = -sum_c p_c ln p_c` of the mean probabilities of a voxel (Shannon), and the mean of its largest values over an
//! image ([`crate::rounds::scoring::TOP_SHARE`] of the voxels): a mean over all voxels would tell how much background there
//! is. Best of the plain scores in nnActive (Lueth and others, TMLR 2025, arXiv 2511.19183).

use super::pool::Pick;
use super::{Pool, Rng};

/// Entropy in nats of the class probabilities of a voxel.
pub fn voxel(p: &[f32]) -> f32 {
    p.iter()
        .filter(|p| **p > 0.0)
        .map(|p| -p * p.ln())
        .sum::<f32>()
        .max(0.0)
}

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    pool.highest(rng, |scores, _| scores.entropy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(voxel(&[1.0, 0.0, 0.0]), 0.0);
        assert!((voxel(&[0.25; 4]) - 4f32.ln()).abs() < 1e-6);
        assert!((voxel(&[0.5, 0.5, 0.0]) - 2f32.ln()).abs() < 1e-6);
    }
}
