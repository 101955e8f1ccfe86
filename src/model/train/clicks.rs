//! Clicks that a person would make, for a model that learns to take them.
//!
//! Half of the samples stay without clicks, so that the model goes on to segment alone. For the others the network first
//! answers without clicks; then clicks are put where it is wrong, more likely in the middle of a large mistake than at its
//! rim, and the step learns from the same patch with them.

use crate::imaging::distance::distance_mm;
use crate::rng::Rng;

/// Share of the samples with clicks.
pub const SHARE: f64 = 0.5;
/// Most clicks in a patch.
const MOST: usize = 3;

/// A click: class (0 is background) and voxel `[z, y, x]` of the patch.
pub type PatchClick = (usize, [usize; 3]);

/// Draws clicks on mistakes of `prediction`; both it and `labels` are classes `[z, y, x]`. Classes that were not annotated
/// are unknown: nobody clicks on them, and taking one for background is no mistake. None where nothing is wrong.
pub fn on_mistakes(
    prediction: &[u8],
    labels: &[u8],
    annotated: &[bool],
    size: [usize; 3],
    spacing_mm: [f64; 3],
    rng: &mut Rng,
) -> Vec<PatchClick> {
    let known = |class: u8| annotated.get(usize::from(class)) == Some(&true);
    let mistake = |voxel: usize, class: usize| {
        let (found, label) = (prediction[voxel], labels[voxel]);
        usize::from(label) == class && found != label && known(label) && known(found)
    };
    let voxels = labels.len();
    let mut wrong: Vec<usize> = (0..annotated.len())
        .filter(|&class| (0..voxels).any(|voxel| mistake(voxel, class)))
        .collect();
    rng.shuffle(&mut wrong);
    let count = 1 + rng.below(MOST);
    let classes = wrong
        .iter()
        .cycle()
        .take(if wrong.is_empty() { 0 } else { count });
    let mut clicks: Vec<PatchClick> = Vec::new();
    for &class in classes {
        // Far from everything that is right, and from where a click already is.
        let taken = |voxel| clicks.iter().any(|(_, at)| index(*at, size) == voxel);
        let depth = distance_mm(size, spacing_mm, |voxel| {
            !mistake(voxel, class) || taken(voxel)
        });
        // A mistake all over the patch has no rim.
        let weight = |depth: f32| {
            if depth.is_finite() {
                f64::from(depth)
            } else {
                1.0
            }
        };
        let total: f64 = depth.iter().map(|d| weight(*d)).sum();
        let mut left = rng.uniform() * total;
        let chosen = depth.iter().position(|d| {
            left -= weight(*d);
            left < 0.0
        });
        if let Some(voxel) = chosen {
            let [_, h, w] = size;
            clicks.push((class, [voxel / (h * w), voxel / w % h, voxel % w]));
        }
    }
    clicks
}

fn index(at: [usize; 3], [_, h, w]: [usize; 3]) -> usize {
    (at[0] * h + at[1]) * w + at[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: [usize; 3] = [4, 8, 8];

    fn classes(of: impl Fn([usize; 3]) -> u8) -> Vec<u8> {
        (0..256).map(|n| of([n / 64, n / 8 % 8, n % 8])).collect()
    }

    #[test]
    fn clicks_are_on_mistakes_and_say_what_is_right() {
        let labels = classes(|[_, y, x]| if y < 4 { 1 } else { u8::from(x > 5) * 2 });
        let prediction = classes(|[_, y, _]| u8::from(y < 6));
        let (mut seen, mut middle, mut rim) = ([false; 3], 0, 0);
        for seed in 0..300 {
            let clicks = on_mistakes(
                &prediction,
                &labels,
                &[true; 3],
                SIZE,
                [2.0, 1.0, 1.0],
                &mut Rng::new(seed),
            );
            assert!((1..=MOST).contains(&clicks.len()));
            for (class, at) in clicks {
                let voxel = index(at, SIZE);
                assert_eq!(usize::from(labels[voxel]), class);
                assert_ne!(prediction[voxel], labels[voxel]);
                seen[class] = true;
                if class == 0 {
                    // The mistake reaches from x = 0 (edge of the patch) to 5, and over two rows.
                    if at[2] < 5 { middle += 1 } else { rim += 1 }
                }
            }
        }
        // Class 1 is right everywhere.
        assert_eq!(seen, [true, false, true]);
        assert!(middle > 4 * rim, "{middle} {rim}");
    }

    #[test]
    fn nobody_clicks_where_all_is_right_or_unknown() {
        let labels = classes(|[_, y, _]| u8::from(y < 4));
        let run = |prediction: &[u8], annotated: &[bool]| {
            on_mistakes(
                prediction,
                &labels,
                annotated,
                SIZE,
                [1.0; 3],
                &mut Rng::new(1),
            )
        };
        assert!(run(&labels, &[true; 3]).is_empty());
        let two = classes(|_| 2);
        assert!(
            run(&two, &[true, true, false]).is_empty(),
            "class 2 may be right"
        );
        assert!(!run(&two, &[true; 3]).is_empty());
        let none = classes(|_| 0);
        assert!(
            run(&none, &[true, false, true]).is_empty(),
            "class 1 was not annotated"
        );
    }

    #[test]
    fn the_same_stream_gives_the_same_clicks() {
        let (labels, prediction) = (classes(|_| 1), classes(|_| 0));
        let run = |seed| {
            on_mistakes(
                &prediction,
                &labels,
                &[true; 2],
                SIZE,
                [1.0; 3],
                &mut Rng::new(seed),
            )
        };
        assert_eq!(run(4), run(4));
        assert_ne!(run(4), run(5));
    }
}
