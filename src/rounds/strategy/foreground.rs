//! Foreground-aware random: the baseline that active learning has to beat.
//!
//! A voxel is drawn, and the image in which it lies is chosen: with probability 1/3 anywhere, so that every image is as
//! likely as its neighbour; else in the predicted foreground, a structure first, so that images with much of a rare one are
//! likelier. It uses what the model predicts, not how sure it is. After `random-label` of nnActive (Lueth and others, TMLR
//! 2025, arXiv 2511.19183), which draws patches: a third anywhere, two thirds in the segmentation and at its border.

use super::pool::Pick;
use super::random::{self, weighted};
use super::{Pool, Rng};

/// Share of the draws in the predicted foreground.
const SHARE: f64 = 2.0 / 3.0;

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    let scored = pool.uncertain();
    let structures = scored.first().map_or(0, |(_, scores)| scores.classes.len());
    if structures == 0 {
        return pool.instead(rng);
    }
    if !rng.chance(SHARE) {
        return random::pick(pool, rng);
    }
    let class = rng.below(structures);
    let volumes: Vec<f64> = scored
        .iter()
        .map(|(_, scores)| {
            scores
                .classes
                .get(class)
                .map_or(0.0, |c| c.volume_ml.max(0.0))
        })
        .collect();
    if volumes.iter().sum::<f64>() > 0.0 {
        let (index, scores) = scored[weighted(&volumes, rng)];
        (index, super::pool::told(scores.classes[class].volume_ml))
    } else {
        random::pick(pool, rng)
    }
}
