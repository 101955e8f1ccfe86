//! The table of rounds: who asked for one, what it learned from, and what came of it.

use serde_json::json;

use super::fine_tune::Frozen;
use super::gate::Comparison;
use crate::project::requests::TrainRequest;
use crate::project::{Job, JobId, JobKind, JobState, NewJob, Project, ProjectError, StoreError};
use crate::store::rows::{self, RoundRecord};

/// Why a round began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it.
    Request,
    /// There were enough new labels.
    Labels,
    /// It was time.
    Schedule,
}

/// Where a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundState {
    /// It waits for the worker.
    Queued,
    /// The worker is at it.
    Running,
    /// Its version went live.
    Published,
    /// Its version was kept as a candidate.
    Kept,
    /// It ended without a version.
    Failed,
    /// It was stopped on request.
    Stopped,
}

/// One round.
#[derive(Debug, Clone)]
pub struct Round {
    /// 1, 2, ...
    pub number: i64,
    /// Its job, with the progress.
    pub job: Job,
    /// Name of the model.
    pub model: String,
    /// `request`, `labels` or `schedule`.
    pub cause: String,
    /// Who asked for it.
    pub actor: String,
    /// When it was asked for, milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// When a worker began with it.
    pub started_ms: Option<i64>,
    /// When it ended.
    pub finished_ms: Option<i64>,
    /// Where it stands.
    pub state: RoundState,
    /// Why it was published, kept or stopped, or why it failed.
    pub reason: Option<String>,
    /// The version that it made.
    pub version: Option<i64>,
    /// What it learns from, once it began.
    pub plan: Option<Frozen>,
    /// The version that was live when it was decided, and how the two compare.
    pub judged: Option<Judged>,
}

/// What a decision was based on.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Judged {
    /// The version that was live then.
    pub live_version: i64,
    /// How the two compare; none where nothing could be compared.
    pub comparison: Option<Comparison>,
}

impl Cause {
    fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Labels => "labels",
            Self::Schedule => "schedule",
        }
    }
}

impl RoundState {
    /// Name for the clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Published => "published",
            Self::Kept => "kept",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// Puts a round into the queue: a job of kind [`JobKind::Train`], whose payload is a [`TrainRequest`].
///
/// # Errors
/// When the store does not answer.
pub async fn ask(
    project: &Project,
    new: NewJob,
    cause: Cause,
    actor: &str,
) -> Result<Job, ProjectError> {
    let model = new.payload["model"].as_str().unwrap_or_default();
    let now_ms = project.clock().now_ms();
    let mut tx = project.store().database.begin().await?;
    let job = project.jobs().add(&mut tx, &new).await?;
    let id = job.id.to_string();
    let number = rows::add_round(&mut tx, &id, model, cause.as_str(), actor, now_ms).await?;
    let detail = json!({"round": number, "cause": cause.as_str(), "request": new.request});
    let project = project.acting_as(actor);
    let entry = project.audit_entry("start-training", model, detail);
    rows::append_audit(&mut tx, entry).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(job)
}

/// [`ask`] for a round that starts by itself, or in a test.
///
/// # Errors
/// As [`ask`].
pub async fn ask_for(
    project: &Project,
    request: &TrainRequest,
    cause: Cause,
    actor: &str,
) -> Result<Job, ProjectError> {
    let new = NewJob {
        kind: JobKind::Train,
        payload: serde_json::to_value(request).map_err(StoreError::from)?,
        request: json!({"model": request.model, "name": request.name}),
    };
    ask(project, new, cause, actor).await
}

/// The newest rounds, newest first.
///
/// # Errors
/// When the store does not answer.
pub async fn list(project: &Project, limit: u32) -> Result<Vec<Round>, ProjectError> {
    let mut rounds = Vec::new();
    for record in project.store().database.rounds(limit).await? {
        rounds.push(round(project, record).await?);
    }
    Ok(rounds)
}

/// One round.
///
/// # Errors
/// [`ProjectError::NotFound`] when there is no such round.
pub async fn get(project: &Project, number: i64) -> Result<Round, ProjectError> {
    let record = project.store().database.round(number).await?;
    let record =
        record.ok_or_else(|| ProjectError::NotFound(format!("there is no round {number}")))?;
    round(project, record).await
}

/// The round of a job.
///
/// # Errors
/// [`ProjectError::NotFound`] when it has none.
pub async fn of_job(project: &Project, job: JobId) -> Result<Round, ProjectError> {
    let record = project
        .store()
        .database
        .round_of_job(&job.to_string())
        .await?;
    let record =
        record.ok_or_else(|| ProjectError::NotFound(format!("job {job} belongs to no round")))?;
    round(project, record).await
}

async fn round(project: &Project, record: RoundRecord) -> Result<Round, ProjectError> {
    let id = JobId::parse(&record.job);
    let job = match id {
        Some(id) => project.jobs().get(id).await?,
        None => None,
    };
    let job = job.ok_or_else(|| {
        ProjectError::Internal(format!("the job of round {} is not there", record.number))
    })?;
    let state = match (record.decision.as_deref(), job.state) {
        (Some("published"), _) => RoundState::Published,
        (Some(_), _) => RoundState::Kept,
        (None, JobState::Submitted) => RoundState::Queued,
        (None, JobState::Running) => RoundState::Running,
        (None, JobState::Stopped) => RoundState::Stopped,
        (None, JobState::Done | JobState::Error) => RoundState::Failed,
    };
    Ok(Round {
        number: record.number,
        model: record.model,
        cause: record.cause,
        actor: record.actor,
        created_ms: record.created_ms,
        started_ms: record.started_ms,
        finished_ms: record.finished_ms.or(job.end_ts),
        state,
        reason: record.reason.or_else(|| job.error.clone()),
        version: record.version,
        plan: parsed(record.plan)?,
        judged: parsed(record.comparison)?,
        job,
    })
}

fn parsed<T: serde::de::DeserializeOwned>(text: Option<String>) -> Result<Option<T>, StoreError> {
    Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
}
