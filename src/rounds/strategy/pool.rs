//! What a strategy chooses from.

use serde_json::json;

use super::{Map, random};
use crate::rng::Rng;
use crate::rounds::scoring::{ImageScores, Uncertainty};

/// One image that may be served.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: &'a str,
    /// Since this strategy last served it; none when it never did.
    pub served_s_ago: Option<i64>,
    /// What the model said of it, where it was asked.
    pub scores: Option<&'a ImageScores>,
}

/// One image with an accepted label.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    /// What the model said of it, where it was asked.
    pub scores: Option<&'a ImageScores>,
    /// Per structure, in order, whether its label has it.
    pub present: &'a [bool],
}

/// What there is to choose from, and what was chosen before.
#[derive(Debug, Clone, Default)]
pub struct Pool<'a> {
    /// Images that may be served.
    pub candidates: Vec<Candidate<'a>>,
    /// Images that were labelled, or chosen just now.
    pub labelled: Vec<Labelled<'a>>,
    /// Rounds of training so far.
    pub round: usize,
    /// Images that were chosen so far: strategies that take turns go by it.
    pub drawn: u64,
}

/// Index of the chosen candidate, and what to tell about it.
pub(super) type Pick = (usize, Map);

impl<'a> Pool<'a> {
    /// The candidates of which the model says how sure it is, with their positions.
    pub(super) fn uncertain(&self) -> Vec<(usize, &'a Uncertainty)> {
        let with = |(index, candidate): (usize, &Candidate<'a>)| {
            Some((index, candidate.scores?.uncertainty.as_ref()?))
        };
        self.candidates
            .iter()
            .enumerate()
            .filter_map(with)
            .collect()
    }

    /// The candidate with the highest value, the first of equals; a random one while there are no scores.
    pub(super) fn highest(
        &self,
        rng: &mut Rng,
        mut value: impl FnMut(&Uncertainty, &mut Rng) -> f64,
    ) -> Pick {
        let mut best: Option<(usize, f64)> = None;
        for (index, uncertainty) in self.uncertain() {
            let value = value(uncertainty, rng);
            if best.is_none_or(|(_, most)| value > most) {
                best = Some((index, value));
            }
        }
        match best {
            Some((index, value)) => (index, told(value)),
            None => self.instead(rng),
        }
    }

    /// A random candidate, because the scores that a strategy needs are not there yet.
    pub(super) fn instead(&self, rng: &mut Rng) -> Pick {
        let (index, mut told) = random::pick(self, rng);
        let reason = "random: the live model has scored no image yet";
        told.insert("chosen_by".to_owned(), json!(reason));
        (index, told)
    }

    /// Takes a candidate out of the pool, as chosen.
    pub(super) fn take(&mut self, index: usize) -> Candidate<'a> {
        let candidate = self.candidates.remove(index);
        self.labelled.push(Labelled {
            scores: candidate.scores,
            present: &[],
        });
        self.drawn += 1;
        candidate
    }
}

/// What is told about a choice by a score.
pub(super) fn told(score: f64) -> Map {
    Map::from_iter([("score".to_owned(), json!(score))])
}
