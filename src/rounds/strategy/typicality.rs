//! Typicality: the most typical image of the largest group of alike images that has no label yet.
//!
//! TypiClust (Hacohen and others, ICML 2022, arXiv 2202.02794) on pooled features of the network: k-means into one group more
//! than there are labelled images; of the largest group without a labelled image, the image with the smallest mean distance
//! to its neighbours. Among the better ones for the first images of a project (COLosSAL, arXiv 2307.12004).

use super::features::Space;
use super::pool::{Pick, told};
use super::{Pool, Rng};

/// Neighbours that decide how typical an image is.
const NEIGHBOURS: usize = 20;

/// The images with features.
pub(super) struct Described {
    pub space: Space,
    /// Candidates: position in the pool, position in the space.
    pub open: Vec<(usize, usize)>,
    /// Labelled images: position in the space.
    pub done: Vec<usize>,
}

impl Described {
    pub fn of(pool: &Pool) -> Self {
        let (mut images, mut open, mut done) = (Vec::new(), Vec::new(), Vec::new());
        let length = pool
            .candidates
            .iter()
            .find_map(|candidate| Some(candidate.scores?.features.len()));
        let usable = |features: &&[f32]| Some(features.len()) == length && !features.is_empty();
        for (index, candidate) in pool.candidates.iter().enumerate() {
            let features = candidate.scores.map(|scores| scores.features.as_slice());
            if let Some(features) = features.filter(usable) {
                open.push((index, images.len()));
                images.push(features);
            }
        }
        for labelled in &pool.labelled {
            let features = labelled.scores.map(|scores| scores.features.as_slice());
            if let Some(features) = features.filter(usable) {
                done.push(images.len());
                images.push(features);
            }
        }
        Self {
            space: Space::of(&images),
            open,
            done,
        }
    }
}

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    let Described { space, open, done } = Described::of(pool);
    if open.is_empty() {
        return pool.instead(rng);
    }
    let groups = space.groups(done.len() + 1, rng);
    let taken: Vec<usize> = done.iter().map(|at| groups[*at]).collect();
    let size = |group: usize| groups.iter().filter(|g| **g == group).count();
    // A group without a labelled image first, then the larger one, then the one with the lower number.
    let rank = |group: usize| (!taken.contains(&group), size(group), usize::MAX - group);
    let chosen = open
        .iter()
        .map(|(_, at)| groups[*at])
        .max_by_key(|group| rank(*group))
        .unwrap_or(0);
    let mut best: Option<(usize, f64)> = None;
    for (index, at) in open.iter().filter(|(_, at)| groups[*at] == chosen) {
        let mut distances: Vec<f64> = (0..space.len())
            .filter(|other| other != at && groups[*other] == chosen)
            .map(|other| space.distance(*at, other))
            .collect();
        distances.sort_by(f64::total_cmp);
        distances.truncate(NEIGHBOURS);
        let mean = distances.iter().sum::<f64>() / distances.len().max(1) as f64;
        let typicality = (mean + 1e-9).recip();
        if best.is_none_or(|(_, most)| typicality > most) {
            best = Some((*index, typicality));
        }
    }
    match best {
        Some((index, typicality)) => (index, told(typicality)),
        None => pool.instead(rng),
    }
}
