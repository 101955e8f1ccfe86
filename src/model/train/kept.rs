//! What a run remembers beside its weights and moments.

use super::checkpoint::Checkpoint;
use crate::model::error::ModelError;
use crate::model::weights::State;

/// Prefixes in a checkpoint.
const BEST: &str = "best/";
const AVERAGE: &str = "average/";

/// The best weights so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// The weights.
    pub state: State,
    /// Dice per structure.
    pub dice: Vec<Option<f64>>,
    /// Mean of `dice`.
    pub mean: f64,
    /// Steps behind them.
    pub step: usize,
}

/// What a run remembers.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The best weights so far.
    pub best: Option<Best>,
    /// Validations since then.
    pub worse: usize,
    /// Learning rates are multiplied by this: a half for each time that numbers were not finite.
    pub rate_scale: f64,
    /// How often in a row that was.
    pub failures: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            best: None,
            worse: 0,
            rate_scale: 1.0,
            failures: 0,
        }
    }
}

/// As text; floats as bits, because a number that is read from text may differ in its last one.
#[derive(serde::Serialize, serde::Deserialize)]
struct Notes {
    best: Option<(Vec<Option<u64>>, u64, usize)>,
    worse: usize,
    rate_scale: u64,
    failures: usize,
}

impl Kept {
    /// Adds it to a checkpoint, with the running average of the weights if there is one.
    pub fn put_into(
        &self,
        average: Option<State>,
        checkpoint: &mut Checkpoint,
    ) -> Result<(), ModelError> {
        let best = self.best.as_ref().map(|best| {
            let dice = best.dice.iter().map(|d| d.map(f64::to_bits)).collect();
            (dice, best.mean.to_bits(), best.step)
        });
        let notes = Notes {
            best,
            worse: self.worse,
            rate_scale: self.rate_scale.to_bits(),
            failures: self.failures,
        };
        checkpoint.notes = serde_json::to_string(&notes)
            .map_err(|e| ModelError::Data(format!("the run's notes: {e}")))?;
        let best = self.best.iter().map(|best| (BEST, best.state.clone()));
        for (prefix, state) in best.chain(average.map(|state| (AVERAGE, state))) {
            let named = state
                .into_iter()
                .map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
            checkpoint.tensors.extend(named);
        }
        Ok(())
    }

    /// What [`Kept::put_into`] added.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<(Self, Option<State>), ModelError> {
        let notes: Notes = serde_json::from_str(&checkpoint.notes)
            .map_err(|e| ModelError::Data(format!("the checkpoint's notes: {e}")))?;
        let part = |prefix: &str| -> State {
            let tensors = checkpoint.tensors.iter();
            tensors
                .filter_map(|(name, tensor)| {
                    Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
                })
                .collect()
        };
        let best = notes.best.map(|(dice, mean, step)| Best {
            state: part(BEST),
            dice: dice.into_iter().map(|d| d.map(f64::from_bits)).collect(),
            mean: f64::from_bits(mean),
            step,
        });
        let kept = Self {
            best,
            worse: notes.worse,
            rate_scale: f64::from_bits(notes.rate_scale),
            failures: notes.failures,
        };
        let average = part(AVERAGE);
        Ok((kept, (!average.is_empty()).then_some(average)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::HostTensor;

    #[test]
    fn a_checkpoint_keeps_all_of_it() {
        let state = |value: f32| {
            let (shape, values) = (vec![1], vec![value]);
            State::from([("a.weight".to_owned(), HostTensor { shape, values })])
        };
        let kept = Kept {
            best: Some(Best {
                state: state(0.1),
                dice: vec![Some(0.1 + 0.2), None],
                mean: 1.0 / 3.0,
                step: 7,
            }),
            worse: 2,
            rate_scale: 0.25,
            failures: 1,
        };
        for (kept, average) in [(kept, Some(state(0.3))), (Kept::default(), None)] {
            let mut checkpoint = Checkpoint {
                step: 9,
                run: String::new(),
                notes: String::new(),
                tensors: State::new(),
            };
            kept.put_into(average.clone(), &mut checkpoint).unwrap();
            let found = Kept::from_checkpoint(&checkpoint).unwrap();
            assert_eq!(found, (kept, average));
        }
    }
}
