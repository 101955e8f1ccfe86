//! The rounds of a simulation, each on the disk when it is done, so that the same call goes on after a kill.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::record::{self, RoundRecord, TestCase};
use super::settings::{Settings, Study};
use crate::imaging::{Budget, metrics, read_label, read_scan};
use crate::model::{
    DeviceChoice, Explorer, Manifest, ModelError, PrecisionChoice, Segmenter, TrainCase, TrainEvent,
};
use crate::project::requests::TrainRequest;
use crate::rng::Rng;
use crate::rounds::fine_tune;
use crate::rounds::scoring::{self, ImageScores};
use crate::rounds::strategy::{self, Candidate, Labelled, Pool, Strategy};

/// Names in [`RoundRecord::strategy`] that no strategy has.
const INITIAL: &str = "initial";
const FULL: &str = "full";

/// What the caller hears; breaking stops after the current step.
pub enum Event<'a> {
    /// A round begins, or was found done.
    Round {
        /// Strategy, `initial` or `full`.
        strategy: &'a str,
        /// Seed.
        seed: u64,
        /// Round.
        round: usize,
    },
    /// A case of the pool was scored: done, all.
    Scored(usize, usize),
    /// A step of training was made: done, all.
    Step(usize, usize),
    /// Something is computed: a good moment to stop.
    Between,
    /// The round is done.
    Done(&'a RoundRecord),
}

/// Runs what is not done yet. The rounds of all strategies and seeds come back in order, the initial one of a seed with the
/// name of each strategy.
///
/// # Errors
/// [`ModelError::Stopped`] when the caller breaks; an unknown strategy, cases that cannot be used, a folder that does not take
/// the results. What was done is on the disk.
pub fn run(
    settings: &Settings,
    study: &Study,
    out: &Path,
    device: DeviceChoice,
    on: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Vec<RoundRecord>, ModelError> {
    let strategies = settings
        .strategies
        .iter()
        .map(|name| strategy::find(name).map_err(|error| ModelError::Request(error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    let mut parent = Manifest::read(&study.parent)?;
    if parent.labels != study.labels {
        // Its heads start afresh in every training.
        parent.model.network.class_num = study.labels.class_count();
        parent.model.labels = study.labels.clone();
    }
    let mut replay = Replay {
        settings,
        study,
        out,
        device,
        parent,
        on,
    };
    let mut records = Vec::new();
    for &seed in &settings.seeds {
        let initial = study.initial(seed, settings.initial);
        let first = replay.round(INITIAL, seed, 0, &initial, &initial, 0.0)?;
        for strategy in &strategies {
            records.push(RoundRecord {
                strategy: strategy.name.to_owned(),
                ..first.clone()
            });
            replay.strategy(strategy, seed, &initial, &mut records)?;
        }
        if settings.full {
            let all: Vec<usize> = (0..study.pool.len()).collect();
            records.push(replay.round(FULL, seed, 0, &all, &all, 0.0)?);
            replay.forget(FULL, seed, 0)?;
        }
        replay.forget(INITIAL, seed, 0)?;
    }
    Ok(records)
}

struct Replay<'a> {
    settings: &'a Settings,
    study: &'a Study,
    out: &'a Path,
    device: DeviceChoice,
    parent: Manifest,
    on: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
}

impl Replay<'_> {
    /// The rounds of a strategy after the initial one.
    fn strategy(
        &mut self,
        strategy: &Strategy,
        seed: u64,
        initial: &[usize],
        records: &mut Vec<RoundRecord>,
    ) -> Result<(), ModelError> {
        let mut labelled = initial.to_vec();
        for round in 1..=self.settings.rounds {
            let path = record::file(self.out, strategy.name, seed, round);
            let (chosen, choose_s) = match record::read(&path)? {
                Some(done) => (self.positions(&done.chosen)?, done.choose_s),
                None => self.choose(strategy, seed, round, &labelled)?,
            };
            labelled.extend(&chosen);
            records.push(self.round(strategy.name, seed, round, &labelled, &chosen, choose_s)?);
            if round > 1 {
                self.forget(strategy.name, seed, round - 1)?;
            }
        }
        self.forget(strategy.name, seed, self.settings.rounds)
    }

    /// Chooses the cases of a round by the model of the round before.
    fn choose(
        &mut self,
        strategy: &Strategy,
        seed: u64,
        round: usize,
        labelled: &[usize],
    ) -> Result<(Vec<usize>, f64), ModelError> {
        let start = Instant::now();
        self.tell(Event::Round {
            strategy: strategy.name,
            seed,
            round,
        })?;
        let scores = match strategy.needs_scores {
            true => self.scores(strategy, seed, round, labelled)?,
            false => vec![None; self.study.pool.len()],
        };
        let open: Vec<usize> = (0..self.study.pool.len())
            .filter(|index| !labelled.contains(index))
            .collect();
        let present: Vec<Vec<bool>> = labelled
            .iter()
            .map(|index| {
                self.study.pool[*index]
                    .1
                    .structures
                    .iter()
                    .map(|v| *v > 0)
                    .collect()
            })
            .collect();
        let pool = Pool {
            candidates: open
                .iter()
                .map(|index| Candidate {
                    id: &self.study.pool[*index].0.name,
                    served_s_ago: None,
                    scores: scores[*index].as_ref(),
                })
                .collect(),
            labelled: labelled
                .iter()
                .zip(&present)
                .map(|(index, present)| Labelled {
                    scores: scores[*index].as_ref(),
                    present,
                })
                .collect(),
            round,
            drawn: ((round - 1) * self.settings.query) as u64,
        };
        let mut rng = Rng::new(seed)
            .named("simulation")
            .named(strategy.name)
            .stream(round as u64);
        let chosen = strategy::choose(strategy, pool, self.settings.query, &mut rng);
        let chosen = chosen.into_iter().map(|index| open[index]).collect();
        Ok((chosen, start.elapsed().as_secs_f64()))
    }

    /// What the model of the round before says of the pool's cases; of labelled ones their features count.
    fn scores(
        &mut self,
        strategy: &Strategy,
        seed: u64,
        round: usize,
        labelled: &[usize],
    ) -> Result<Vec<Option<ImageScores>>, ModelError> {
        let model = match round {
            1 => self.again(INITIAL, seed, 0, labelled)?,
            _ => self.again(strategy.name, seed, round - 1, labelled)?,
        };
        let settings = self.settings;
        let precision = PrecisionChoice::Auto;
        let explorer = Explorer::load(&[model], settings.passes, self.device, precision)?;
        let total = self.study.pool.len();
        let mut scores = Vec::with_capacity(total);
        for (done, (case, _)) in self.study.pool.iter().enumerate() {
            let scan = read_scan(&case.image, &Budget::default())?.volume;
            let on = &mut *self.on;
            let found = scoring::measure(&explorer, &scan, seed, &mut |_, _| on(Event::Between))?;
            scores.push(Some(found));
            self.tell(Event::Scored(done + 1, total))?;
        }
        Ok(scores)
    }

    /// Trains and tests, unless that was done before.
    fn round(
        &mut self,
        strategy: &str,
        seed: u64,
        round: usize,
        labelled: &[usize],
        chosen: &[usize],
        choose_s: f64,
    ) -> Result<RoundRecord, ModelError> {
        let path = record::file(self.out, strategy, seed, round);
        self.tell(Event::Round {
            strategy,
            seed,
            round,
        })?;
        if let Some(done) = record::read(&path)? {
            self.tell(Event::Done(&done))?;
            return Ok(done);
        }
        let start = Instant::now();
        let model = self.train(strategy, seed, round, labelled)?;
        let train_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let test = self.test(&model)?;
        let structures = self.study.labels.names().len();
        let mean = |class: usize| metrics::mean(test.iter().map(|case| case.dice[class]));
        let dice: Vec<Option<f64>> = (0..structures).map(mean).collect();
        let cases = labelled.iter().map(|index| &self.study.pool[*index].1);
        let record = RoundRecord {
            strategy: strategy.to_owned(),
            seed,
            round,
            chosen: chosen
                .iter()
                .map(|index| self.study.pool[*index].0.name.clone())
                .collect(),
            cases: labelled.len(),
            voxels: cases.clone().map(|case| case.voxels).sum(),
            foreground_voxels: cases.map(|case| case.foreground_voxels()).sum(),
            mean_dice: metrics::mean(dice.iter().copied()).unwrap_or(0.0),
            dice,
            test,
            choose_s,
            train_s,
            test_s: start.elapsed().as_secs_f64(),
        };
        record::write(&path, &record)?;
        self.tell(Event::Done(&record))?;
        Ok(record)
    }

    /// The model of a round that is done; it is trained again when it is not there any more.
    fn again(
        &mut self,
        strategy: &str,
        seed: u64,
        round: usize,
        labelled: &[usize],
    ) -> Result<PathBuf, ModelError> {
        let model = record::model(self.out, strategy, seed, round);
        match Manifest::read(&model) {
            Ok(_) => Ok(model),
            Err(_) => self.train(strategy, seed, round, labelled),
        }
    }

    /// Trains as a round of the server does, without validation: the last weights count.
    fn train(
        &mut self,
        strategy: &str,
        seed: u64,
        round: usize,
        labelled: &[usize],
    ) -> Result<PathBuf, ModelError> {
        let model = record::model(self.out, strategy, seed, round);
        remove(&model)?;
        let folder = record::folder(self.out, strategy, seed);
        std::fs::create_dir_all(&folder).map_err(ModelError::io(&folder))?;
        let asked = TrainRequest {
            model: self.parent.name.clone(),
            name: format!("{strategy}-{seed}-{round}"),
            max_epochs: 1,
            steps: Some(self.settings.steps),
            val_split: 0.0,
            pretrained: true,
            warm_start: None,
            // The same for all strategies: they differ by their cases alone.
            seed,
            learning_rate: None,
            batch: self.settings.batch,
            early_stop_patience: -1,
        };
        let mut cases: Vec<TrainCase> = labelled
            .iter()
            .map(|index| self.study.pool[*index].0.clone())
            .collect();
        // The order in which cases were chosen must not change what is learned from them.
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut request, _) = fine_tune::schedule(
            &asked,
            &self.study.parent,
            &self.parent,
            cases,
            Vec::new(),
            Vec::new(),
            model.clone(),
        );
        request.options.device = self.device;
        let on = &mut *self.on;
        let report = crate::model::train(&request, &mut |event| match event {
            TrainEvent::Step { step, steps, .. } => on(Event::Step(step, steps)),
            _ => on(Event::Between),
        })?;
        if report.ended_early.is_some() {
            remove(&model)?;
            return Err(ModelError::Stopped);
        }
        Ok(model)
    }

    fn test(&mut self, model: &Path) -> Result<Vec<TestCase>, ModelError> {
        let segmenter = Segmenter::load(model, self.device, PrecisionChoice::Auto)?;
        let classes = self.study.labels.class_count();
        let mut test = Vec::with_capacity(self.study.test.len());
        for case in &self.study.test {
            let scan = read_scan(&case.image, &Budget::default())?.volume;
            let truth = read_label(&case.label, &Budget::default())?;
            let on = &mut *self.on;
            let found = segmenter.segment(&scan, &[], &mut |_, _| on(Event::Between))?;
            let truth = truth
                .layers
                .first()
                .filter(|t| t.len() == found.labels.voxels.len());
            let truth = truth.ok_or_else(|| {
                ModelError::Request(format!(
                    "test case {}: the label's grid is not the image's",
                    case.name
                ))
            })?;
            let dice = metrics::dice_per_class(&found.labels.voxels, truth, classes);
            let known = |class: &u16| case.annotated.contains(class);
            let dice = (1u16..).zip(dice.into_iter().skip(1));
            test.push(TestCase {
                case: case.name.clone(),
                dice: dice
                    .map(|(class, dice)| dice.filter(|_| known(&class)))
                    .collect(),
            });
        }
        Ok(test)
    }

    fn positions(&self, names: &[String]) -> Result<Vec<usize>, ModelError> {
        let position = |name: &String| {
            let found = self
                .study
                .pool
                .iter()
                .position(|(case, _)| case.name == *name);
            found.ok_or_else(|| {
                ModelError::Request(format!(
                    "case {name} of an earlier round is not there any more; name another output folder"
                ))
            })
        };
        names.iter().map(position).collect()
    }

    /// Removes a model that is not needed any more.
    fn forget(&self, strategy: &str, seed: u64, round: usize) -> Result<(), ModelError> {
        remove(&record::model(self.out, strategy, seed, round))
    }

    fn tell(&mut self, event: Event) -> Result<(), ModelError> {
        match (self.on)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ModelError::Stopped),
        }
    }
}

fn remove(model: &Path) -> Result<(), ModelError> {
    match std::fs::remove_dir_all(model) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ModelError::io(model)(error))
        }
        _ => Ok(()),
    }
}
