//! ClaSP-style class-balanced entropy: two of three images for the structures in turn, the third for the whole.
//!
//! Two thirds of the budget are divided among the structures, each of which takes the image with the largest
//! `PE * p_c` of its class c; the rest goes by the entropy alone. Both with the noise of [PowerPE](super::power), whose
//! `beta` rises from 1 to 100 over the rounds: variety at first, the most uncertain later. After ClaSP PE (TMLR 2026,
//! arXiv 2601.13677), which queries patches; here whole images are served, so one image is one draw.

use super::pool::Pick;
use super::power::noisy;
use super::{Pool, Rng};

/// Rounds over which the noise fades.
const ROUNDS: f64 = 5.0;
/// `beta` after them.
const LAST_BETA: f64 = 100.0;

/// Entropy of a voxel as far as it concerns a class of probability `p`.
pub fn voxel(entropy: f32, p: f32) -> f32 {
    entropy * p
}

/// `beta` after `round` rounds: 1, then up to 100, exponentially.
fn beta(round: usize) -> f64 {
    LAST_BETA.powf((round as f64 / ROUNDS).min(1.0))
}

/// The structure whose turn it is, from 0; none when it is the turn of the whole.
fn turn(drawn: u64, structures: usize) -> Option<usize> {
    let slot = drawn % 3;
    if slot == 2 || structures == 0 {
        return None;
    }
    usize::try_from((drawn / 3 * 2 + slot) % structures as u64).ok()
}

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    let beta = beta(pool.round);
    let structures = pool
        .uncertain()
        .first()
        .map_or(0, |(_, scores)| scores.classes.len());
    match turn(pool.drawn, structures) {
        Some(class) => pool.highest(rng, |scores, rng| {
            noisy(
                scores.classes.get(class).map_or(0.0, |c| c.entropy),
                beta,
                rng,
            )
        }),
        None => pool.highest(rng, |scores, rng| noisy(scores.entropy, beta, rng)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_has_its_turn_and_the_whole_every_third() {
        let turns: Vec<_> = (0..9).map(|drawn| turn(drawn, 4)).collect();
        let structure = [Some(0), Some(1), None, Some(2), Some(3), None];
        assert_eq!(turns[..6], structure);
        assert_eq!(turns[6..], structure[..3]);
        assert_eq!(turn(0, 0), None);
    }

    #[test]
    fn noise_fades_over_the_rounds() {
        assert_eq!((beta(0), beta(5), beta(50)), (1.0, 100.0, 100.0));
        assert!(beta(2) > beta(1));
    }
}
