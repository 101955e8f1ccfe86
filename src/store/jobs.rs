//! The queue of work: rows that a worker leases, keeps alive by heartbeats, and finishes.
//!
//! ```text
//! SUBMITTED --claim--> RUNNING --finish--> DONE | ERROR | STOPPED
//!     ^                   |
//!     +--- lease over ----+   at most twice, then ERROR
//! ```
//! Work runs outside of transactions. Every claim, loss and stop raises the job's fencing number,
//! and a worker that comes back with an older number is refused: a job finishes once.

mod pulse;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;
use uuid::Uuid;

use super::StoreError;
use super::rows::{Database, sql};
use crate::clock::Clock;

pub use pulse::Pulse;

/// Names one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobId(Uuid);

/// What kind of work a job is, in the order of urgency: the first is claimed before the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Segment one image; a person waits.
    Infer,
    /// Score images for selection.
    Score,
    /// Segment many images.
    BatchInfer,
    /// Fine-tune a model.
    Train,
}

/// Where a job stands. The names are those of the MONAI Label protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobState {
    /// Waits for a worker.
    Submitted,
    /// A worker has it.
    Running,
    /// Finished with a result.
    Done,
    /// Finished with an error.
    Error,
    /// Stopped on request.
    Stopped,
}

/// One job as the clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Kind of work.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// What the client sent, echoed to clients.
    pub request: Value,
    /// What the worker reads.
    pub payload: Value,
    /// When it was enqueued, milliseconds since 1970-01-01 UTC.
    pub start_ts: i64,
    /// When it finished.
    pub end_ts: Option<i64>,
    /// The last [`MAX_DETAILS`] lines that the worker wrote.
    pub details: Vec<String>,
    /// The worker's last progress; null before the first.
    pub progress: Value,
    /// The result; null unless done.
    pub result: Value,
    /// Why it failed or was stopped.
    pub error: Option<String>,
    /// How often a worker took it.
    pub attempts: i64,
}

/// A job to be enqueued.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Kind of work.
    pub kind: JobKind,
    /// What the worker reads.
    pub payload: Value,
    /// What the client sent.
    pub request: Value,
}

/// How many jobs of a kind wait, or run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveCount {
    /// Kind of work.
    pub kind: JobKind,
    /// Whether a worker has them.
    pub running: bool,
    /// How many.
    pub count: i64,
    /// When the oldest was enqueued, milliseconds since 1970-01-01 UTC.
    pub oldest_ms: i64,
}

/// A leased job; only with it can the job be finished.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// The job as it was when claimed.
    pub job: Job,
    /// The fencing number of this lease.
    pub fence: i64,
    lease_s: u32,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The job was stopped or given to another worker: end the work, its result is not wanted.
    pub cancel: bool,
}

/// How a worker ends a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// With a result.
    Done(Value),
    /// With a reason.
    Error(String),
    /// Because it was asked to stop.
    Stopped,
}

/// Lines of detail kept per job.
pub const MAX_DETAILS: usize = 20;
/// A job is tried so often before it fails for good: once, and again after two lost leases.
pub const MAX_ATTEMPTS: i64 = 3;

/// The queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs {
    database: Database,
    clock: Arc<dyn Clock>,
    /// Wakes in-process waiters when a job finishes and in-process workers when one arrives.
    changed: Arc<Notify>,
}

impl JobId {
    /// The id a client names.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::parse_str(text).ok().map(Self)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JobKind {
    /// Every kind, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Infer, Self::Score, Self::BatchInfer, Self::Train];

    /// Name in the rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Score => "score",
            Self::BatchInfer => "batch_infer",
            Self::Train => "train",
        }
    }

    fn priority(self) -> i64 {
        match self {
            Self::Infer => 3,
            Self::Score => 2,
            Self::BatchInfer => 1,
            Self::Train => 0,
        }
    }
}

impl JobState {
    /// Name in the rows and for the clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "SUBMITTED",
            Self::Running => "RUNNING",
            Self::Done => "DONE",
            Self::Error => "ERROR",
            Self::Stopped => "STOPPED",
        }
    }

    /// Whether nothing more will happen to the job.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Error | Self::Stopped)
    }
}

impl Jobs {
    pub(super) fn new(database: Database, clock: Arc<dyn Clock>) -> Self {
        Self {
            database,
            clock,
            changed: Arc::new(Notify::new()),
        }
    }

    /// Adds a job to the queue.
    ///
    /// # Errors
    /// When the row cannot be written.
    pub async fn enqueue(
        &self,
        kind: JobKind,
        payload: Value,
        request: Value,
    ) -> Result<Job, StoreError> {
        let mut tx = self.database.begin().await?;
        let job = self
            .add(
                &mut tx,
                &NewJob {
                    kind,
                    payload,
                    request,
                },
            )
            .await?;
        tx.commit().await?;
        self.changed.notify_waiters();
        Ok(job)
    }

    /// Adds a job within a transaction, so that it exists exactly if the rest of it does.
    ///
    /// # Errors
    /// When the row cannot be written.
    pub async fn add(
        &self,
        tx: &mut sqlx::SqliteConnection,
        new: &NewJob,
    ) -> Result<Job, StoreError> {
        let row: JobRecord = sqlx::query_as(sql!("job_insert"))
            .bind(Uuid::now_v7().to_string())
            .bind(new.kind.as_str())
            .bind(new.kind.priority())
            .bind(new.payload.to_string())
            .bind(new.request.to_string())
            .bind(self.clock.now_ms())
            .fetch_one(tx)
            .await?;
        row.into_job()
    }

    /// The job.
    ///
    /// # Errors
    /// When the store does not answer; likewise below.
    pub async fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let query = sqlx::query_as(sql!("job_get")).bind(id.to_string());
        job(query.fetch_optional(self.database.readers()).await?)
    }

    /// The job of this kind that was enqueued last, finished or not.
    pub async fn last(&self, kind: JobKind) -> Result<Option<Job>, StoreError> {
        let query = sqlx::query_as(sql!("job_last")).bind(kind.as_str());
        job(query.fetch_optional(self.database.readers()).await?)
    }

    /// The job of this kind that runs, or else waits longest.
    pub async fn running(&self, kind: JobKind) -> Result<Option<Job>, StoreError> {
        let query = sqlx::query_as(sql!("job_live")).bind(kind.as_str());
        job(query.fetch_optional(self.database.readers()).await?)
    }

    /// All jobs of this kind, oldest first.
    pub async fn list(&self, kind: JobKind) -> Result<Vec<Job>, StoreError> {
        let rows: Vec<JobRecord> = sqlx::query_as(sql!("job_list"))
            .bind(kind.as_str())
            .fetch_all(self.database.readers())
            .await?;
        rows.into_iter().map(JobRecord::into_job).collect()
    }

    /// For each kind with live jobs: how many wait and how many run, and since when.
    pub async fn live_counts(&self) -> Result<Vec<LiveCount>, StoreError> {
        let rows: Vec<(String, String, i64, i64)> = sqlx::query_as(sql!("jobs_live_counts"))
            .fetch_all(self.database.readers())
            .await?;
        rows.into_iter()
            .map(|(kind, state, count, oldest_ms)| {
                Ok(LiveCount {
                    kind: serde_json::from_value(Value::String(kind))?,
                    running: state == JobState::Running.as_str(),
                    count,
                    oldest_ms,
                })
            })
            .collect()
    }

    /// How many jobs of this kind wait for a worker.
    pub async fn waiting(&self, kind: JobKind) -> Result<usize, StoreError> {
        let count: i64 = sqlx::query_scalar(sql!("job_waiting"))
            .bind(kind.as_str())
            .fetch_one(self.database.readers())
            .await?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Stops a job at once, also a running one: its worker learns it at the next heartbeat, and
    /// whatever it still delivers is refused. A finished job stays as it is.
    pub async fn cancel(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let mut tx = self.database.begin().await?;
        sqlx::query(sql!("job_cancel"))
            .bind("stopped on request")
            .bind(self.clock.now_ms())
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.changed.notify_waiters();
        self.get(id).await
    }

    /// The job once it is finished. Looks every `poll`, because the worker is another process,
    /// and at once when this process finishes a job.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such job.
    pub async fn wait(&self, id: JobId, poll: Duration) -> Result<Job, StoreError> {
        loop {
            let changed = self.changed.notified();
            match self.get(id).await? {
                None => return Err(StoreError::NotFound(format!("there is no job {id}"))),
                Some(job) if job.state.is_finished() => return Ok(job),
                Some(_) => drop(tokio::time::timeout(poll, changed).await),
            }
        }
    }

    /// Whether a job of these kinds waits for a worker.
    pub async fn any_waiting(&self, kinds: &[JobKind]) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(sql!("job_peek"))
            .bind(serde_json::to_string(kinds)?)
            .fetch_one(self.database.readers())
            .await?)
    }

    /// Takes the most urgent waiting job of these kinds for `lease_s` seconds.
    pub async fn claim(
        &self,
        worker: &str,
        kinds: &[JobKind],
        lease_s: u32,
    ) -> Result<Option<Claimed>, StoreError> {
        if !self.any_waiting(kinds).await? {
            return Ok(None);
        }
        let kinds = serde_json::to_string(kinds)?;
        let mut tx = self.database.begin().await?;
        let row: Option<JobRecord> = sqlx::query_as(sql!("job_claim"))
            .bind(worker)
            .bind(self.lease_end(lease_s))
            .bind(kinds)
            .fetch_optional(&mut *tx)
            .await?;
        tx.commit().await?;
        row.map(|row| {
            Ok(Claimed {
                fence: row.fence,
                job: row.into_job()?,
                lease_s,
            })
        })
        .transpose()
    }

    /// The last finished inference of a project's image whose request `wanted` accepts, as far back as
    /// inferences are kept.
    pub async fn inference_of(
        &self,
        image: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Option<Job>, StoreError> {
        let rows: Vec<JobRecord> = sqlx::query_as(sql!("job_of_image"))
            .bind(image)
            .fetch_all(self.database.readers())
            .await?;
        for row in rows {
            let job = row.into_job()?;
            if wanted(&job.request) {
                return Ok(Some(job));
            }
        }
        Ok(None)
    }

    /// Renews the lease, and reports progress and new lines of detail.
    pub async fn heartbeat(
        &self,
        claimed: &Claimed,
        progress: Option<Value>,
        details: &[String],
    ) -> Result<Beat, StoreError> {
        let mut tx = self.database.begin().await?;
        let query = sqlx::query_as(sql!("job_get")).bind(claimed.job.id.to_string());
        let Some(job) = job(query.fetch_optional(&mut *tx).await?)? else {
            return Ok(Beat { cancel: true });
        };
        let mut lines = job.details;
        lines.extend_from_slice(details);
        lines.drain(..lines.len().saturating_sub(MAX_DETAILS));
        let renewed = sqlx::query(sql!("job_beat"))
            .bind(self.lease_end(claimed.lease_s))
            .bind(progress.map(|progress| progress.to_string()))
            .bind(serde_json::to_string(&lines)?)
            .bind(claimed.job.id.to_string())
            .bind(claimed.fence)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Beat {
            cancel: renewed.rows_affected() == 0,
        })
    }

    /// Ends a job.
    ///
    /// # Errors
    /// [`StoreError::StaleFence`] when the job was stopped or given to another worker meanwhile.
    pub async fn finish(&self, claimed: &Claimed, how: Finish) -> Result<(), StoreError> {
        let (state, result, error) = match how {
            Finish::Done(result) => (JobState::Done, result, None),
            Finish::Error(reason) => (JobState::Error, Value::Null, Some(reason)),
            Finish::Stopped => (JobState::Stopped, Value::Null, None),
        };
        let mut tx = self.database.begin().await?;
        let finished = sqlx::query(sql!("job_finish"))
            .bind(state.as_str())
            .bind(result.to_string())
            .bind(error)
            .bind(self.clock.now_ms())
            .bind(claimed.job.id.to_string())
            .bind(claimed.fence)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        if finished.rows_affected() == 0 {
            return Err(StoreError::StaleFence(claimed.job.id.to_string()));
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Takes jobs from workers whose lease is over: back into the queue, or failed for good after
    /// [`MAX_ATTEMPTS`]. Returns how many jobs changed.
    pub async fn requeue_expired(&self) -> Result<usize, StoreError> {
        let now_ms = self.clock.now_ms();
        let mut tx = self.database.begin().await?;
        let failed = sqlx::query(sql!("jobs_fail_expired"))
            .bind(now_ms)
            .bind(MAX_ATTEMPTS)
            .execute(&mut *tx)
            .await?;
        let requeued = sqlx::query(sql!("jobs_requeue_expired"))
            .bind(now_ms)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        let changed = failed.rows_affected() + requeued.rows_affected();
        if changed > 0 {
            self.changed.notify_waiters();
        }
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    /// Takes the jobs of a worker that is known to be dead, without waiting for its leases to end.
    /// Returns how many jobs changed.
    pub async fn abandon(&self, worker: &str) -> Result<usize, StoreError> {
        let mut tx = self.database.begin().await?;
        sqlx::query(sql!("jobs_abandon"))
            .bind(worker)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.requeue_expired().await
    }

    /// Puts every running job back, without counting the attempt: the server was restarted and its
    /// workers with it, which is no fault of the jobs.
    pub(super) async fn requeue_all(&self) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        sqlx::query(sql!("jobs_requeue_all"))
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Forgets interactive inferences that finished more than `older_than` ago; their results were
    /// delivered, and there are many.
    pub async fn prune(&self, older_than: Duration) -> Result<usize, StoreError> {
        let older_than_ms = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
        let mut tx = self.database.begin().await?;
        let pruned = sqlx::query(sql!("jobs_prune"))
            .bind(self.clock.now_ms().saturating_sub(older_than_ms))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(usize::try_from(pruned.rows_affected()).unwrap_or(usize::MAX))
    }

    fn lease_end(&self, lease_s: u32) -> i64 {
        self.clock
            .now_ms()
            .saturating_add(i64::from(lease_s) * 1000)
    }
}

#[derive(sqlx::FromRow)]
struct JobRecord {
    id: String,
    kind: String,
    state: String,
    payload: String,
    request: String,
    progress: String,
    details: String,
    result: String,
    error: Option<String>,
    attempts: i64,
    fence: i64,
    created_ms: i64,
    finished_ms: Option<i64>,
}

impl JobRecord {
    fn into_job(self) -> Result<Job, StoreError> {
        let id = JobId::parse(&self.id)
            .ok_or_else(|| StoreError::Internal(format!("job id {:?} in the store", self.id)))?;
        Ok(Job {
            id,
            kind: serde_json::from_value(Value::String(self.kind))?,
            state: serde_json::from_value(Value::String(self.state))?,
            request: serde_json::from_str(&self.request)?,
            payload: serde_json::from_str(&self.payload)?,
            start_ts: self.created_ms,
            end_ts: self.finished_ms,
            details: serde_json::from_str(&self.details)?,
            progress: serde_json::from_str(&self.progress)?,
            result: serde_json::from_str(&self.result)?,
            error: self.error,
            attempts: self.attempts,
        })
    }
}

fn job(row: Option<JobRecord>) -> Result<Option<Job>, StoreError> {
    row.map(JobRecord::into_job).transpose()
}

#[cfg(test)]
mod tests;
