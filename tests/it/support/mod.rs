//! A whole server on a real socket, with a worker that does not compute.

pub mod dicom;
mod http;
mod inspect;
pub mod pacs;
mod process;
mod tiny;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewlabel::clock::ManualClock;
use fewlabel::imaging::{Geometry, LabelFormat, Volume, write_label};
use fewlabel::model::{LabelSchema, PctNetConfig, create_untrained};
use fewlabel::project::{OpenProject, Project};
use fewlabel::rest::serve::{self, Limits as HttpLimits};
use fewlabel::rest::{App, AppParts, Offers, router};
use fewlabel::rounds::registry::Registry;
use fewlabel::sessions::Sessions;
use fewlabel::telemetry::LogRing;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use http::{Http, Reply, multipart};
pub use inspect::{inspect, numbers};
pub use process::{Process, children, kill_9, shared};
pub use tiny::{organs, site_arguments, tiny_model, tiny_site};
pub use worker::FakeWorker;

/// 2023-11-14 22:13:20 UTC.
const NOW_MS: i64 = 1_700_000_000_000;

/// How a test server differs from the usual one.
#[derive(Clone)]
pub struct Setup {
    pub infer_slots: usize,
    pub limits: HttpLimits,
    pub offers: Offers,
    pub hosts: Option<Vec<String>>,
    pub prefix: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            infer_slots: 4,
            limits: HttpLimits::default(),
            offers: Offers::default(),
            hosts: None,
            prefix: "",
        }
    }
}

/// A running server. Its folders are removed when it is dropped.
pub struct TestServer {
    http: Http,
    pub project: Project,
    pub registry: Registry,
    pub worker_alive: watch::Sender<bool>,
    pub clock: Arc<ManualClock>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<bool>>,
    folder: tempfile::TempDir,
}

impl TestServer {
    /// Serves the studies `case_01`, `case 02`, `case.03` with the labels spleen and liver.
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> Self {
        let clock = Arc::new(ManualClock::new(NOW_MS));
        let folder = tempfile::tempdir().unwrap();
        let studies = folder.path().join("studies");
        std::fs::create_dir(&studies).unwrap();
        for (number, name) in ["case_01", "case 02", "case.03"].iter().enumerate() {
            write_volume(&studies.join(format!("{name}.nii.gz")), number as u16 + 10);
        }
        let labels = LabelSchema::new(vec!["spleen".into(), "liver".into()]).unwrap();
        let open = OpenProject {
            studies: studies.into(),
            data: folder.path().join("data"),
            labels: labels.clone(),
            clock: clock.clone(),
            seed: 7,
            settle: std::time::Duration::ZERO,
        };
        let project = Project::open(open).await.unwrap();
        let registry = Registry::new(&project);
        let model = folder.path().join("model");
        let network = PctNetConfig::pct_net_s(labels.class_count(), [32, 64, 64], 1);
        create_untrained(&model, "pct-net-s", &network, &labels, 7).unwrap();
        registry.import_initial(&model).await.unwrap();
        let worker_alive = watch::Sender::new(true);
        let (stop, stopped) = oneshot::channel::<()>();
        let (http, serving) = listen(&project, setup, &worker_alive, async {
            let _ = stopped.await;
        })
        .await;
        Self {
            http,
            project,
            registry,
            worker_alive,
            clock,
            stop: Some(stop),
            serving: Some(serving),
            folder,
        }
    }

    /// Another server of the same project, with other limits.
    pub async fn again(&self, project: Project) -> Http {
        listen(
            &project,
            Setup::default(),
            &self.worker_alive,
            std::future::pending(),
        )
        .await
        .0
    }

    /// Starts a worker that finishes every job at once.
    pub fn worker(&self) -> FakeWorker {
        FakeWorker::start(&self.project)
    }

    /// Asks the server to stop; the task ends when it has drained, with whether it did in time.
    pub fn stop(&mut self) -> JoinHandle<bool> {
        self.stop.take().unwrap().send(()).unwrap();
        self.serving.take().unwrap()
    }

    /// A label file that fits every study of this server.
    pub fn label_bytes(&self) -> Vec<u8> {
        self.volume_bytes(2)
    }

    /// An image file of the size of the studies, with another content than all of them.
    pub fn image_bytes(&self) -> Vec<u8> {
        self.volume_bytes(99)
    }

    /// A label file that fits every study of this server, with another content for each value.
    pub fn label_of(&self, value: u16) -> Vec<u8> {
        self.volume_bytes(value)
    }

    fn volume_bytes(&self, value: u16) -> Vec<u8> {
        let path = self.folder.path().join("volume.nii.gz");
        write_volume(&path, value);
        std::fs::read(path).unwrap()
    }

    pub fn scratch_files(&self) -> Vec<PathBuf> {
        files_in(&self.project.scratch_dir())
    }

    /// JSON without what differs from run to run: paths, hashes, ids.
    pub fn scrub(&self, value: Value) -> Value {
        let root = self.folder.path().canonicalize().unwrap();
        scrub(value, root.to_str().unwrap())
    }
}

impl std::ops::Deref for TestServer {
    type Target = Http;

    fn deref(&self) -> &Http {
        &self.http
    }
}

async fn listen(
    project: &Project,
    setup: Setup,
    worker_alive: &watch::Sender<bool>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> (Http, JoinHandle<bool>) {
    let app = App::new(AppParts {
        project: project.clone(),
        registry: Registry::new(project),
        sessions: Sessions::new(project),
        logs: LogRing::default(),
        device: "cpu".to_owned(),
        infer_slots: setup.infer_slots,
        cors_origins: vec!["https://viewer.example.org".parse().unwrap()],
        hosts: setup.hosts,
        prefix: setup.prefix.to_owned(),
        offers: setup.offers,
        worker: worker_alive.subscribe(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = router::router(app);
    let serving = tokio::spawn(serve::serve(listener, routes, setup.limits, stop));
    (Http { address }, serving)
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect()
}

fn write_volume(path: &Path, first: u16) {
    let steps = [[0.0, 0.0, 3.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let geometry = Geometry::new([2, 3, 4], [0.0; 3], steps).unwrap();
    let mut voxels = vec![0; 24];
    voxels[0] = first;
    voxels[1] = 1;
    let volume = Volume::new(geometry, voxels).unwrap();
    write_label(path, &volume, &[], LabelFormat::NiftiGz).unwrap();
}

fn scrub(value: Value, root: &str) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .into_iter()
                .map(|(key, value)| {
                    let value = match (key.as_str(), &value) {
                        ("id" | "job_id" | "session_id" | "request_id", Value::String(id))
                            if id.len() == 36 && id.contains('-') =>
                        {
                            "(uuid)".into()
                        }
                        ("start_ts" | "end_ts", Value::String(_)) => "(local time)".into(),
                        ("sha256" | "weights_sha256", Value::String(_)) => "(hash)".into(),
                        ("ts", Value::Number(ts)) if ts.as_i64() != Some(NOW_MS / 1000) => {
                            "(seconds)".into()
                        }
                        _ => scrub(value, root),
                    };
                    (key, value)
                })
                .collect(),
        ),
        Value::Array(array) => array.into_iter().map(|value| scrub(value, root)).collect(),
        Value::String(text) => {
            let text = text.replace(root, "(root)");
            match text.split_once("SHA256:") {
                Some(("", hex)) if hex.len() == 64 => "SHA256:(hash)".into(),
                _ => text.into(),
            }
        }
        other => other,
    }
}
