//! `/metrics`: counts and times for a monitoring system, in Prometheus' text format 0.0.4.
//!
//! Labels have few values each: route templates, statuses, kinds of work, stages. No id, file name or
//! client is among them. Counters and histograms begin at zero with the process; the rest is asked for
//! when `/metrics` is.

mod histogram;
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use self::histogram::Histogram;
use self::text::{Kind, Text};
use super::App;
use super::error::ApiError;
use crate::project::{Job, Space};
use crate::telemetry;

/// Upper ends of the times of requests, seconds.
const REQUEST_BOUNDS_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// Upper ends of the times of the stages of an inference, seconds.
const STAGE_BOUNDS_S: &[f64] = &[
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// What the worker tells of an inference, in its order; `wait` is what is not in its total.
const STAGES: [&str; 5] = ["pre", "infer", "invert", "post", "write"];
/// Status of a request whose client left before the answer; nginx counts it like this.
const CLIENT_LEFT: u16 = 499;
/// How long a measurement of the data directory, which takes a while, is good for.
const SPACE_LIFETIME: Duration = Duration::from_secs(60);

/// Counts and times of this process. Cheap to clone; clones share them.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Counted>);

#[derive(Default)]
struct Counted {
    /// By method, route and status.
    requests: Mutex<BTreeMap<(&'static str, String, u16), Histogram>>,
    in_progress: AtomicI64,
    stages: Mutex<BTreeMap<&'static str, Histogram>>,
    submits: AtomicU64,
    space: tokio::sync::Mutex<Option<(Instant, Space)>>,
}

impl Metrics {
    /// Counts a request from now until [`InProgress::answered`], or until it is dropped.
    pub fn request(&self, method: &Method, route: &str) -> InProgress {
        self.0.in_progress.fetch_add(1, Ordering::Relaxed);
        InProgress {
            metrics: self.clone(),
            method: known(method),
            route: route.to_owned(),
            started: Instant::now(),
            status: CLIENT_LEFT,
        }
    }

    /// Counts a label that was taken from a client.
    pub fn submit(&self) {
        self.0.submits.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the stages of a finished inference.
    pub fn inference(&self, job: &Job) {
        let latencies = &job.result["params"]["latencies"];
        let Some(total_s) = latencies["total"].as_f64() else {
            return;
        };
        let mut stages = lock(&self.0.stages);
        let mut add = |stage, seconds: f64| {
            let histogram = stages.entry(stage);
            histogram
                .or_insert_with(|| Histogram::new(STAGE_BOUNDS_S))
                .add(seconds);
        };
        if let Some(end_ts) = job.end_ts {
            let whole_s = (end_ts - job.start_ts) as f64 / 1000.0;
            add("wait", (whole_s - total_s).max(0.0));
        }
        for stage in STAGES {
            if let Some(seconds) = latencies[stage].as_f64() {
                add(stage, seconds);
            }
        }
    }

    /// What this process counted.
    fn write(&self, text: &mut Text) {
        text.family(
            "fewlabel_build_info",
            Kind::Gauge,
            "The running program; always 1",
        );
        text.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        text.family(
            "fewlabel_http_request_duration_seconds",
            Kind::Histogram,
            "From the head of a request to the head of its answer",
        );
        for ((method, route, status), histogram) in lock(&self.0.requests).iter() {
            let status = status.to_string();
            let labels = [
                ("method", *method),
                ("route", route.as_str()),
                ("status", status.as_str()),
            ];
            text.histogram(&labels, histogram);
        }
        text.family(
            "fewlabel_http_requests_in_progress",
            Kind::Gauge,
            "Requests without the head of an answer yet",
        );
        text.sample(&[], self.0.in_progress.load(Ordering::Relaxed) as f64);
        text.family(
            "fewlabel_infer_stage_seconds",
            Kind::Histogram,
            "Stages of the inferences that a client waited for; wait is the time in the queue",
        );
        for (stage, histogram) in lock(&self.0.stages).iter() {
            text.histogram(&[("stage", *stage)], histogram);
        }
        text.family(
            "fewlabel_label_submits_total",
            Kind::Counter,
            "Labels that were taken from clients since the start",
        );
        text.sample(&[], self.0.submits.load(Ordering::Relaxed) as f64);
        if let Some(bytes) = telemetry::resident_memory_bytes() {
            text.family(
                "process_resident_memory_bytes",
                Kind::Gauge,
                "Memory of the server's process, without its worker",
            );
            text.sample(&[], bytes as f64);
        }
    }
}

/// A request that is being answered.
pub struct InProgress {
    metrics: Metrics,
    method: &'static str,
    route: String,
    started: Instant,
    status: u16,
}

impl InProgress {
    /// Its status is known; how long it took.
    pub fn answered(mut self, status: StatusCode) -> Duration {
        self.status = status.as_u16();
        self.started.elapsed()
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let key = (self.method, std::mem::take(&mut self.route), self.status);
        lock(&self.metrics.0.requests)
            .entry(key)
            .or_insert_with(|| Histogram::new(REQUEST_BOUNDS_S))
            .add(self.started.elapsed().as_secs_f64());
        self.metrics.0.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client may send any method; only those of the routes are told apart.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn lock<T>(counts: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves numbers behind, and any of them is usable.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is counted and measured, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Others",
    responses((status = 200, description = "Prometheus' text format")))]
pub async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let mut text = Text::default();
    app.metrics.write(&mut text);
    of_the_project(&app, &mut text).await?;
    Ok(reply(text))
}

/// The answer for a project of which nothing can be read.
pub fn of_the_process(metrics: &Metrics) -> Response {
    let mut text = Text::default();
    metrics.write(&mut text);
    text.gauge("fewlabel_store_writable", STORE_WRITABLE, 0.0);
    reply(text)
}

const STORE_WRITABLE: &str = "1 when the store takes labels, 0 when it is damaged and read only";

async fn of_the_project(app: &App, text: &mut Text) -> Result<(), ApiError> {
    let vitals = app.project.vitals().await?;
    text.family(
        "fewlabel_queue_jobs",
        Kind::Gauge,
        "Jobs that wait for the worker, and that it works on",
    );
    for queue in &vitals.queue {
        for (state, count) in [("waiting", queue.waiting), ("running", queue.running)] {
            let labels = [("kind", queue.kind.as_str()), ("state", state)];
            text.sample(&labels, count as f64);
        }
    }
    text.family(
        "fewlabel_queue_oldest_age_seconds",
        Kind::Gauge,
        "How long the oldest waiting job has been waiting",
    );
    for queue in &vitals.queue {
        let age_s = queue.oldest_ms as f64 / 1000.0;
        text.sample(&[("kind", queue.kind.as_str())], age_s);
    }
    text.family(
        "fewlabel_images",
        Kind::Gauge,
        "Images of the project; labelled ones have an accepted label",
    );
    for (state, count) in [
        ("labelled", vitals.labelled),
        ("unlabelled", vitals.images.saturating_sub(vitals.labelled)),
    ] {
        text.sample(&[("state", state)], count as f64);
    }
    text.family(
        "fewlabel_label_revisions_total",
        Kind::Counter,
        "Revisions of labels in the store, with proposals that were kept and deletions",
    );
    text.sample(&[], vitals.revisions as f64);
    let space = space(app).await?;
    text.gauge(
        "fewlabel_store_bytes",
        "Size of the data folder, at most a minute old",
        space.used_bytes as f64,
    );
    text.gauge(
        "fewlabel_store_free_bytes",
        "Free space on the disk of the data folder, at most a minute old",
        space.free_bytes as f64,
    );
    let writable = app.project.read_only().is_none();
    text.gauge(
        "fewlabel_store_writable",
        STORE_WRITABLE,
        f64::from(u8::from(writable)),
    );
    text.gauge(
        "fewlabel_worker_up",
        "1 while the process that computes runs",
        f64::from(u8::from(app.worker_runs())),
    );
    let train = app.project.jobs().running(crate::project::JobKind::Train);
    if let Some(job) = train.await? {
        for (key, name, help) in [
            (
                "step",
                "fewlabel_train_step",
                "Steps that the running round has done",
            ),
            (
                "steps",
                "fewlabel_train_steps",
                "Steps that the running round will do",
            ),
        ] {
            if let Some(value) = job.progress.get(key).and_then(Value::as_f64) {
                text.gauge(name, help, value);
            }
        }
    }
    Ok(())
}

/// The data folder may hold many files, and whoever scrapes does it often.
async fn space(app: &App) -> Result<Space, ApiError> {
    let mut kept = app.metrics.0.space.lock().await;
    match *kept {
        Some((at, space)) if at.elapsed() < SPACE_LIFETIME => Ok(space),
        _ => {
            let space = app.project.space().await?;
            *kept = Some((Instant::now(), space));
            Ok(space)
        }
    }
}

fn reply(text: Text) -> Response {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], text.finish()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        let gone = metrics.request(&Method::POST, "/infer/{model}");
        metrics
            .request(&Method::GET, "/info/")
            .answered(StatusCode::OK);
        let odd = Method::from_bytes(b"BREW").unwrap();
        metrics
            .request(&odd, "(none)")
            .answered(StatusCode::NOT_FOUND);
        metrics.submit();
        let mut text = Text::default();
        metrics.write(&mut text);
        let text = text.finish();
        for line in [
            "fewlabel_http_requests_in_progress 1",
            "fewlabel_label_submits_total 1",
            "fewlabel_http_request_duration_seconds_count{method=\"GET\",route=\"/info/\",status=\"200\"} 1",
            "fewlabel_http_request_duration_seconds_count{method=\"other\",route=\"(none)\",status=\"404\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        drop(gone);
        let mut text = Text::default();
        metrics.write(&mut text);
        assert!(text.finish().contains("status=\"499\"} 1"));
    }
}
