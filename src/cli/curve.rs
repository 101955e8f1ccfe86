//! The course of a training run as a file: one JSON object a line, so that a run that was killed leaves what it had.
//!
//! `{"step":1,"loss":1.2,"learning_rate":0.004,"elapsed_s":0.5,"waiting":0.01}` after every step (`waiting`: share of the
//! time that went into waiting for patches), `{"step":100,"dice":{"liver":0.8,"spleen":null},"mean":0.8,"best":true}` after
//! every validation, `{"case":"a","skipped":true,"reason":"..."}` for a case with something to say about, and
//! `{"step":7,"back_to":0,"reason":"...","rate_scale":0.5}` where numbers were not finite. A run that goes on from an earlier
//! state adds its lines; where steps are there twice, the later ones count.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::model::CaseNote;

/// Name of the file in the model directory.
const FILE: &str = "training.jsonl";

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Steps made, this one included.
    pub step: usize,
    /// Loss.
    pub loss: f32,
    /// Learning rate.
    pub learning_rate: f64,
    /// Time since this process began to train.
    pub elapsed_s: f64,
    /// Share of that time in which it waited for patches.
    #[serde(default)]
    pub waiting: f64,
}

/// One validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Steps made.
    pub step: usize,
    /// Dice per structure, mean over cases; null where no case defines it.
    pub dice: Map<String, Value>,
    /// Mean over structures.
    pub mean: f64,
    /// Whether it was the best so far.
    pub best: bool,
}

impl Validation {
    /// Dice of a structure.
    pub fn of(&self, structure: &str) -> Option<f64> {
        self.dice.get(structure)?.as_f64()
    }
}

/// A step that was left out because its numbers were not finite, or because the device failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The step.
    pub step: usize,
    /// Steps made by the weights that were put back.
    pub back_to: usize,
    /// What happened, and on what.
    pub reason: String,
    /// Learning rates are multiplied by this from then on.
    pub rate_scale: f64,
}

// In this order: a line is what it is the first to fit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Step(Step),
    Validation(Validation),
    Case(CaseNote),
    RolledBack(RolledBack),
}

/// What happened in a run.
#[derive(Debug, Default, PartialEq)]
pub struct Curve {
    /// In order of steps.
    pub steps: Vec<Step>,
    /// In order of steps.
    pub validations: Vec<Validation>,
    /// What there is to say about cases.
    pub cases: Vec<CaseNote>,
    /// In the order in which they happened.
    pub rolled_back: Vec<RolledBack>,
    /// Time of all processes that took part, as far as they wrote it down.
    pub elapsed_s: f64,
}

impl Curve {
    /// Reads the curve that a training left in its model directory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_model(model: &Path) -> anyhow::Result<Self> {
        Self::read(&model.join(FILE))
    }

    /// Reads the lines; an incomplete last line, as a killed run leaves it, is passed over.
    ///
    /// # Errors
    /// A file that cannot be read, or another line that is not as described above.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut curve = Self::default();
        let mut lines = BufReader::new(file).lines().enumerate().peekable();
        let mut process_s = 0.0;
        while let Some((n, line)) = lines.next() {
            let line = line.with_context(|| format!("cannot read {}", path.display()))?;
            match serde_json::from_str(&line) {
                Ok(Line::Step(step)) => {
                    curve
                        .steps
                        .truncate(curve.steps.partition_point(|s| s.step < step.step));
                    let known = curve.validations.partition_point(|v| v.step < step.step);
                    curve.validations.truncate(known);
                    if step.elapsed_s < process_s {
                        process_s = 0.0;
                    }
                    curve.elapsed_s += step.elapsed_s - process_s;
                    process_s = step.elapsed_s;
                    curve.steps.push(step);
                }
                Ok(Line::Validation(validation)) => {
                    let known = curve
                        .validations
                        .partition_point(|v| v.step < validation.step);
                    curve.validations.truncate(known);
                    curve.validations.push(validation);
                }
                // A run that goes on says it again.
                Ok(Line::Case(note)) if curve.cases.contains(&note) => {}
                Ok(Line::Case(note)) => curve.cases.push(note),
                Ok(Line::RolledBack(rolled_back)) => curve.rolled_back.push(rolled_back),
                Err(_) if lines.peek().is_none() => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("{}, line {}", path.display(), n + 1));
                }
            }
        }
        Ok(curve)
    }
}

/// Writes the curve of a run beside its model directory, which appears at the end only.
pub struct CurveWriter {
    beside: PathBuf,
    inside: PathBuf,
    names: Vec<String>,
    started: Instant,
    /// Opened for the first line, so that a run that never begins leaves nothing.
    file: Option<File>,
    /// The first line that could not be written; training goes on without.
    failed: Option<anyhow::Error>,
}

impl CurveWriter {
    /// A curve in `<model>.training.jsonl`, to which a run that goes on adds. `names` are the structures in order.
    pub fn new(model: &Path, names: Vec<String>) -> Self {
        let mut beside = model.as_os_str().to_owned();
        beside.push(".");
        beside.push(FILE);
        Self {
            beside: PathBuf::from(beside),
            inside: model.join(FILE),
            names,
            started: Instant::now(),
            file: None,
            failed: None,
        }
    }

    /// Adds a step.
    pub fn step(&mut self, step: usize, loss: f32, learning_rate: f64, waiting: f64) {
        let elapsed_s = self.started.elapsed().as_secs_f64();
        self.add(&json!(Step {
            step,
            loss,
            learning_rate,
            elapsed_s,
            waiting
        }));
    }

    /// Adds what there is to say about a case.
    pub fn case(&mut self, note: &CaseNote) {
        self.add(&json!(note));
    }

    /// Adds a step that was left out because its numbers were not finite.
    pub fn rolled_back(&mut self, step: usize, back_to: usize, reason: &str, rate_scale: f64) {
        self.add(&json!(RolledBack {
            step,
            back_to,
            reason: reason.to_owned(),
            rate_scale,
        }));
    }

    /// Adds a validation; `dice` per structure in order.
    pub fn validation(&mut self, step: usize, dice: &[Option<f64>], mean: f64, best: bool) {
        let named = self.names.iter().cloned();
        let dice = named.zip(dice.iter().map(|dice| json!(dice))).collect();
        self.add(&json!(Validation {
            step,
            dice,
            mean,
            best
        }));
    }

    fn add(&mut self, line: &Value) {
        if self.failed.is_none()
            && let Err(error) = self.write(line)
        {
            let text = format!("cannot write {}", self.beside.display());
            self.failed = Some(anyhow::Error::new(error).context(text));
        }
    }

    fn write(&mut self, line: &Value) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(open_whole(&self.beside)?);
        }
        match &mut self.file {
            // In one piece, so that a kill cuts the last line at most.
            Some(file) => file.write_all(format!("{line}\n").as_bytes()),
            None => Ok(()),
        }
    }

    /// Moves the file into the model directory, which is there now, and reads it.
    ///
    /// # Errors
    /// A line that could not be written, a directory that does not take the file.
    pub fn finish(self) -> anyhow::Result<Curve> {
        if let Some(error) = self.failed {
            return Err(error.context("the model is complete, but its curve is not"));
        }
        if self.file.is_none() {
            return Ok(Curve::default());
        }
        std::fs::rename(&self.beside, &self.inside)
            .with_context(|| format!("cannot move {} into the model", self.beside.display()))?;
        Curve::read(&self.inside)
    }
}

/// Opens a file to add lines to; what follows its last whole line is cut off.
fn open_whole(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    let text = std::fs::read(path)?;
    let end = text
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    file.set_len(end as u64)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_replaces_what_it_repeats() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        let names = vec!["liver".to_owned(), "spleen".to_owned()];
        let mut killed = CurveWriter::new(&model, names.clone());
        for n in 1..=4 {
            killed.step(n, 9.0, 0.5, 0.0);
        }
        killed.validation(4, &[Some(0.25), None], 0.25, true);
        drop(killed);
        let beside = folder.path().join("model.training.jsonl");
        let mut file = File::options().append(true).open(&beside).unwrap();
        file.write_all(b"{\"step\":5,\"lo").unwrap();
        assert_eq!(Curve::read(&beside).unwrap().steps.len(), 4);

        let mut again = CurveWriter::new(&model, names);
        for n in 3..=6 {
            again.step(n, 1.0, 0.5, 0.0);
        }
        let (case, reason) = ("a".to_owned(), "b".to_owned());
        let note = CaseNote {
            case,
            skipped: true,
            reason,
        };
        again.case(&note);
        again.case(&note);
        again.rolled_back(5, 0, "the loss is NaN", 0.5);
        again.validation(6, &[Some(0.5), Some(0.75)], 0.625, true);
        std::fs::create_dir(&model).unwrap();
        let curve = again.finish().unwrap();
        let losses: Vec<_> = curve.steps.iter().map(|s| (s.step, s.loss)).collect();
        assert_eq!(
            losses,
            [(1, 9.0), (2, 9.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0)]
        );
        assert_eq!(curve.validations.len(), 1);
        assert_eq!(curve.validations[0].of("spleen"), Some(0.75));
        assert_eq!(curve.cases, [note]);
        assert_eq!(curve.rolled_back.len(), 1);
        assert_eq!(curve.rolled_back[0].reason, "the loss is NaN");
        assert!(model.join("training.jsonl").is_file() && !beside.exists());
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{}\n{\"step\":1}\n").unwrap();
        let error = format!("{:#}", Curve::read(&path).unwrap_err());
        assert!(error.contains("line 1"), "{error}");
    }
}
