//! The process that computes: takes jobs from the queue, runs them, commits through the domain.
//!
//! One thread computes; store calls and heartbeats run on a small runtime beside it. A job of a person who waits
//! (inference) goes before everything: long jobs look for one between steps and run it inline ([`Worker::yield_to_urgent`]).
//! With nothing to do it makes proposals ahead (`ahead`). A job's lease is renewed by a heartbeat while it runs; when the
//! lease is lost or the job is stopped, the work ends at the next step and its result is not kept.

mod ahead;
mod batch;
mod compare;
mod infer;
mod interactive;
mod models;
mod outcome;
mod queue;
mod reporter;
mod scans;
mod score;
mod score_pool;
pub mod supervisor;
mod train;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::model::{DeviceChoice, PrecisionChoice, keep_kernels_in, probe_device};
use crate::project::{JobKind, Project, ProjectError, StoreError};
use crate::rounds::ahead::Ahead;
use outcome::{Failure, Outcome};
use reporter::Reporter;

const ALL_KINDS: [JobKind; 4] = [
    JobKind::Infer,
    JobKind::Score,
    JobKind::BatchInfer,
    JobKind::Train,
];
/// A worker that does not renew its lease for so long is silent: it is killed and has lost its job.
const LEASE_S: u32 = 60;
/// Pause between two looks into an empty queue: what an inference may wait for at most.
const POLL: Duration = Duration::from_millis(25);

/// The computing side.
struct Worker {
    project: Project,
    runtime: Runtime,
    device: DeviceChoice,
    precision: PrecisionChoice,
    name: String,
    /// Set when the server is gone or asks the worker to end.
    ending: Arc<AtomicBool>,
    models: models::Models,
    scans: scans::HeldScans,
    ahead: Ahead,
    idle: ahead::Idle,
}

/// Works on the jobs of a data directory until standard input closes.
///
/// # Errors
/// When the store cannot be opened or stops answering.
pub fn run(
    data: &Path,
    device: DeviceChoice,
    precision: PrecisionChoice,
) -> Result<(), ProjectError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(StoreError::from)?;
    let project = runtime.block_on(Project::open_worker(data))?;
    let ahead = Ahead::of(&project);
    let ending = Arc::new(AtomicBool::new(false));
    watch_input(ending.clone());
    let name = worker_name(std::process::id());
    keep_kernels_in(&data.join("kernels"));
    match probe_device(device) {
        Ok(device) => match device.note() {
            Some(note) => tracing::info!("{note}"),
            None => tracing::info!("computing on the CPU"),
        },
        Err(error) => tracing::error!("{error}; jobs will fail"),
    }
    let mut worker = Worker {
        project,
        runtime,
        device,
        precision,
        name,
        ending,
        models: Default::default(),
        scans: Default::default(),
        ahead,
        idle: Default::default(),
    };
    while !worker.ending.load(Ordering::Relaxed) {
        if !worker.next(&ALL_KINDS)? && !worker.work_ahead() {
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// What the queue calls the worker of a process id.
fn worker_name(pid: u32) -> String {
    format!("worker-{pid}")
}

/// Standard input closes when the server is gone: its process keeps the other end open and never writes.
fn watch_input(ending: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut byte = [0u8];
        while !matches!(std::io::stdin().read(&mut byte), Ok(0) | Err(_)) {}
        ending.store(true, Ordering::Relaxed);
    });
}
