//! `kill -9` of the worker or of the server at a random moment of a round: it goes on or fails with its reason, no version
//! is half there, and every label is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fewlabel::imaging::{LabelFormat, write_label};
use fewlabel::project::Project;
use fewlabel::rng::Rng;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::http::Http;
use crate::process::{Process, children};
use crate::tiny::{site_arguments, tiny_site};
use crate::{Amount, site};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(300);
const STUDIES: usize = 5;
const STEPS: usize = 120;

fn serve(dir: &Path) -> Process {
    let no_proposals = ["--ahead", "0"].map(str::to_owned);
    let arguments = no_proposals.into_iter().chain(site_arguments(dir));
    Process::serve(&dir.join("log"), arguments)
}

fn make(dir: &Path) -> Vec<Vec<u8>> {
    let names: Vec<String> = (0..STUDIES).map(|n| format!("case_{n}")).collect();
    let labels = tiny_site(dir, &names, None).into_iter().map(|case| {
        let label = dir.join("label.nii.gz");
        write_label(&label, &case.label, &[], LabelFormat::NiftiGz).unwrap();
        std::fs::read(label).unwrap()
    });
    labels.collect()
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
    let mut server = serve(dir);
    for (n, label) in labels.iter().enumerate() {
        let path = format!("/datastore/label?image=case_{n}");
        let parts = [("label", "label.nii.gz", label.as_slice())];
        let reply = runtime.block_on(server.form("PUT", &path, &parts));
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
    let whole = start_round(*server, 0);
    assert_eq!(
        finished(&runtime, *server, whole, &log)["state"],
        "published"
    );
    let whole_s = start.elapsed().as_secs_f64();

    let mut rng = Rng::new(2).named("rounds");
    let (mut workers, mut servers, mut failed) = (0, 0, 0);
    for n in 1..=amount.rounds {
        let number = start_round(*server, n);
        std::thread::sleep(Duration::from_secs_f64(rng.range(0.0, whole_s)));
        if n % 2 == 1
            && let Some(worker) = children(server.pid()).first()
        {
            // It may end between the two.
            let _ = Command::new("kill")
                .args(["-9", &worker.to_string()])
                .status();
            workers += 1;
            let info = runtime.block_on(server.get("/info/"));
            assert_eq!(info.status, 200, "the server goes on");
        } else {
            server.kill_9();
            server = serve(dir);
            servers += 1;
        }
        let round = finished(&runtime, *server, number, &log);
        match round["state"].as_str().unwrap() {
            "published" | "kept" => assert!(round["version"].is_i64(), "{round}"),
            "failed" => {
                assert!(round["reason"].is_string(), "{round}");
                failed += 1;
            }
            state => panic!("{state}: {round}"),
        }
    }
    let rounds = runtime.block_on(server.get("/rounds/?limit=1000")).json();
    let models = runtime.block_on(server.get("/models/")).json();
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
    let mask = runtime.block_on(server.form("POST", "/infer/tiny?image=case_0&output=json", &[]));
    assert_eq!(
        mask.json()["model_version"],
        models["models"][0]["live_version"]
    );
    for (n, label) in labels.iter().enumerate() {
        let path = format!("/datastore/label?label=case_{n}&tag=final");
        assert!(
            runtime.block_on(server.get(&path)).body == *label,
            "label {n}"
        );
    }
    server.kill_9();
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
