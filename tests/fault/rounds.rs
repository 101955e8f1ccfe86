//! `kill -9` of the worker or of the server at a random moment of a round: it goes on or fails with its reason, no version
//! is half there, and every label is.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fewlabel::imaging::phantom::{PhantomOptions, torso};
use fewlabel::imaging::{LabelFormat, write_label, write_scan};
use fewlabel::model::{LabelSchema, PctNetConfig, create_untrained};
use fewlabel::project::Project;
use fewlabel::rng::Rng;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::http::Http;
use crate::{Amount, site};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(300);
const STUDIES: usize = 5;
const STEPS: usize = 120;

struct Server {
    child: Child,
    http: Http,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path("log"))
            .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fewlabel"))
            .args(["serve", "--port", "0", "--ahead", "0", "--studies"])
            .arg(path("studies"))
            .arg("--data")
            .arg(path("data"))
            .arg("--model")
            .arg(path("model"))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        let address = ready
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        let address = address.unwrap_or_else(|| panic!("not ready: {ready:?}"));
        Self {
            http: Http {
                address: address.parse().unwrap(),
            },
            child,
        }
    }

    /// The worker process, if there is one at this moment.
    fn worker(&self) -> Option<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.into_iter().find_map(|task| {
            let children = std::fs::read_to_string(task.unwrap().path().join("children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        })
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make(dir: &Path) -> Vec<Vec<u8>> {
    std::fs::create_dir_all(dir.join("studies")).unwrap();
    let options = PhantomOptions {
        shape: Some([16, 32, 32]),
        ..PhantomOptions::small()
    };
    let labels = (0..STUDIES).map(|n| {
        let case = torso(n as u64, &options);
        let scan = dir.join(format!("studies/case_{n}.nii.gz"));
        write_scan(&scan, &case.scan, LabelFormat::NiftiGz).unwrap();
        let label = dir.join("label.nii.gz");
        write_label(&label, &case.label, &[], LabelFormat::NiftiGz).unwrap();
        std::fs::read(label).unwrap()
    });
    let labels = labels.collect();
    let schema =
        LabelSchema::from_list("liver,spleen,kidney_right,kidney_left,aorta,vertebrae").unwrap();
    let small = PctNetConfig::pct_net_s(schema.class_count(), [16, 32, 32], 1);
    let network = PctNetConfig {
        feature_chns: [4, 8, 16, 16, 16],
        num_heads: [2, 2, 2],
        ..small
    };
    create_untrained(&dir.join("model"), "tiny", &network, &schema, 1).unwrap();
    labels
}

/// The round once it is over.
fn finished(runtime: &Runtime, http: Http, number: i64, log: &Path) -> Value {
    let start = Instant::now();
    loop {
        let path = format!("/rounds/{number}");
        let reply = runtime.block_on(http.try_send("GET", &path, &[], b""));
        if let Ok(reply) = reply
            && reply.status == 200
            && !["queued", "running"].contains(&reply.json()["state"].as_str().unwrap())
        {
            return reply.json();
        }
        let said = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(
            start.elapsed() < PATIENCE,
            "round {number} does not end\n{}",
            said()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn run(amount: &Amount) -> Result<String, String> {
    let folder = site::folder();
    let dir = folder.path();
    let labels = make(dir);
    let log: PathBuf = dir.join("log");
    let runtime = Runtime::new().unwrap();
    let mut server = Server::start(dir);
    for (n, label) in labels.iter().enumerate() {
        let path = format!("/datastore/label?image=case_{n}");
        let parts = [("label", "label.nii.gz", label.as_slice())];
        let reply = runtime.block_on(server.http.form("PUT", &path, &parts));
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let start_round = |http: Http, seed: usize| {
        let body = json!({"steps": STEPS, "seed": seed}).to_string();
        let start = Instant::now();
        loop {
            let reply = runtime.block_on(http.post_json("/rounds/tiny", &body));
            // The decision about a round stands before its job is over: a worker killed between the two takes it up again.
            if reply.status == 429 && start.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            assert_eq!(reply.status, 200, "{}", reply.text());
            return reply.json()["round"].as_i64().unwrap();
        }
    };
    // How long a round takes when nobody disturbs it.
    let start = Instant::now();
    let whole = start_round(server.http, 0);
    assert_eq!(
        finished(&runtime, server.http, whole, &log)["state"],
        "published"
    );
    let whole_s = start.elapsed().as_secs_f64();

    let mut rng = Rng::new(2).named("rounds");
    let (mut workers, mut servers, mut failed) = (0, 0, 0);
    for n in 1..=amount.rounds {
        let number = start_round(server.http, n);
        std::thread::sleep(Duration::from_secs_f64(rng.range(0.0, whole_s)));
        if n % 2 == 1
            && let Some(worker) = server.worker()
        {
            // It may end between the two.
            let _ = Command::new("kill")
                .args(["-9", &worker.to_string()])
                .status();
            workers += 1;
            let info = runtime.block_on(server.http.get("/info/"));
            assert_eq!(info.status, 200, "the server goes on");
        } else {
            server.kill();
            server = Server::start(dir);
            servers += 1;
        }
        let round = finished(&runtime, server.http, number, &log);
        match round["state"].as_str().unwrap() {
            "published" | "kept" => assert!(round["version"].is_i64(), "{round}"),
            "failed" => {
                assert!(round["reason"].is_string(), "{round}");
                failed += 1;
            }
            state => panic!("{state}: {round}"),
        }
    }
    let rounds = runtime
        .block_on(server.http.get("/rounds/?limit=1000"))
        .json();
    let models = runtime.block_on(server.http.get("/models/")).json();
    let made: Vec<i64> = rounds["rounds"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .filter_map(|round| round["version"].as_i64())
        .collect();
    let mut versions: Vec<i64> = models["models"][0]["versions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|version| version["version"].as_i64())
        .collect();
    versions.sort_unstable();
    assert_eq!(
        versions[1..],
        made,
        "each round made one version, in their order"
    );
    let mask = runtime.block_on(server.http.form(
        "POST",
        "/infer/tiny?image=case_0&output=json",
        &[],
    ));
    assert_eq!(
        mask.json()["model_version"],
        models["models"][0]["live_version"]
    );
    for (n, label) in labels.iter().enumerate() {
        let path = format!("/datastore/label?label=case_{n}&tag=final");
        assert!(
            runtime.block_on(server.http.get(&path)).body == *label,
            "label {n}"
        );
    }
    server.kill();
    runtime.block_on(async {
        let project = Project::open_worker(&dir.join("data")).await.unwrap();
        assert_eq!(project.check().await.unwrap(), Vec::<String>::new());
        project.close().await;
    });
    Ok(format!(
        "{workers} workers and {servers} servers killed -9 within rounds of {whole_s:.1} s: {} versions made, {failed} rounds \
         failed with a reason, all labels there",
        made.len()
    ))
}
