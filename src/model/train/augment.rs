//! Random changes of a training patch. A patch's changes are a pure function of its random stream.

use crate::rng::Rng;

/// Flips left and right with probability one half. `mirror[value]` is the label of the structure on the other side, so
/// that a mirrored left kidney is a right kidney; without a table nothing is flipped.
///
/// Only this axis is flipped: scans are always in LPS order here, so a patient is never upside down.
pub fn flip_left_right(
    input: &mut [f32],
    labels: &mut [u8],
    size: [usize; 3],
    mirror: Option<&[u8]>,
    rng: &mut Rng,
) {
    let flip = rng.chance(0.5);
    let Some(mirror) = mirror.filter(|_| flip) else {
        return;
    };
    let width = size[2];
    input.chunks_exact_mut(width).for_each(<[f32]>::reverse);
    labels.chunks_exact_mut(width).for_each(|row| {
        row.reverse();
        for label in row {
            *label = mirror[usize::from(*label)];
        }
    });
}

/// Changes brightness, contrast and gamma, and adds noise, each with its own probability. Input and result lie around
/// [-1, 1].
pub fn intensity(input: &mut [f32], rng: &mut Rng) {
    if rng.chance(0.3) {
        let (scale, shift) = (rng.range(0.85, 1.15) as f32, rng.range(-0.08, 0.08) as f32);
        input.iter_mut().for_each(|v| *v = *v * scale + shift);
    }
    if rng.chance(0.3) {
        let gamma = rng.range(0.7, 1.5) as f32;
        for v in input.iter_mut() {
            let unit = ((*v + 1.0) * 0.5).clamp(0.0, 1.0);
            *v = unit.powf(gamma) * 2.0 - 1.0;
        }
    }
    if rng.chance(0.2) {
        let sigma = rng.range(0.005, 0.03);
        input
            .iter_mut()
            .for_each(|v| *v += (rng.normal() * sigma) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_exchanges_the_sides() {
        let flipped = (0..20).find_map(|seed| {
            let (mut input, mut labels) = (vec![1.0, 2.0, 3.0], vec![1, 0, 3]);
            flip_left_right(
                &mut input,
                &mut labels,
                [1, 1, 3],
                Some(&[0, 2, 1, 3]),
                &mut Rng::new(seed),
            );
            (input[0] == 3.0).then_some((input, labels))
        });
        assert_eq!(flipped, Some((vec![3.0, 2.0, 1.0], vec![3, 0, 2])));
    }

    #[test]
    fn without_a_table_nothing_flips() {
        for seed in 0..20 {
            let (mut input, mut labels) = (vec![1.0, 2.0], vec![0, 1]);
            flip_left_right(
                &mut input,
                &mut labels,
                [1, 1, 2],
                None,
                &mut Rng::new(seed),
            );
            assert_eq!((input, labels), (vec![1.0, 2.0], vec![0, 1]));
        }
    }

    #[test]
    fn the_same_stream_gives_the_same_patch() {
        let run = |seed| {
            let mut input: Vec<f32> = (0..64).map(|i| i as f32 / 32.0 - 1.0).collect();
            intensity(&mut input, &mut Rng::new(seed));
            input
        };
        assert_eq!(run(3), run(3));
        assert!((0..20).any(|seed| run(seed) != run(seed + 1)));
        assert!((0..50).all(|seed| run(seed).iter().all(|v| v.is_finite() && v.abs() < 2.0)));
    }
}
