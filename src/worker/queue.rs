//! The worker and the queue: one job after the other, urgent ones in between.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::outcome::{Failure, Outcome, is_out_of_memory, panic_text};
use super::reporter::{Reporter, beat};
use super::{LEASE_S, Worker};
use crate::project::{Claimed, Finish, JobKind, StoreError};
use crate::rounds::conclude;

impl Worker {
    /// Runs the most urgent job of these kinds; false when there is none.
    pub(super) fn next(&mut self, kinds: &[JobKind]) -> Result<bool, StoreError> {
        let jobs = self.project.jobs().clone();
        let Some(claimed) = self
            .runtime
            .block_on(jobs.claim(&self.name, kinds, LEASE_S))?
        else {
            return Ok(false);
        };
        let reporter = Reporter::new();
        let beating = self.runtime.spawn(beat(
            self.project.clone(),
            claimed.clone(),
            reporter.clone(),
        ));
        // A panic in the network's code must cost one job, not the worker's other jobs.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.work(&claimed, &reporter)
        }))
        .unwrap_or_else(|panic| {
            Err(Failure::Error(
                match is_out_of_memory(&panic_text(&*panic)) {
                    true => {
                        "there is too little memory on this device for this; nothing was changed"
                            .to_owned()
                    }
                    false => "internal error: the worker's log has the details".to_owned(),
                },
            ))
        });
        beating.abort();
        let ending = self.ending.load(Ordering::Relaxed);
        if ending && matches!(outcome, Err(Failure::Stopped)) && reporter.flow().is_continue() {
            // Nobody stopped this job: the server goes down. Its lease ends, and the next worker takes it up.
            return Ok(true);
        }
        let (progress, lines) = reporter.take();
        let finish = match outcome {
            Ok(result) => Finish::Done(result),
            Err(Failure::Stopped) => Finish::Stopped,
            Err(Failure::Image(error)) => Finish::Error(error.to_string()),
            Err(Failure::Refused(reason) | Failure::Error(reason)) => Finish::Error(reason),
        };
        self.runtime.block_on(async {
            // The last lines first: a finished job takes no more.
            let beat = jobs.heartbeat(&claimed, progress, &lines).await;
            if beat.is_ok_and(|beat| beat.cancel) && !matches!(finish, Finish::Stopped) {
                tracing::warn!(
                    "job {} was stopped while it finished; its result is not kept",
                    claimed.job.id
                );
            }
            if let Err(error) = jobs.finish(&claimed, finish).await {
                tracing::warn!(
                    "job {} is not this worker's any more: {error}",
                    claimed.job.id
                );
            }
            let job = jobs.get(claimed.job.id).await;
            // A round that another worker has taken up still needs what lies there.
            let over = job.is_ok_and(|job| job.is_none_or(|job| job.state.is_finished()));
            if over && claimed.job.kind == JobKind::Train {
                conclude::tidy(&self.project, &claimed.job.id.to_string());
            }
        });
        Ok(true)
    }

    fn work(&mut self, claimed: &Claimed, reporter: &Reporter) -> Outcome {
        let payload = claimed.job.payload.clone();
        match claimed.job.kind {
            JobKind::Infer => self.infer(&claimed.job, serde_json::from_value(payload)?, reporter),
            JobKind::BatchInfer => self.batch_infer(serde_json::from_value(payload)?, reporter),
            JobKind::Train => self.train(claimed, serde_json::from_value(payload)?, reporter),
            JobKind::Score => self.score(serde_json::from_value(payload)?, reporter),
        }
    }

    /// Called by long jobs at every step: runs inferences that wait, and says whether to go on.
    pub(super) fn yield_to_urgent(&mut self, reporter: &Reporter) -> ControlFlow<()> {
        while !self.ending.load(Ordering::Relaxed) && reporter.flow().is_continue() {
            match self.next(&[JobKind::Infer]) {
                Ok(true) => {}
                Ok(false) => return ControlFlow::Continue(()),
                Err(error) => {
                    tracing::warn!("the queue does not answer: {error}");
                    return ControlFlow::Continue(());
                }
            }
        }
        ControlFlow::Break(())
    }
}
