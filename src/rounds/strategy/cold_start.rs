//! The first images of a project: at least one case of every structure, as far as a model can see them, else the most typical
//! image.
//!
//! While some structure is in no label, and the model predicts it somewhere, the image with most of it is next; else
//! [typicality](super::typicality). After the starting sets of nnActive (arXiv 2511.19183: every class is there) and
//! COLosSAL (arXiv 2307.12004).

use super::pool::{Pick, told};
use super::{Pool, Rng, typicality};

pub(super) fn pick(pool: &Pool, rng: &mut Rng) -> Pick {
    let scored = pool.uncertain();
    let structures = scored.first().map_or(0, |(_, scores)| scores.classes.len());
    let in_a_label = |class: usize| {
        pool.labelled.iter().any(|labelled| {
            // Of an image that was chosen just now, what the model sees in it counts.
            let seen = || {
                let uncertainty = labelled.scores?.uncertainty.as_ref()?;
                Some(uncertainty.classes.get(class)?.volume_ml > SEEN_ML)
            };
            match labelled.present {
                [] => seen().unwrap_or(false),
                present => present.get(class).copied().unwrap_or(false),
            }
        })
    };
    for class in (0..structures).filter(|class| !in_a_label(*class)) {
        let most = scored
            .iter()
            .map(|(index, scores)| (*index, scores.classes[class].volume_ml))
            .filter(|(_, volume_ml)| *volume_ml > SEEN_ML)
            .max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((index, volume_ml)) = most {
            return (index, told(volume_ml));
        }
    }
    typicality::pick(pool, rng)
}

/// A structure of less than this is taken for noise of the prediction.
const SEEN_ML: f64 = 0.1;
