//! Proposals ahead, while there is nothing else to do.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::models::Window;
use super::outcome::{Failure, panic_text};
use super::{ALL_KINDS, Reporter, Worker};
use crate::imaging::Budget;
use crate::rounds::ahead::{Ahead, Wanted};
use crate::rounds::strategy::StrategyError;

/// Pause between two looks at what may be wanted.
const LOOK: Duration = Duration::from_secs(1);

/// What the worker knows from its last look.
#[derive(Default)]
pub(super) struct Idle {
    looked: Option<Instant>,
    /// [`Ahead::state`] when there was nothing left to do.
    done_at: String,
    /// What cannot be made.
    failed: HashSet<String>,
}

impl Worker {
    /// Makes the proposal that will most probably be asked for next; false when there is none to make. Ends as soon as
    /// there is a job.
    pub(super) fn work_ahead(&mut self) -> bool {
        if self
            .idle
            .looked
            .is_some_and(|looked| looked.elapsed() < LOOK)
        {
            return false;
        }
        let outcome = self.look_ahead();
        self.idle.looked = Some(Instant::now());
        match outcome {
            Ok(Some(wanted)) => {
                self.make(&wanted);
                // The next one at once.
                self.idle.looked = None;
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!("no proposals are made ahead for now: {error}");
                false
            }
        }
    }

    fn look_ahead(&mut self) -> Result<Option<Wanted>, StrategyError> {
        let (project, ahead) = (self.project.clone(), self.ahead.clone());
        if project.read_only().is_some() {
            return Ok(None);
        }
        let state = self.runtime.block_on(Ahead::state(&project))?;
        if state == self.idle.done_at {
            return Ok(None);
        }
        let wanted = self.runtime.block_on(ahead.look(&project))?;
        let failed = &self.idle.failed;
        let next = wanted
            .into_iter()
            .find(|wanted| !failed.contains(wanted.key()));
        if next.is_none() {
            self.idle.done_at = state;
        }
        Ok(next)
    }

    fn make(&mut self, wanted: &Wanted) {
        let (jobs, runtime, ending) = (
            self.project.jobs().clone(),
            self.runtime.handle().clone(),
            self.ending.clone(),
        );
        let reporter = Reporter::giving_way(move || {
            let waits = runtime.block_on(jobs.any_waiting(&ALL_KINDS));
            ending.load(Ordering::Relaxed) || waits.unwrap_or(true)
        });
        if let Err(error) = self.ahead.begin(wanted) {
            tracing::warn!("no proposals are made ahead for now: {error}");
            self.idle.failed.insert(wanted.key().to_owned());
            return;
        }
        // Nobody asked for it: it may fail, but not end the worker.
        let made = catch_unwind(AssertUnwindSafe(|| {
            let file = self
                .runtime
                .block_on(self.project.image_file(&wanted.image))?;
            self.propose(
                &wanted.version,
                file.path(),
                &Budget::default(),
                Window::Whole,
                &reporter,
            )
        }))
        .unwrap_or_else(|panic| Err(Failure::Error(panic_text(&*panic))));
        self.ahead.end(wanted);
        let kept = match made {
            Ok(proposal) => self
                .ahead
                .keep(wanted, &proposal.labels, &proposal.about)
                .map_err(|error| error.to_string()),
            Err(Failure::Stopped) => return,
            Err(Failure::Image(error)) => Err(error.to_string()),
            Err(Failure::Refused(reason) | Failure::Error(reason)) => Err(reason),
        };
        if let Err(reason) = kept {
            tracing::warn!("a proposal could not be made ahead: {reason}");
            self.idle.failed.insert(wanted.key().to_owned());
        }
    }
}
