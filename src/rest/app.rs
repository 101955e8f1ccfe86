//! What handlers share.

use std::sync::Arc;

use axum::http::header::USER_AGENT;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore, watch};

use super::error::ApiError;
use super::metrics::Metrics;
use super::shared::Shared;
use crate::project::Project;
use crate::rounds::registry::{ModelVersion, Registry};
use crate::sessions::Sessions;
use crate::telemetry::LogRing;

/// What of the protocol a server offers; the rest is absent from `/info/` and answered with 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offers {
    /// Sessions; without them `/session/` answers 406.
    pub sessions: bool,
    /// How long a session lives after its last use when the client does not say, seconds.
    pub session_expiry_s: u32,
    /// Training.
    pub train: bool,
    /// Strategies for the next sample.
    pub strategies: bool,
    /// Scoring.
    pub scoring: bool,
    /// Inference over many images.
    pub batch_infer: bool,
}

impl Default for Offers {
    fn default() -> Self {
        Self {
            sessions: true,
            session_expiry_s: 3600,
            train: true,
            strategies: true,
            scoring: true,
            batch_infer: true,
        }
    }
}

/// What every handler can reach. Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub(super) project: Project,
    pub(super) registry: Registry,
    pub(super) sessions: Sessions,
    pub(super) logs: LogRing,
    /// Devices that a client may be shown; never empty.
    pub(super) devices: Arc<[String]>,
    /// Web pages of these origins may use the server.
    pub(super) cors_origins: Arc<[HeaderValue]>,
    /// By which names it is reached; any when `None`.
    pub(super) hosts: Option<Vec<String>>,
    /// Path before the protocol's routes; empty, or with a slash at its start only.
    pub(super) prefix: Arc<str>,
    /// What this server offers.
    pub(super) offers: Offers,
    /// What this process counts.
    pub(super) metrics: Metrics,
    /// The answer of `/info/`, which every client polls.
    pub(super) info: Shared,
    /// One permit for each `/infer` request that is being served.
    pub(super) infer_slots: Arc<Semaphore>,
    /// Held while a task is started, so that two starts cannot both find nothing running.
    pub(super) starting: Arc<Mutex<()>>,
    /// True while the worker process runs.
    pub(super) worker: watch::Receiver<bool>,
}

/// What an [`App`] is made of.
pub struct AppParts {
    /// The open project.
    pub project: Project,
    /// Its models.
    pub registry: Registry,
    /// Its sessions.
    pub sessions: Sessions,
    /// Lines for `/logs/`.
    pub logs: LogRing,
    /// The device that the worker computes on, as text.
    pub device: String,
    /// How many `/infer` requests may wait at the same time.
    pub infer_slots: usize,
    /// Web pages of these origins (`https://viewer.example.org`) may use the server.
    pub cors_origins: Vec<HeaderValue>,
    /// Names by which clients may reach it, besides those of this machine; any name when `None`.
    pub hosts: Option<Vec<String>>,
    /// Path before the protocol's routes; empty, or with a slash at its start only.
    pub prefix: String,
    /// What this server offers.
    pub offers: Offers,
    /// True while the worker process runs.
    pub worker: watch::Receiver<bool>,
}

impl App {
    /// Puts the parts together.
    pub fn new(parts: AppParts) -> Self {
        Self {
            project: parts.project,
            registry: parts.registry,
            sessions: parts.sessions,
            logs: parts.logs,
            devices: [parts.device].into(),
            cors_origins: parts.cors_origins.into(),
            hosts: parts.hosts,
            prefix: parts.prefix.into(),
            offers: parts.offers,
            metrics: Metrics::default(),
            info: Shared::default(),
            infer_slots: Arc::new(Semaphore::new(parts.infer_slots)),
            starting: Arc::new(Mutex::new(())),
            worker: parts.worker,
        }
    }

    pub(super) fn devices(&self) -> &[String] {
        &self.devices
    }

    /// Notes for the audit log that a client read something. There is no login, so that the name is what
    /// the client calls itself.
    pub(super) fn note_read(
        &self,
        action: &'static str,
        subject: &str,
        headers: &HeaderMap,
        mut detail: Value,
    ) -> Result<(), ApiError> {
        let agent = headers
            .get(USER_AGENT)
            .and_then(|agent| agent.to_str().ok());
        if let Some(agent) = agent {
            detail["client"] = agent.chars().take(200).collect::<String>().into();
        }
        Ok(self
            .project
            .acting_as("anonymous")
            .note(action, subject, detail)?)
    }

    /// The sessions, where they are offered.
    pub(super) fn sessions(&self) -> Result<&Sessions, ApiError> {
        if self.offers.sessions {
            return Ok(&self.sessions);
        }
        Err(ApiError::new(
            StatusCode::NOT_ACCEPTABLE,
            "no_sessions",
            "Session Feature is Not Enabled",
        ))
    }

    /// 404 for work that this server was told not to offer.
    pub(super) fn require(offered: bool, what: &str) -> Result<(), ApiError> {
        if offered {
            return Ok(());
        }
        Err(ApiError::not_found(
            "not_offered",
            format!("{what} is switched off on this server"),
        ))
    }

    pub(super) fn worker_runs(&self) -> bool {
        *self.worker.borrow()
    }

    /// The live version of each model, in the order in which the models were first published.
    pub(super) async fn live_models(&self) -> Result<Vec<ModelVersion>, ApiError> {
        let versions = self.registry.models().await?;
        Ok(versions
            .into_iter()
            .filter(|version| version.live)
            .collect())
    }

    pub(super) async fn model_names(&self) -> Result<Vec<String>, ApiError> {
        let live = self.live_models().await?;
        Ok(live.into_iter().map(|version| version.name).collect())
    }

    /// The live version of the model `name`.
    pub(super) async fn live_model(&self, name: &str) -> Result<ModelVersion, ApiError> {
        self.registry.live(name).await?.ok_or_else(|| {
            ApiError::not_found(
                "no_model",
                "there is no model of this name on this server; see models in /info/",
            )
        })
    }
}
