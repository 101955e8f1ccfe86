//! Long work as MONAI Label shows it: one task object for training, batch inference and scoring.

use axum::Json;
use axum::http::StatusCode;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::query::Query;
use crate::project::{Job, JobKind, JobState, NewJob};
use crate::rounds::round::{self, Cause};

/// How often a waiting request looks at its job, besides being woken.
pub const POLL: std::time::Duration = std::time::Duration::from_millis(50);

/// One kind of task: its jobs and its name in sentences.
#[derive(Clone, Copy)]
pub struct Task {
    kind: JobKind,
    name: &'static str,
}

/// Fine-tuning.
pub const TRAIN: Task = Task {
    kind: JobKind::Train,
    name: "Train",
};
/// Inference over many images.
pub const BATCH_INFER: Task = Task {
    kind: JobKind::BatchInfer,
    name: "Batch_infer",
};
/// Comparison of labels.
pub const SCORING: Task = Task {
    kind: JobKind::Score,
    name: "Scoring",
};

/// How a task is started.
#[derive(Clone, Copy)]
pub struct Start {
    /// Answer only when the work is done, with its result.
    pub run_sync: bool,
    /// Wait behind a task that is running instead of refusing.
    pub enqueue: bool,
}

impl Task {
    /// `GET`: the last task, all of them, or the one that runs.
    ///
    /// # Errors
    /// 404 when there is none; 422 for unreadable flags.
    pub async fn status(self, app: &App, query: Query) -> Result<Json<Value>, ApiError> {
        let (all, check) =
            query.read(|q| (q.flag("all", false), q.flag("check_if_running", false)))?;
        let jobs = app.project.jobs();
        let found = if check {
            jobs.running(self.kind).await?.map(|job| task_object(&job))
        } else if all {
            let listed = jobs.list(self.kind).await?;
            (!listed.is_empty()).then(|| listed.iter().map(task_object).collect())
        } else {
            jobs.last(self.kind).await?.map(|job| task_object(&job))
        };
        let missing = if check {
            "are currently Running"
        } else {
            "Found"
        };
        found.map(Json).ok_or_else(|| {
            ApiError::not_found("no_task", format!("No {} Tasks {missing}", self.name))
        })
    }

    /// `POST`: queues the work; the answer is the task, or the result when `run_sync`.
    ///
    /// # Errors
    /// 429 when such a task is running and `enqueue` is off; 422 when synchronous work failed for a reason that
    /// the task tells.
    pub async fn start<P: Serialize>(
        self,
        app: &App,
        payload: &P,
        request: Map<String, Value>,
        how: Start,
    ) -> Result<Json<Value>, ApiError> {
        let jobs = app.project.jobs();
        let job = self.enqueue(app, payload, request, how).await?;
        if !how.run_sync {
            return Ok(Json(task_object(&job)));
        }
        let job = jobs.wait(job.id, POLL).await?;
        match job.state {
            JobState::Done => Ok(Json(job.result)),
            JobState::Error => match &job.error {
                Some(reason) => Err(ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "job_failed",
                    reason,
                )),
                None => Err(failed(&job)),
            },
            _ => Err(failed(&job)),
        }
    }

    /// Queues the work. A training is a round.
    ///
    /// # Errors
    /// 429 when such a task is running and `enqueue` is off.
    pub async fn enqueue<P: Serialize>(
        self,
        app: &App,
        payload: &P,
        request: Map<String, Value>,
        how: Start,
    ) -> Result<Job, ApiError> {
        let jobs = app.project.jobs();
        let payload = serde_json::to_value(payload).map_err(|error| ApiError::internal(&error))?;
        // Two clients that start at the same moment must not both find nothing running.
        let _turn = app.starting.lock().await;
        if !how.enqueue && jobs.running(self.kind).await?.is_some() {
            let detail = format!("++++++++++ {} Task is Already Running", self.name);
            return Err(ApiError::busy("task_running", detail, 10));
        }
        let client = request.get("client_id").and_then(Value::as_str);
        let actor = client.unwrap_or("admin").to_owned();
        let new = NewJob {
            kind: self.kind,
            payload,
            request: Value::Object(request),
        };
        Ok(match self.kind {
            JobKind::Train => round::ask(&app.project, new, Cause::Request, &actor).await?,
            _ => jobs.enqueue(new.kind, new.payload, new.request).await?,
        })
    }

    /// `DELETE`: stops the running task; `null` when none runs.
    ///
    /// # Errors
    /// Only when the store fails.
    pub async fn stop(self, app: &App) -> Result<Json<Value>, ApiError> {
        let jobs = app.project.jobs();
        let stopped = match jobs.running(self.kind).await? {
            Some(running) => jobs.cancel(running.id).await?,
            None => None,
        };
        Ok(Json(stopped.map_or(Value::Null, |job| task_object(&job))))
    }
}

/// What a client is told about work that ended without a result.
pub fn failed(job: &Job) -> ApiError {
    match (job.state, &job.error) {
        (JobState::Stopped, _) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "job_stopped",
            "the work was stopped before it was done; nothing was kept, start it again",
        ),
        (_, Some(error)) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "job_failed", error),
        (_, None) => ApiError::internal(&"a job failed without a reason"),
    }
}

/// A job as task object; `details` from its start on, `end_ts` when it is finished.
///
/// The reason of a failure or a stop is the last detail, because Slicer shows that one, and reads it
/// without looking whether there is any.
pub fn task_object(job: &Job) -> Value {
    let mut task = json!({
        "id": job.id.to_string(),
        "status": match job.state {
            JobState::Submitted => "SUBMITTED",
            JobState::Running => "RUNNING",
            JobState::Done => "DONE",
            JobState::Error => "ERROR",
            JobState::Stopped => "STOPPED",
        },
        "request": job.request,
        "start_ts": local_time(job.start_ts),
    });
    if job.state != JobState::Submitted {
        let error = job
            .error
            .iter()
            .filter(|error| job.details.last() != Some(error));
        task["details"] = job.details.iter().chain(error).cloned().collect();
    }
    if let Some(end_ts) = job.end_ts {
        task["end_ts"] = local_time(end_ts).into();
    }
    task
}

/// `YYYY-mm-dd HH:MM:SS` in the server's zone, as the real server writes it.
fn local_time(unix_ms: i64) -> String {
    let time = Timestamp::from_millisecond(unix_ms).unwrap_or_default();
    time.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}
