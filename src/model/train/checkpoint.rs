//! A run between two steps: everything that the rest of it depends on.
//!
//! Samples, dropout and learning rate are functions of the seed and the step, so the weights with their running
//! statistics, the moments of Adam and the number of steps are the whole state. A run continued from here gives, on a
//! CPU, bit for bit the weights of one that was never interrupted.

use std::path::Path;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::record::AdaptorRecord;
use burn::optim::{AdamState, AdaptiveMomentumState, Optimizer};
use burn::tensor::{Tensor, TensorData};

use super::optimiser::{Adam, AdamOf};
use crate::model::error::ModelError;
use crate::model::kernels::Kernels;
use crate::model::manifest::replace_file;
use crate::model::pct_net::PctNet;
use crate::model::weights::{
    HostTensor, Notes, State, export, import, parse, parse_notes, published_name, serialise_with,
    to_f32,
};

const NET: &str = "net/";
const FIRST: &str = "adam.first/";
const SECOND: &str = "adam.second/";
const TIME: &str = "adam.time/";

/// A saved run.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::model) struct Checkpoint {
    /// Steps made.
    pub step: usize,
    /// What defines the run, as text; a run is only continued with the same.
    pub run: String,
    /// What the run found out on the way, as text.
    pub notes: String,
    /// Network and optimiser, and what the run adds under names of its own.
    pub tensors: State,
}

impl Checkpoint {
    /// Writes the file anew; after a crash the old one or the new one is there.
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        let notes = Notes::from([
            ("step".to_owned(), self.step.to_string()),
            ("run".to_owned(), self.run.clone()),
            ("notes".to_owned(), self.notes.clone()),
        ]);
        let bytes = serialise_with(&self.tensors, Some(notes))
            .map_err(|reason| ModelError::bad(path, reason))?;
        replace_file(path, &bytes).map_err(ModelError::io(path))
    }

    /// Reads a file, and refuses it when it belongs to another run than `run`.
    pub fn load(path: &Path, run: &str) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
        let bad = |reason: String| ModelError::bad(path, reason);
        let mut notes = parse_notes(&bytes).map_err(bad)?;
        let mut take = |key: &str| {
            notes.remove(key).ok_or_else(|| {
                ModelError::bad(path, format!("it is no checkpoint: {key} is missing"))
            })
        };
        let step = take("step")?;
        let checkpoint = Self {
            step: step
                .parse()
                .map_err(|_| ModelError::bad(path, format!("step {step:?} is no number")))?,
            run: take("run")?,
            notes: take("notes")?,
            tensors: parse(&bytes).map_err(bad)?,
        };
        if checkpoint.run != run {
            let reason = format!(
                "the run that it belongs to had other options or data, so going on would mix two runs: {}. Repeat the \
                 command of that run with --resume, or start anew without --resume and with another output",
                first_difference(&checkpoint.run, run)
            );
            return Err(ModelError::bad(path, reason));
        }
        Ok(checkpoint)
    }
}

/// The first line in which two texts differ.
fn first_difference(old: &str, new: &str) -> String {
    let lines = old.lines().map(str::trim).zip(new.lines().map(str::trim));
    lines
        .filter(|(old, new)| old != new)
        .map(|(old, new)| format!("it was {old}, and is now {new}"))
        .next()
        .unwrap_or_else(|| "one has more settings than the other".to_owned())
}

/// Network and optimiser as named arrays.
pub(in crate::model) fn take<B: Kernels>(
    net: &PctNet<Autodiff<B>>,
    optimiser: &AdamOf<B>,
    resolution_mode: u8,
) -> State {
    let mut state: State = export(&net.valid(), resolution_mode)
        .into_iter()
        .map(|(name, tensor)| (format!("{NET}{name}"), tensor))
        .collect();
    let mut moments = Taker::<B> {
        path: Vec::new(),
        resolution_mode,
        records: optimiser.to_record(),
        state: &mut state,
    };
    net.visit(&mut moments);
    state
}

/// Puts network and optimiser back as [`take`] found them.
///
/// # Errors
/// An array that the network needs is missing or of another shape.
pub(in crate::model) fn put_back<B: Kernels>(
    state: &State,
    net: PctNet<Autodiff<B>>,
    optimiser: AdamOf<B>,
    resolution_mode: u8,
    device: &B::Device,
) -> Result<(PctNet<Autodiff<B>>, AdamOf<B>), ModelError> {
    let weights: State = state
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(NET)?.to_owned(), tensor.clone())))
        .collect();
    let (net, report) = import(net, &weights, resolution_mode);
    if let Some(name) = report
        .missing
        .first()
        .or(report.reshaped.first().map(|reshaped| &reshaped.name))
    {
        return Err(ModelError::Data(format!(
            "the checkpoint does not fit this network, for example {name}; start anew without --resume"
        )));
    }
    let mut moments = Giver::<B> {
        path: Vec::new(),
        resolution_mode,
        state,
        device,
        records: Default::default(),
    };
    net.visit(&mut moments);
    Ok((net, optimiser.load_record(moments.records)))
}

type Records<B> = <AdamOf<B> as Optimizer<PctNet<Autodiff<B>>, Autodiff<B>>>::Record;

/// Copies the moments of each parameter out of the optimiser.
struct Taker<'a, B: Kernels> {
    path: Vec<String>,
    resolution_mode: u8,
    records: Records<B>,
    state: &'a mut State,
}

impl<B: Kernels> ModuleVisitor<Autodiff<B>> for Taker<'_, B> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        // Running statistics, and parameters that never had a gradient, have no record.
        let Some(record) = self.records.remove(&param.id) else {
            return;
        };
        let momentum = record.into_state::<D>().momentum;
        let name = published_name(&self.path, self.resolution_mode);
        let mut keep = |prefix: &str, shape: Vec<usize>, values: Vec<f32>| {
            self.state
                .insert(format!("{prefix}{name}"), HostTensor { shape, values });
        };
        let shape = momentum.moment_1.dims().to_vec();
        keep(FIRST, shape.clone(), to_f32(momentum.moment_1.into_data()));
        keep(SECOND, shape, to_f32(momentum.moment_2.into_data()));
        // Exact up to 2^24 steps.
        keep(TIME, vec![1], vec![momentum.time as f32]);
    }
}

/// Builds the optimiser's record from the arrays.
struct Giver<'a, B: Kernels> {
    path: Vec<String>,
    resolution_mode: u8,
    state: &'a State,
    device: &'a B::Device,
    records: Records<B>,
}

impl<B: Kernels> ModuleVisitor<Autodiff<B>> for Giver<'_, B> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let name = published_name(&self.path, self.resolution_mode);
        let find = |prefix: &str| self.state.get(&format!("{prefix}{name}"));
        let shape = param.dims();
        let moment = |prefix: &str| -> Option<Tensor<B, D>> {
            let found = find(prefix).filter(|found| found.shape == shape)?;
            let data = TensorData::new(found.values.clone(), shape);
            Some(Tensor::from_data(data, self.device))
        };
        let time = find(TIME).and_then(|time| time.values.first());
        if let (Some(first), Some(second), Some(&time)) = (moment(FIRST), moment(SECOND), time) {
            let momentum = AdaptiveMomentumState::new(time as usize, first, second);
            let record =
                AdaptorRecord::<Adam, Autodiff<B>>::from_state::<D>(AdamState::new(momentum));
            self.records.insert(param.id, record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: usize) -> Checkpoint {
        let tensor = HostTensor {
            shape: vec![2],
            values: vec![0.1 + step as f32, f32::MIN_POSITIVE],
        };
        Checkpoint {
            step,
            run: "{\n  \"seed\": 1,\n  \"steps\": 9\n}".to_owned(),
            notes: "{}".to_owned(),
            tensors: State::from([("net/a".to_owned(), tensor)]),
        }
    }

    #[test]
    fn a_checkpoint_survives_the_file_and_replaces_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        for step in [3, 4] {
            checkpoint(step).save(&path).unwrap();
            let found = Checkpoint::load(&path, &checkpoint(step).run).unwrap();
            assert_eq!(found, checkpoint(step));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_run_is_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        checkpoint(3).save(&path).unwrap();
        let other = checkpoint(3).run.replace("9", "10");
        let error = Checkpoint::load(&path, &other).unwrap_err().to_string();
        assert!(
            error.contains("\"steps\": 9") && error.contains("\"steps\": 10"),
            "{error}"
        );
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 5, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(
                Checkpoint::load(&path, &checkpoint(3).run).is_err(),
                "cut at {cut}"
            );
        }
    }
}
