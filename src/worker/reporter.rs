//! What a running job tells the queue, and what the queue tells it.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::project::{Claimed, Project};

const HEARTBEAT: Duration = Duration::from_secs(1);

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
}

impl Reporter {
    /// A reporter that nothing was told to.
    pub fn new() -> Self {
        Self {
            shown: Arc::default(),
            cancelled: Arc::default(),
        }
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
        self.shown().progress = Some(progress);
    }

    /// Adds a line to the details that clients see.
    pub fn line(&self, line: String) {
        tracing::info!("{line}");
        self.shown().lines.push(line);
    }

    /// Whether the job may go on.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// Renews the lease, shows progress, hears of a stop.
pub async fn beat(project: Project, claimed: Claimed, reporter: Reporter) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
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
