//! The process that computes: takes jobs from the queue, runs them, commits through the domain.
//!
//! One thread computes; store calls and heartbeats run on a small runtime beside it. A job of a person who waits
//! (inference) goes before everything: long jobs look for one between steps and run it inline ([`Worker::yield_to_urgent`]).
//! A job's lease is renewed by a heartbeat while it runs; when the lease is lost or the job is stopped, the work ends at
//! the next step and its result is not kept.

mod batch;
mod infer;
mod score;
pub mod supervisor;
mod train;

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::imaging::ImagingError;
use crate::model::DeviceChoice;
use crate::project::{Claimed, Finish, JobKind, Project, ProjectError, StoreError};

const ALL_KINDS: [JobKind; 4] = [JobKind::Infer, JobKind::Score, JobKind::BatchInfer, JobKind::Train];
/// A worker that does not renew its lease for so long has lost its job.
const LEASE_S: u32 = 30;
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Pause between two looks into an empty queue: what an inference may wait for at most.
const POLL: Duration = Duration::from_millis(25);

/// Why a job ended without a result.
enum Failure {
    /// It was stopped, or its lease was lost.
    Stopped,
    /// The image cannot be used.
    Image(ImagingError),
    /// What to tell the client.
    Error(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.to_string())
    }
}

type Outcome = Result<Value, Failure>;

/// What a running job shows to the outside.
#[derive(Default)]
struct Shown {
    progress: Option<Value>,
    lines: Vec<String>,
}

/// A running job's face to the queue, renewed by the heartbeat.
#[derive(Clone)]
struct Reporter {
    shown: Arc<Mutex<Shown>>,
    cancelled: Arc<AtomicBool>,
}

impl Reporter {
    fn new() -> Self {
        Self { shown: Arc::default(), cancelled: Arc::default() }
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self, progress: Value) {
        self.shown().progress = Some(progress);
    }

    fn line(&self, line: String) {
        tracing::info!("{line}");
        self.shown().lines.push(line);
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.cancelled.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// The computing side.
struct Worker {
    project: Project,
    runtime: Runtime,
    device: DeviceChoice,
    name: String,
    /// Set when the server is gone or asks the worker to end.
    ending: Arc<AtomicBool>,
    models: infer::Models,
}

/// Works on the jobs of a data directory until standard input closes.
///
/// # Errors
/// When the store cannot be opened or stops answering.
pub fn run(data: &Path, device: DeviceChoice) -> Result<(), ProjectError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(StoreError::from)?;
    let project = runtime.block_on(Project::open_worker(data))?;
    let ending = Arc::new(AtomicBool::new(false));
    watch_input(ending.clone());
    let name = format!("worker-{}", std::process::id());
    let mut worker = Worker { project, runtime, device, name, ending, models: Default::default() };
    while !worker.ending.load(Ordering::Relaxed) {
        if !worker.next(&ALL_KINDS)? {
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// Standard input closes when the server is gone: its process keeps the other end open and never writes.
fn watch_input(ending: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut byte = [0u8];
        while !matches!(std::io::stdin().read(&mut byte), Ok(0) | Err(_)) {}
        ending.store(true, Ordering::Relaxed);
    });
}

impl Worker {
    /// Runs the most urgent job of these kinds; false when there is none.
    fn next(&mut self, kinds: &[JobKind]) -> Result<bool, StoreError> {
        let jobs = self.project.jobs().clone();
        let Some(claimed) = self.runtime.block_on(jobs.claim(&self.name, kinds, LEASE_S))? else {
            return Ok(false);
        };
        let reporter = Reporter::new();
        let beating = self.runtime.spawn(beat(self.project.clone(), claimed.clone(), reporter.clone()));
        // A panic in the network's code must cost one job, not the worker's other jobs.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work(&claimed, &reporter)))
            .unwrap_or_else(|_| Err(Failure::Error("internal error: the worker's log has the details".to_owned())));
        beating.abort();
        let ending = self.ending.load(Ordering::Relaxed);
        if ending && matches!(outcome, Err(Failure::Stopped)) && reporter.flow().is_continue() {
            // Nobody stopped this job: the server goes down. Its lease ends, and the next worker takes it up.
            return Ok(true);
        }
        let shown = std::mem::take(&mut *reporter.shown());
        let finish = match outcome {
            Ok(result) => Finish::Done(result),
            Err(Failure::Stopped) => Finish::Stopped,
            Err(Failure::Image(error)) => Finish::Error(error.to_string()),
            Err(Failure::Error(reason)) => Finish::Error(reason),
        };
        self.runtime.block_on(async {
            // The last lines first: a finished job takes no more.
            let beat = jobs.heartbeat(&claimed, shown.progress, &shown.lines).await;
            if beat.is_ok_and(|beat| beat.cancel) && !matches!(finish, Finish::Stopped) {
                tracing::warn!("job {} was stopped while it finished; its result is not kept", claimed.job.id);
            }
            if let Err(error) = jobs.finish(&claimed, finish).await {
                tracing::warn!("job {} is not this worker's any more: {error}", claimed.job.id);
            }
        });
        Ok(true)
    }

    fn work(&mut self, claimed: &Claimed, reporter: &Reporter) -> Outcome {
        let payload = claimed.job.payload.clone();
        match claimed.job.kind {
            JobKind::Infer => self.infer(&claimed.job.id.to_string(), serde_json::from_value(payload)?, reporter),
            JobKind::BatchInfer => self.batch_infer(serde_json::from_value(payload)?, reporter),
            JobKind::Train => self.train(serde_json::from_value(payload)?, reporter),
            JobKind::Score => self.score(serde_json::from_value(payload)?, reporter),
        }
    }

    /// Called by long jobs at every step: runs inferences that wait, and says whether to go on.
    fn yield_to_urgent(&mut self, reporter: &Reporter) -> ControlFlow<()> {
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

/// Renews the lease, shows progress, hears of a stop.
async fn beat(project: Project, claimed: Claimed, reporter: Reporter) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let (progress, lines) = {
            let mut shown = reporter.shown();
            (shown.progress.take(), std::mem::take(&mut shown.lines))
        };
        match project.jobs().heartbeat(&claimed, progress, &lines).await {
            Ok(beat) if beat.cancel => {
                reporter.cancelled.store(true, Ordering::Relaxed);
                return;
            }
            Ok(_) => {}
            // One missed beat is no lost lease; the next one says more.
            Err(error) => tracing::warn!("heartbeat of job {}: {error}", claimed.job.id),
        }
    }
}
