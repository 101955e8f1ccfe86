//! The map of classes, and the blend.

use super::{FusionOptions, Scheme};
use crate::rng::Rng;

/// Share of the blocks that are blended.
const FOREGROUND: f64 = 0.7;
/// Sides `[z, y, x]` of a block, smallest and largest, as published for patches of 64 x 128 x 128.
const BLOCK: [[usize; 3]; 2] = [[5, 8, 8], [20, 32, 32]];
/// The same of a box.
const BOX: [[usize; 3]; 2] = [[8, 8, 8], [40, 80, 80]];
/// Number of boxes, smallest and largest.
const BOXES: [usize; 2] = [10, 40];

/// Class of each voxel: 0 is background, k is blended with weight k / K.
pub fn classes(options: &FusionOptions, rng: &mut Rng) -> Vec<u8> {
    let highest = options.classes - 1;
    match options.scheme {
        Scheme::Blocks => blocks(options.patch, highest, rng),
        Scheme::Boxes => boxes(options.patch, highest, rng),
    }
}

/// `X = a * P1 + (1 - a) * P2` with `a` = class / `highest`.
pub fn blend(foreground: &[f32], background: &[f32], label: &[u8], highest: usize) -> Vec<f32> {
    let weights: Vec<f32> = (0..=highest).map(|k| k as f32 / highest as f32).collect();
    let pairs = foreground.iter().zip(background).zip(label);
    pairs
        .map(|((&p1, &p2), &class)| {
            let weight = weights[usize::from(class).min(highest)];
            weight * p1 + (1.0 - weight) * p2
        })
        .collect()
}

/// A regular grid of blocks of one size; exactly the foreground's share of them is blended, each with a class of its
/// own. The rest of the patch beyond the grid is background.
fn blocks(patch: [usize; 3], highest: usize, rng: &mut Rng) -> Vec<u8> {
    let sides = draw_sides(BLOCK, patch.map(|side| side / 2), rng);
    let offset = [0, 1, 2].map(|axis| rng.below(patch[axis] % sides[axis] + 1));
    let grid = [0, 1, 2].map(|axis| patch[axis] / sides[axis]);
    let count: usize = grid.iter().product();
    let mut blended: Vec<bool> = vec![false; count];
    blended[..(count as f64 * FOREGROUND) as usize].fill(true);
    rng.shuffle(&mut blended);
    let mut label = vec![0; patch.iter().product()];
    for (block, _) in blended.iter().enumerate().filter(|(_, blended)| **blended) {
        let place = [
            block / (grid[1] * grid[2]),
            block / grid[2] % grid[1],
            block % grid[2],
        ];
        let start = [0, 1, 2].map(|axis| offset[axis] + place[axis] * sides[axis]);
        fill(&mut label, patch, start, sides, draw_class(highest, rng));
    }
    label
}

/// Boxes one after another, later ones over earlier ones, so that their union is irregular.
fn boxes(patch: [usize; 3], highest: usize, rng: &mut Rng) -> Vec<u8> {
    let mut label = vec![0; patch.iter().product()];
    for _ in 0..draw(BOXES, rng) {
        let sides = draw_sides(BOX, patch.map(|side| side * 5 / 8), rng);
        let start = [0, 1, 2].map(|axis| rng.below(patch[axis] - sides[axis] + 1));
        fill(&mut label, patch, start, sides, draw_class(highest, rng));
    }
    label
}

fn draw_class(highest: usize, rng: &mut Rng) -> u8 {
    1 + rng.below(highest) as u8
}

/// Sides as published, but at most `most`, so that small patches hold several blocks too.
fn draw_sides([min, max]: [[usize; 3]; 2], most: [usize; 3], rng: &mut Rng) -> [usize; 3] {
    [0, 1, 2].map(|axis| {
        let max = max[axis].min(most[axis]).max(1);
        draw([min[axis].min(max), max], rng)
    })
}

/// A whole number, both ends included.
fn draw([low, high]: [usize; 2], rng: &mut Rng) -> usize {
    low + rng.below(high - low + 1)
}

fn fill(label: &mut [u8], patch: [usize; 3], start: [usize; 3], sides: [usize; 3], class: u8) {
    for z in start[0]..start[0] + sides[0] {
        for y in start[1]..start[1] + sides[1] {
            let row = (z * patch[1] + y) * patch[2] + start[2];
            label[row..row + sides[2]].fill(class);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::volume_fusion::tests::assert_even;

    const PATCH: [usize; 3] = [64, 128, 128];

    /// The side and offset of the grid that [`blocks`] drew with this stream.
    fn grid_of(patch: [usize; 3], mut rng: Rng) -> ([usize; 3], [usize; 3]) {
        let sides = draw_sides(BLOCK, patch.map(|side| side / 2), &mut rng);
        (
            sides,
            [0, 1, 2].map(|axis| rng.below(patch[axis] % sides[axis] + 1)),
        )
    }

    #[test]
    fn a_block_has_one_class_and_seven_in_ten_are_blended() {
        for seed in 0..60 {
            let patch = [[64, 128, 128], [16, 32, 32], [24, 20, 50]][seed as usize % 3];
            let label = blocks(patch, 4, &mut Rng::new(seed));
            let (sides, offset) = grid_of(patch, Rng::new(seed));
            let grid = [0, 1, 2].map(|axis| patch[axis] / sides[axis]);
            let at = |p: [usize; 3]| label[(p[0] * patch[1] + p[1]) * patch[2] + p[2]];
            let mut blended = 0;
            for z in 0..patch[0] {
                for y in 0..patch[1] {
                    for x in 0..patch[2] {
                        let p = [z, y, x];
                        let inside = (0..3)
                            .all(|a| p[a] >= offset[a] && p[a] < offset[a] + grid[a] * sides[a]);
                        if !inside {
                            assert_eq!(at(p), 0, "the border is background");
                            continue;
                        }
                        let first =
                            [0, 1, 2].map(|a| offset[a] + (p[a] - offset[a]) / sides[a] * sides[a]);
                        assert_eq!(at(p), at(first), "a block has one class");
                        blended += usize::from(p == first && at(p) > 0);
                    }
                }
            }
            let count: usize = grid.iter().product();
            assert_eq!(blended, (count as f64 * 0.7) as usize);
        }
    }

    #[test]
    fn classes_of_blocks_come_as_often_as_published() {
        let (mut histogram, mut covered, samples) = ([0f64; 5], 0f64, 200);
        for seed in 0..samples {
            let (sides, _) = grid_of(PATCH, Rng::new(seed));
            let grid: usize = (0..3).map(|a| PATCH[a] / sides[a]).product();
            let blended = (grid as f64 * 0.7).floor() * sides.iter().product::<usize>() as f64;
            for class in blocks(PATCH, 4, &mut Rng::new(seed)) {
                histogram[usize::from(class)] += 1.0;
            }
            covered += blended;
        }
        let total: f64 = histogram.iter().sum();
        let blended: f64 = histogram[1..].iter().sum();
        assert_eq!(blended, covered, "0.7 of the blocks, rounded down");
        for share in histogram[1..].iter().map(|count| count / blended) {
            assert!((share - 0.25).abs() < 0.015, "{histogram:?}");
        }
        assert!(
            (0.5..0.7).contains(&(blended / total)),
            "{}",
            blended / total
        );
    }

    #[test]
    fn sides_come_as_often_and_offsets_reach_both_ends() {
        let mut seen = [const { Vec::new() }; 3];
        let mut shifted = [false; 3];
        for seed in 0..3000 {
            let (sides, offset) = grid_of(PATCH, Rng::new(seed));
            for axis in 0..3 {
                seen[axis].push(sides[axis]);
                let rest = PATCH[axis] % sides[axis];
                assert!(offset[axis] <= rest);
                shifted[axis] |= rest > 0 && offset[axis] == rest;
            }
        }
        for (sides, ends) in seen.iter().zip([[5, 20], [8, 32], [8, 32]]) {
            assert_even(sides, ends);
        }
        assert_eq!(shifted, [true; 3]);
    }

    #[test]
    fn boxes_are_as_many_and_as_large_as_published_and_later_ones_lie_above() {
        let (mut counts, mut overlaps) = (Vec::new(), 0);
        let mut seen = [const { Vec::new() }; 3];
        for seed in 0..400 {
            let (label, mut rng) = (boxes(PATCH, 4, &mut Rng::new(seed)), Rng::new(seed));
            let (mut expected, mut covered) = (vec![0; label.len()], 0);
            counts.push(draw([10, 40], &mut rng));
            for _ in 0..counts[seed as usize] {
                let sides = [[8, 40], [8, 80], [8, 80]].map(|ends| draw(ends, &mut rng));
                let start = [0, 1, 2].map(|axis| rng.below(PATCH[axis] - sides[axis] + 1));
                fill(&mut expected, PATCH, start, sides, draw_class(4, &mut rng));
                covered += sides.iter().product::<usize>();
                (0..3).for_each(|axis| seen[axis].push(sides[axis]));
            }
            assert!(label == expected, "seed {seed}");
            overlaps += usize::from(covered > label.iter().filter(|class| **class > 0).count());
        }
        assert_eq!(overlaps, 400, "some boxes of every sample lie over others");
        assert_even(&counts, [10, 40]);
        for (sides, ends) in seen.iter().zip([[8, 40], [8, 80], [8, 80]]) {
            assert_even(sides, ends);
        }
    }

    #[test]
    fn boxes_reach_every_class() {
        let mut histogram = [0f64; 5];
        for seed in 0..100 {
            let label = boxes(PATCH, 4, &mut Rng::new(seed));
            label.iter().for_each(|c| histogram[usize::from(*c)] += 1.0);
        }
        let blended: f64 = histogram[1..].iter().sum();
        for share in histogram[1..].iter().map(|count| count / blended) {
            assert!((share - 0.25).abs() < 0.04, "{histogram:?}");
        }
        // A mean box covers 0.1 of the patch away from its border; 25 of them leave some of it free and cover most.
        let share = blended / histogram.iter().sum::<f64>();
        assert!((0.5..0.95).contains(&share), "{share}");
    }

    #[test]
    fn any_patch_can_be_filled() {
        for patch in [[1, 1, 1], [1, 2, 3], [4, 8, 8], [3, 200, 5]] {
            for seed in 0..20 {
                for highest in [1, 4, 255] {
                    for label in [
                        blocks(patch, highest, &mut Rng::new(seed)),
                        boxes(patch, highest, &mut Rng::new(seed)),
                    ] {
                        assert_eq!(label.len(), patch.iter().product::<usize>());
                        assert!(label.iter().all(|c| usize::from(*c) <= highest));
                    }
                }
            }
        }
    }
}
