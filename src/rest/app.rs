//! What handlers share.

use std::sync::Arc;

use axum::http::header::USER_AGENT;
use axum::http::{HeaderMap, HeaderValue};
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore, watch};

use super::error::ApiError;
use crate::project::Project;
use crate::rounds::registry::{ModelVersion, Registry};
use crate::sessions::Sessions;
use crate::telemetry::LogRing;

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
