//! What is simulated, and on which cases.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::imaging::{Budget, read_label};
use crate::model::{LabelSchema, ModelError, Passes, TrainCase};
use crate::rng::Rng;

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Names of strategies.
    pub strategies: Vec<String>,
    /// Seeds; each has its own initial cases.
    pub seeds: Vec<u64>,
    /// Rounds after the initial one.
    pub rounds: usize,
    /// Cases that are chosen for a round.
    pub query: usize,
    /// Cases to begin with.
    pub initial: usize,
    /// Test cases.
    pub test: usize,
    /// Steps of each training.
    pub steps: u32,
    /// Patches per step; the recipe's when absent.
    pub batch: Option<u16>,
    /// How models are asked.
    pub passes: Passes,
    /// Whether a model of all cases of the pool is trained too, once per seed.
    pub full: bool,
    /// Hash of the weights that every round starts from.
    pub parent_sha256: String,
}

/// A case and what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Its voxels.
    pub voxels: u64,
    /// Voxels of each structure, in order.
    pub structures: Vec<u64>,
}

impl Case {
    /// Voxels of any structure.
    pub fn foreground_voxels(&self) -> u64 {
        self.structures.iter().sum()
    }
}

/// The cases of a simulation.
#[derive(Debug)]
pub struct Study {
    /// The model that every round starts from.
    pub parent: PathBuf,
    /// What the labels mean.
    pub labels: LabelSchema,
    /// Cases to choose from, with what they hold.
    pub pool: Vec<(TrainCase, Case)>,
    /// Cases to test on; never chosen.
    pub test: Vec<TrainCase>,
}

impl Study {
    /// Draws the test cases, which depend on the names of the cases alone, and reads the labels of the others.
    ///
    /// # Errors
    /// Fewer cases than the settings need, a label that cannot be read.
    pub fn new(
        settings: &Settings,
        parent: PathBuf,
        labels: LabelSchema,
        mut cases: Vec<TrainCase>,
    ) -> Result<Self, ModelError> {
        let needed = settings.initial + settings.rounds * settings.query;
        if cases.len() < needed + settings.test || settings.test == 0 || settings.initial == 0 {
            return Err(ModelError::Request(format!(
                "{} cases are too few: {} to test on, {} to begin with and {} rounds of {} need {}; there must be at least one of each",
                cases.len(),
                settings.test,
                settings.initial,
                settings.rounds,
                settings.query,
                needed + settings.test
            )));
        }
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        Rng::new(1).named("simulation test set").shuffle(&mut cases);
        let test = cases.drain(..settings.test).collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        let count = labels.names().len();
        let pool = cases
            .into_iter()
            .map(|case| Ok((case.clone(), look(&case, count)?)))
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            parent,
            labels,
            pool,
            test,
        })
    }

    /// Positions of the cases that a seed begins with: those that bring a structure that was in none before go first.
    pub fn initial(&self, seed: u64, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.pool.len()).collect();
        Rng::new(seed)
            .named("simulation initial cases")
            .shuffle(&mut order);
        let mut seen = vec![false; self.labels.names().len()];
        let (mut chosen, mut rest) = (Vec::new(), Vec::new());
        for index in order {
            let there = self.pool[index]
                .1
                .structures
                .iter()
                .map(|voxels| *voxels > 0);
            let brings = there.clone().zip(&seen).any(|(there, seen)| there && !seen);
            if brings {
                seen.iter_mut()
                    .zip(there)
                    .for_each(|(seen, there)| *seen |= there);
                chosen.push(index);
            } else {
                rest.push(index);
            }
        }
        chosen.extend(rest);
        chosen.truncate(count);
        chosen
    }
}

fn look(case: &TrainCase, structures: usize) -> Result<Case, ModelError> {
    let label = read_label(&case.label, &Budget::default())?;
    let mut counts = vec![0u64; structures];
    for value in label
        .layers
        .first()
        .into_iter()
        .flatten()
        .filter(|v| **v > 0)
    {
        if let Some(count) = counts.get_mut(usize::from(*value) - 1) {
            *count += 1;
        }
    }
    Ok(Case {
        name: case.name.clone(),
        voxels: label.geometry.voxel_count() as u64,
        structures: counts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn study(structures: &[&[u64]]) -> Study {
        let case = |(n, structures): (usize, &&[u64])| {
            let name = format!("c{n}");
            let case = TrainCase {
                name: name.clone(),
                image: PathBuf::new(),
                label: PathBuf::new(),
                annotated: vec![1, 2],
            };
            let structures = structures.to_vec();
            (
                case,
                Case {
                    name,
                    voxels: 10,
                    structures,
                },
            )
        };
        Study {
            parent: PathBuf::new(),
            labels: LabelSchema::new(vec!["a".to_owned(), "b".to_owned()]).unwrap(),
            pool: structures.iter().enumerate().map(case).collect(),
            test: Vec::new(),
        }
    }

    #[test]
    fn every_structure_is_in_an_initial_case() {
        let mut cases: Vec<&[u64]> = vec![&[5, 0]; 9];
        cases.push(&[0, 3]);
        let study = study(&cases);
        let mut seen = std::collections::HashSet::new();
        for seed in 0..20 {
            let initial = study.initial(seed, 2);
            assert_eq!(initial.len(), 2);
            assert!(initial.contains(&9), "seed {seed}: {initial:?}");
            assert_eq!(initial, study.initial(seed, 2));
            seen.insert(initial);
        }
        assert!(seen.len() > 3, "seeds differ");
    }
}
