//! Processes killed without warning: what was acknowledged is there, and the work goes on.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fewlabel::imaging::phantom::PhantomCase;
use fewlabel::imaging::{LabelFormat, Volume, write_label};
use fewlabel::project::{JobKind, JobState, Project};
use serde_json::Value;

use crate::support::{Http, Process, children, kill_9, multipart, site_arguments, tiny_site};

/// Longest wait for anything; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(180);
const STUDIES: [&str; 3] = ["case_1", "case_2", "case_3"];

/// Study and tag to the bytes sent and whether they were acknowledged.
type Sent = BTreeMap<(usize, String), (Vec<u8>, bool)>;

/// Studies, a small model, and a data folder that outlives every server.
struct Site {
    dir: tempfile::TempDir,
    cases: Vec<PhantomCase>,
}

impl Site {
    fn new(shape: Option<[usize; 3]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cases = tiny_site(dir.path(), &STUDIES.map(str::to_owned), shape);
        Self { dir, cases }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self) -> Process {
        Process::serve(&self.path("server.log"), site_arguments(self.dir.path()))
    }

    /// A label file that fits the study, with other bytes for every `variant`.
    fn label(&self, study: usize, variant: usize) -> Vec<u8> {
        let mut label: Volume<u16> = self.cases[study].label.clone();
        for (bit, voxel) in label.voxels.iter_mut().take(24).enumerate() {
            *voxel = (variant >> bit & 1) as u16;
        }
        let path = self.path(&format!("label-{study}-{variant}.nii.gz"));
        write_label(&path, &label, &[], LabelFormat::NiftiGz).unwrap();
        std::fs::read(path).unwrap()
    }

    async fn label_all(&self, server: &Http) {
        for (study, name) in STUDIES.iter().enumerate() {
            assert!(
                submit(server, name, "final", &self.label(study, 0))
                    .await
                    .unwrap()
            );
        }
    }

    /// What the store finds wrong with itself.
    async fn faults(&self) -> Vec<String> {
        let project = Project::open_worker(&self.path("data")).await.unwrap();
        let faults = project.check().await.unwrap();
        project.close().await;
        faults
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("server.log")).unwrap_or_default()
    }
}

/// Whether the server acknowledged; an error when it went away.
async fn submit(server: &Http, image: &str, tag: &str, label: &[u8]) -> std::io::Result<bool> {
    let (content_type, body) = multipart(&[("label", "label.nii.gz", label)]);
    let path = format!("/datastore/label?image={image}&tag={tag}");
    let reply = server
        .try_send("PUT", &path, &[("Content-Type", &content_type)], &body)
        .await?;
    Ok(reply.status == 200)
}

/// The worker process, once there is one beside `not`.
async fn worker_of(server: &Process, not: Option<u32>) -> u32 {
    let start = Instant::now();
    loop {
        if let Some(pid) = children(server.pid())
            .into_iter()
            .find(|pid| Some(*pid) != not)
        {
            return pid;
        }
        assert!(start.elapsed() < PATIENCE, "there is no worker");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The last training task once `wanted` holds for it.
async fn training(server: &Http, site: &Site, wanted: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let task = server.get("/train/").await.json();
        if wanted(&task) {
            return task;
        }
        assert!(start.elapsed() < PATIENCE, "{task}\n{}", site.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How often training has made its first step, or gone on after the last one that was saved.
fn starts(task: &Value) -> usize {
    let details = task["details"].as_array();
    details.map_or(0, |lines| {
        lines
            .iter()
            .filter(|line| {
                let line = line.as_str().unwrap();
                line.starts_with("step 1 of") || line.starts_with("going on after")
            })
            .count()
    })
}

fn finished(task: &Value) -> bool {
    ["DONE", "ERROR", "STOPPED"].contains(&task["status"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_label_survives_kill_9_during_submits() {
    let site = Arc::new(Site::new(None));
    let sent: Arc<Mutex<Sent>> = Arc::default();
    for round in 0..5 {
        let server = site.serve();
        let http = Http {
            address: server.address,
        };
        let so_far = sent.lock().unwrap().clone();
        check_sent(&http, &so_far).await;
        let before = sent.lock().unwrap().len();
        let submitters: Vec<_> = (0..STUDIES.len())
            .map(|study| {
                let (site, sent) = (site.clone(), sent.clone());
                tokio::spawn(async move {
                    for n in 0.. {
                        let (tag, label) = (
                            format!("v{round}_{n}"),
                            site.label(study, round * 1000 + n + 1),
                        );
                        let key = (study, tag.clone());
                        sent.lock()
                            .unwrap()
                            .insert(key.clone(), (label.clone(), false));
                        match submit(&http, STUDIES[study], &tag, &label).await {
                            Ok(done) => assert!(done, "{} {tag} was refused", STUDIES[study]),
                            Err(_) => return,
                        }
                        sent.lock().unwrap().get_mut(&key).unwrap().1 = true;
                    }
                })
            })
            .collect();
        let start = Instant::now();
        while sent.lock().unwrap().len() < before + 7 + 4 * round {
            assert!(start.elapsed() < PATIENCE, "{}", site.log());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if round % 2 == 0 {
            kill_9(worker_of(&server, None).await);
        }
        server.kill_9();
        for submitter in submitters {
            submitter.await.unwrap();
        }
    }
    let server = site.serve();
    let sent = sent.lock().unwrap().clone();
    assert!(
        sent.values()
            .filter(|(_, acknowledged)| *acknowledged)
            .count()
            >= 30
    );
    assert!(
        sent.values().any(|(_, acknowledged)| !acknowledged),
        "the kills came during submits"
    );
    check_sent(&server, &sent).await;
    assert_eq!(site.faults().await, Vec::<String>::new());
}

/// Acknowledged labels are there with their bytes; the others are whole or not there.
async fn check_sent(server: &Http, sent: &Sent) {
    for ((study, tag), (bytes, acknowledged)) in sent {
        let reply = server
            .get(&format!(
                "/datastore/label?label={}&tag={tag}",
                STUDIES[*study]
            ))
            .await;
        match reply.status {
            200 => assert!(
                reply.body == *bytes,
                "{} {tag} has other bytes",
                STUDIES[*study]
            ),
            status => assert!(
                status == 404 && !acknowledged,
                "{} {tag} answers {status}",
                STUDIES[*study]
            ),
        }
    }
}

#[tokio::test]
async fn training_that_loses_its_workers_is_taken_up_and_then_given_up() {
    let site = Site::new(None);
    let server = site.serve();
    site.label_all(&server).await;
    let reply = server
        .post_json("/train/tiny", r#"{"steps": 1000000}"#)
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let mut worker = None;
    for life in 1..=3 {
        let task = training(&server, &site, |task| {
            starts(task) == life || finished(task)
        })
        .await;
        assert_eq!(task["status"], "RUNNING", "{task}");
        let pid = worker_of(&server, worker).await;
        kill_9(pid);
        worker = Some(pid);
        assert_eq!(server.get("/info/").await.status, 200, "the server goes on");
        let mask = server.form("POST", "/infer/tiny?image=case_1", &[]).await;
        assert_eq!(
            mask.status,
            200,
            "an inference waits for the next worker: {}",
            mask.text()
        );
    }
    let task = training(&server, &site, finished).await;
    assert_eq!(task["status"], "ERROR", "{task}");
    let last = task["details"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .as_str()
        .unwrap();
    assert!(last.contains("stopped answering"), "{last}");

    let reply = server
        .post_json("/train/tiny", r#"{"steps": 2, "name": "again"}"#)
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let task = training(&server, &site, finished).await;
    assert_eq!(task["status"], "DONE", "{task}\n{}", site.log());
    let mask = server
        .form("POST", "/infer/tiny?image=case_1&output=json", &[])
        .await;
    assert_eq!(
        mask.json()["model_version"],
        2,
        "the next inference uses the new version"
    );
}

#[tokio::test]
async fn training_of_a_killed_server_goes_on_after_the_restart() {
    let site = Site::new(None);
    let server = site.serve();
    site.label_all(&server).await;
    assert_eq!(
        server
            .post_json("/train/tiny", r#"{"steps": 40}"#)
            .await
            .status,
        200
    );
    training(&server, &site, |task| starts(task) == 1).await;
    let worker = worker_of(&server, None).await;
    server.kill_9();
    let server = site.serve();
    let task = training(&server, &site, finished).await;
    assert_eq!(task["status"], "DONE", "{task}\n{}", site.log());
    let models = server.get("/model/info/tiny").await;
    assert_eq!(models.status, 200, "{}", models.text());
    let mask = server
        .form("POST", "/infer/tiny?image=case_2&output=json", &[])
        .await;
    assert_eq!(mask.json()["model_version"], 2);
    for (study, name) in STUDIES.iter().enumerate() {
        let label = server
            .get(&format!("/datastore/label?label={name}&tag=final"))
            .await;
        assert!(label.body == site.label(study, 0), "{name}");
    }
    let start = Instant::now();
    while Path::new(&format!("/proc/{worker}")).exists() {
        assert!(
            start.elapsed() < PATIENCE,
            "the worker of the killed server goes on without it"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(site.faults().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inference_whose_worker_is_killed_is_answered_by_the_next() {
    let site = Site::new(Some([48, 80, 80]));
    let server = site.serve();
    let http = Http {
        address: server.address,
    };
    let asked =
        tokio::spawn(async move { http.form("POST", "/infer/tiny?image=case_1", &[]).await });
    let project = Project::open_worker(&site.path("data")).await.unwrap();
    let start = Instant::now();
    loop {
        let job = project.jobs().last(JobKind::Infer).await.unwrap();
        if job.is_some_and(|job| job.state == JobState::Running) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{}", site.log());
    }
    kill_9(worker_of(&server, None).await);
    let reply = asked.await.unwrap();
    assert_eq!(reply.status, 200, "{}\n{}", reply.text(), site.log());
    let job = project.jobs().last(JobKind::Infer).await.unwrap().unwrap();
    assert_eq!(job.attempts, 2, "it was taken up a second time");
    project.close().await;
}

#[tokio::test]
async fn a_second_server_is_refused_and_names_the_first() {
    let site = Site::new(Some([4, 8, 8]));
    let server = site.serve();
    let second = Command::new(env!("CARGO_BIN_EXE_fewlabel"))
        .args(["serve", "--port", "0"])
        .args(site_arguments(site.dir.path()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(
        text.contains(&format!("process {}", server.pid())),
        "{text}"
    );
    assert!(second.stdout.is_empty());
    assert!(
        server.ready().contains("tiny version 1"),
        "{}",
        server.ready()
    );
    assert_eq!(server.get("/info/").await.status, 200, "the first goes on");
}
