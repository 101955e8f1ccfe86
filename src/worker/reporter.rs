//! What a running job tells the queue, and what the queue tells it.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::project::{Claimed, JobKind, Project};

const HEARTBEAT: Duration = Duration::from_secs(1);
/// Computing that says nothing for so long hangs: it gets no more heartbeats, and is killed when its lease is over.
const SILENCE: Duration = Duration::from_secs(10 * 60);
/// Likewise for training, which reads every case before its first step.
const SILENCE_OF_TRAINING: Duration = Duration::from_secs(60 * 60);

/// What a running job shows to the outside.
#[derive(Default)]
struct Shown {
    progress: Option<Value>,
    lines: Vec<String>,
}

/// A running job's face to the queue, renewed by the heartbeat.
#[derive(Clone)]
pub struct Reporter {
    shown: Arc<Mutex<Shown>>,
    cancelled: Arc<AtomicBool>,
    /// When the work last said anything.
    sign: Arc<Mutex<Instant>>,
    /// Whether the work ends for something else.
    gives_way: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl Reporter {
    /// A reporter that nothing was told to.
    pub fn new() -> Self {
        Self {
            shown: Arc::default(),
            cancelled: Arc::default(),
            sign: Arc::new(Mutex::new(Instant::now())),
            gives_way: None,
        }
    }

    /// One for work that nobody asked for, which ends as soon as `now` says so.
    pub fn giving_way(now: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            gives_way: Some(Arc::new(now)),
            ..Self::new()
        }
    }

    fn sign(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.sign.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The progress and lines that the queue has not heard yet.
    pub fn take(&self) -> (Option<Value>, Vec<String>) {
        let shown = std::mem::take(&mut *self.shown());
        (shown.progress, shown.lines)
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the progress that clients see.
    pub fn progress(&self, progress: Value) {
        *self.sign() = Instant::now();
        self.shown().progress = Some(progress);
    }

    /// Adds a line to the details that clients see.
    pub fn line(&self, line: String) {
        tracing::info!("{line}");
        self.shown().lines.push(line);
    }

    /// Whether the job may go on.
    pub fn flow(&self) -> ControlFlow<()> {
        *self.sign() = Instant::now();
        let gives_way = self.gives_way.as_ref().is_some_and(|now| now());
        if gives_way || self.cancelled.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// Renews the lease, shows progress, hears of a stop.
pub async fn beat(project: Project, claimed: Claimed, reporter: Reporter) {
    let patience = match claimed.job.kind {
        JobKind::Train => SILENCE_OF_TRAINING,
        _ => SILENCE,
    };
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        if reporter.sign().elapsed() > patience {
            tracing::error!("job {} hangs; it is given up", claimed.job.id);
            return;
        }
        let (progress, lines) = reporter.take();
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
