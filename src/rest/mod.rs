//! The MONAI Label REST protocol over HTTP, one file per group of routes; start with [`router`].
//!
//! Handlers read the request, call the domain (`project`, `rounds`, `sessions`) and shape the answer;
//! they hold no state but [`App`]. Work that takes long is a job that the worker process does:
//! `/infer` waits for its job, the others answer with a task object.
//!
//! # Deliberate differences from MONAI Label 0.8.5
//! | topic | MONAI Label | here |
//! |---|---|---|
//! | errors | `{"detail"}`, or `Internal Server Error` as text | always `{"detail", "code", "request_id"}` |
//! | unknown model, image, label, strategy, method | 500 | 404 |
//! | `params` that is not a JSON object | 500 | 400 |
//! | keys of `params` in `/infer` | merged over the server's, so `image` can name any file | a fixed list is read, others are ignored |
//! | ids and tags with path parts | write outside the store | 422 |
//! | id of an upload without `image` | name up to its first dot | name without the format's suffix |
//! | the same image uploaded again | its labels are dropped | its labels are kept |
//! | the same label submitted again | the old file is overwritten | a new revision |
//! | `device` in `params` | chooses the device | ignored; the server has one device policy |
//! | `label` file of `/infer` (scribbles) | used by scribble models | ignored; there are none |
//! | many requests at once | all wait for one another | bounded queue, then 429 with `Retry-After` |
//! | client leaves `/infer` | the work goes on | the job is cancelled |
//! | `HEAD /datastore/image?check_sum=` | never matches | matches `SHA256:hex` and plain hex |
//! | `PUT /model/{model}` | any file, unpickled later | safetensors only (else 415), a new version |
//! | `DELETE /model/{model}` | renames the file | 409: versions are immutable |
//! | `output=dicom_seg` | 500, after the inference | 400, before it |
//! | `POST /reload` | anybody drops the application | 403 |
//! | archives (`/session/?uncompress=true`) | unpacked to disk | refused with 422 |
//! | `Content-Encoding` of a request | accepted | 415 |
//! | CORS | any origin, with credentials | off; origins can be named, never with credentials |
//! | pages (`/`, `/docs`, `/logs/`) | load scripts from other hosts | own files only |
//! | `/logs/` | the log file | the last lines, from memory |

mod absent;
mod activelearning;
mod archive;
mod batch;
mod datastore;
mod docs;
mod edge;
mod error;
mod form;
mod health;
mod infer;
mod info;
mod logs;
mod model;
mod query;
mod reply;
pub mod router;
mod scoring;
pub mod serve;
mod session;
mod task;
mod train;

use std::sync::Arc;

use axum::http::HeaderValue;
use tokio::sync::{Mutex, Semaphore, watch};

use crate::project::Project;
use crate::rounds::registry::{ModelVersion, Registry};
use crate::sessions::Sessions;
use crate::telemetry::LogRing;
use error::ApiError;

/// What every handler can reach. Cheap to clone.
#[derive(Clone)]
pub struct App {
    project: Project,
    registry: Registry,
    sessions: Sessions,
    logs: LogRing,
    /// Devices that a client may be shown; never empty.
    devices: Arc<[String]>,
    /// Web pages of these origins may use the server.
    cors_origins: Arc<[HeaderValue]>,
    /// One permit for each `/infer` request that is being served.
    infer_slots: Arc<Semaphore>,
    /// Held while a task is started, so that two starts cannot both find nothing running.
    starting: Arc<Mutex<()>>,
    /// True while the worker process runs.
    worker: watch::Receiver<bool>,
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

    fn devices(&self) -> &[String] {
        &self.devices
    }

    fn worker_runs(&self) -> bool {
        *self.worker.borrow()
    }

    /// The live version of each model, in the order in which the models were first published.
    async fn live_models(&self) -> Result<Vec<ModelVersion>, ApiError> {
        let versions = self.registry.models().await?;
        Ok(versions
            .into_iter()
            .filter(|version| version.live)
            .collect())
    }

    async fn model_names(&self) -> Result<Vec<String>, ApiError> {
        let live = self.live_models().await?;
        Ok(live.into_iter().map(|version| version.name).collect())
    }

    /// The live version of the model `name`.
    async fn live_model(&self, name: &str) -> Result<ModelVersion, ApiError> {
        self.registry.live(name).await?.ok_or_else(|| {
            ApiError::not_found(
                "no_model",
                "there is no model of this name on this server; see models in /info/",
            )
        })
    }
}
