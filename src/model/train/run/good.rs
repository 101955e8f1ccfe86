//! States that gave finite numbers, and the way back to them.

use std::ops::ControlFlow;

use burn::module::AutodiffModule;

use super::Trainer;
use crate::model::error::ModelError;
use crate::model::kernels::Kernels;
use crate::model::train::checkpoint;
use crate::model::train::request::TrainEvent;
use crate::model::weights::{State, export, import};

/// A state to return to.
pub(super) struct Good {
    pub step: usize,
    pub tensors: State,
    pub average: Option<State>,
}

impl<B: Kernels> Trainer<'_, B> {
    pub(super) fn state(&self, step: usize) -> Good {
        Good {
            step,
            tensors: checkpoint::take(&self.net, &self.optimiser, self.mode()),
            average: self.average_state(),
        }
    }

    pub(super) fn average_state(&self) -> Option<State> {
        let average = self.average.as_ref()?;
        Some(export(average, self.mode()))
    }

    pub(super) fn put_back(&mut self, tensors: &State) -> Result<(), ModelError> {
        // Running statistics of a forward pass wait to be taken in; they must not come after the old ones.
        drop(self.net.valid());
        let (net, optimiser) = (self.net.clone(), self.optimiser.clone());
        (self.net, self.optimiser) =
            checkpoint::put_back(tensors, net, optimiser, self.mode(), &self.device)?;
        Ok(())
    }

    /// Puts the last good state back where the update that came last, which no step has proven, left numbers that are not
    /// finite; says then whether to go on.
    pub(super) fn leave_spoiled(
        &mut self,
        step: usize,
        on: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<Option<ControlFlow<()>>, ModelError> {
        let finite = |state: &State| {
            let mut values = state.values().flat_map(|tensor| &tensor.values);
            values.all(|value| value.is_finite())
        };
        if finite(&export(&self.current(), self.mode())) {
            return Ok(None);
        }
        self.fail(step, "the weights are not finite", on).map(Some)
    }

    pub(super) fn put_average_back(&mut self, state: Option<&State>) {
        if let (Some(average), Some(state)) = (self.average.take(), state) {
            self.average = Some(import(average, state, self.mode()).0);
        }
    }
}
