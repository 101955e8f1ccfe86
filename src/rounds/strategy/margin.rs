//! Margin: the image whose voxels are nearest to a tie.
//!
//! `1 - (p_first - p_second)` of the two most likely classes of a voxel (Scheffer and others, IDA 2001), 1 at a tie; over an
//! image the mean of the largest values, as for [entropy](super::entropy).

use super::pool::Pick;
use super::{Pool, Rng};

/// How near the two most likely classes of a voxel are to each other, 0 to 1.
pub fn voxel(p: &[f32]) -> f32 {
    let (mut first, mut second) = (0f32, 0f32);
    for &p in p {
        if p > first {
            (first, second) = (p, first);
        } else if p > second {
            second = p;
        }
    }
    1.0 - (first - second)
}

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    pool.highest(rng, |scores, _| scores.margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(voxel(&[1.0, 0.0, 0.0]), 0.0);
        assert_eq!(voxel(&[0.125, 0.25, 0.625]), 0.625);
        assert_eq!(voxel(&[0.5, 0.0, 0.5]), 1.0);
    }
}
