//! The worker process, seen from the server: started, restarted when it ends, stopped with the server.
//!
//! A worker that crashed, or that does not answer for a minute, is started again.
//!
//! The child's standard input is the only tie: when it closes, the server is gone and the worker ends. The worker takes
//! its jobs from the store, so a crash on either side loses nothing: what a dead worker held goes back into the queue.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::worker_name;
use crate::model::{DeviceChoice, PrecisionChoice};
use crate::project::{Jobs, Pulse};

/// Pause before a worker that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two looks at how the worker is.
const LOOK: Duration = Duration::from_secs(2);
/// A worker that takes none of the waiting jobs for so long is silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a stopping worker may take to end its job before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// The worker process and what keeps it running.
pub struct Supervisor {
    alive: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    keeper: JoinHandle<()>,
}

/// Starts the worker process for a data directory, whose queue is `jobs`, and restarts it whenever it ends.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(
    data: &Path,
    jobs: Jobs,
    device: &DeviceChoice,
    precision: &PrecisionChoice,
) -> io::Result<Supervisor> {
    let start = Start {
        program: std::env::current_exe()?,
        data: data.to_owned(),
        device: device.to_string(),
        precision: precision.to_string(),
    };
    let child = start.child()?;
    let (alive, stop) = (watch::Sender::new(true), watch::Sender::new(false));
    let keeper = tokio::spawn(keep(start, child, jobs, alive.clone(), stop.subscribe()));
    Ok(Supervisor {
        alive,
        stop,
        keeper,
    })
}

impl Supervisor {
    /// True while the worker process runs.
    pub fn alive(&self) -> watch::Receiver<bool> {
        self.alive.subscribe()
    }

    /// Asks the worker to end, from elsewhere.
    pub fn stopper(&self) -> watch::Sender<bool> {
        self.stop.clone()
    }

    /// Lets the worker end its job and waits until the process is gone.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.keeper.await {
            tracing::warn!("the worker's keeper ended badly: {error}");
        }
    }
}

/// How to start a worker.
struct Start {
    program: PathBuf,
    data: PathBuf,
    device: String,
    precision: String,
}

impl Start {
    fn child(&self) -> io::Result<Child> {
        Command::new(&self.program)
            .arg("worker")
            .arg("--data")
            .arg(&self.data)
            .args(["--device", &self.device])
            .args(["--precision", &self.precision])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }
}

async fn keep(
    start: Start,
    first: Child,
    jobs: Jobs,
    alive: watch::Sender<bool>,
    mut stop: watch::Receiver<bool>,
) {
    let mut child = first;
    loop {
        // Held here, closed to ask the worker to end.
        let tie = child.stdin.take();
        let name = child.id().map(worker_name);
        tokio::select! {
            ended = child.wait() => {
                alive.send_replace(false);
                tracing::warn!("the worker ended ({ended:?}); it is started again");
                if let Some(name) = name
                    && let Err(error) = jobs.abandon(&name).await
                {
                    tracing::warn!("its jobs are taken up when their leases are over: {error}");
                }
            }
            () = silent(&jobs, name.as_deref()) => {
                tracing::error!("the worker does not answer any more and is killed; it is started again");
                drop(child.kill().await);
                alive.send_replace(false);
                if let Some(name) = name
                    && let Err(error) = jobs.abandon(&name).await
                {
                    tracing::warn!("its jobs are taken up when their leases are over: {error}");
                }
            }
            () = asked(&mut stop) => {
                drop(tie);
                if tokio::time::timeout(STOP_PATIENCE, child.wait()).await.is_err() {
                    tracing::warn!("the worker did not end in time and is killed; its job is taken up at the next start");
                    drop(child.kill().await);
                }
                alive.send_replace(false);
                return;
            }
        }
        child = loop {
            tokio::select! {
                () = tokio::time::sleep(RESTART_PAUSE) => {}
                () = asked(&mut stop) => return,
            }
            match start.child() {
                Ok(child) => break child,
                Err(error) => tracing::error!("the worker cannot be started: {error}"),
            }
        };
        alive.send_replace(true);
    }
}

/// Returns when the worker is silent: twice in a row a lease of it was over, or jobs wait for [`SILENCE`] and it takes none.
async fn silent(jobs: &Jobs, name: Option<&str>) {
    let Some(name) = name else {
        return std::future::pending().await;
    };
    let (mut lost, mut unclaimed) = (0, 0);
    loop {
        tokio::time::sleep(LOOK).await;
        match jobs.pulse(name).await {
            Ok(Pulse::Well) => (lost, unclaimed) = (0, 0),
            Ok(Pulse::Lost) => lost += 1,
            Ok(Pulse::Unclaimed) => unclaimed += 1,
            Err(error) => tracing::warn!("the queue does not say how the worker is: {error}"),
        }
        if lost == 2 || LOOK * unclaimed >= SILENCE {
            return;
        }
    }
}

/// Returns when the worker is to stop.
async fn asked(stop: &mut watch::Receiver<bool>) {
    // An error means that the supervisor is gone, which asks for the same.
    drop(stop.wait_for(|stop| *stop).await);
}
