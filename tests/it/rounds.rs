//! Whole rounds by the built program: the gate, candidates, the way back, proposals ahead, rounds that go on.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fewlabel::imaging::phantom::{ORGANS, PhantomCase};
use fewlabel::imaging::{LabelFormat, write_label};
use serde_json::{Value, json};

use crate::support::{Http, Process, children, kill_9, site_arguments, tiny_site};

/// Longest wait for anything; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(240);
/// One of them is a validation image.
const STUDIES: usize = 5;

struct Site {
    dir: tempfile::TempDir,
    cases: Vec<PhantomCase>,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..STUDIES).map(|n| format!("case_{n}")).collect();
        let cases = tiny_site(dir.path(), &names, None);
        Self { dir, cases }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Proposals are made ahead only by a model that has learned something.
    fn pretend_that_the_model_is_trained(&self) {
        let path = self.path("model/manifest.json");
        let manifest = std::fs::read_to_string(&path).unwrap();
        let trained = manifest.replace("\"trained\": false", "\"trained\": true");
        assert_ne!(manifest, trained);
        std::fs::write(path, trained).unwrap();
    }

    fn serve(&self, more: &[&str]) -> Process {
        let more = more.iter().map(|text| (*text).to_owned());
        let arguments = site_arguments(self.dir.path()).into_iter().chain(more);
        Process::serve(&self.path("server.log"), arguments)
    }

    /// Submits the label of a study, with every structure under the name of the next one when `wrong`.
    async fn submit(&self, server: &Http, study: usize, wrong: bool) {
        let mut label = self.cases[study].label.clone();
        let structures = ORGANS.len() as u16;
        for voxel in label.voxels.iter_mut().filter(|voxel| wrong && **voxel > 0) {
            *voxel = *voxel % structures + 1;
        }
        let path = self.path("label.nii.gz");
        write_label(&path, &label, &[], LabelFormat::NiftiGz).unwrap();
        let bytes = std::fs::read(path).unwrap();
        let parts = [("label", "label.nii.gz", bytes.as_slice())];
        let path = format!("/datastore/label?image=case_{study}");
        let reply = server.form("PUT", &path, &parts).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// A round of so many steps, once it is over.
    async fn round(&self, server: &Http, params: Value) -> Value {
        let started = server.post_json("/rounds/tiny", &params.to_string()).await;
        assert_eq!(started.status, 200, "{}", started.text());
        let number = started.json()["round"].as_i64().unwrap();
        self.until(server, number, |round| {
            !["queued", "running"].contains(&round["state"].as_str().unwrap())
        })
        .await
    }

    async fn until(&self, server: &Http, number: i64, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let reply = server.get(&format!("/rounds/{number}")).await;
            if reply.status == 200 && wanted(&reply.json()) {
                return reply.json();
            }
            let log = std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "{}\n{log}", reply.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn params_of(server: &Http, image: &str, params: Value) -> Value {
    let text = params.to_string();
    let parts = [("params", "", text.as_bytes())];
    let path = format!("/infer/tiny?image={image}&output=json");
    let reply = server.form("POST", &path, &parts).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[tokio::test]
async fn a_bad_round_is_kept_as_a_candidate_and_a_published_one_is_taken_back() {
    let site = Site::new();
    let server = site.serve(&["--gate-epsilon", "0.03"]);
    for study in 0..STUDIES {
        site.submit(&server, study, false).await;
    }
    let steps = 150;
    let first = site.round(&server, json!({"steps": steps})).await;
    assert_eq!(first["state"], "published", "{first}");
    assert!(
        first["reason"]
            .as_str()
            .unwrap()
            .contains("not trained yet"),
        "{first}"
    );
    assert_eq!(
        (&first["version"], &first["start_version"]),
        (&json!(2), &json!(1))
    );
    let validated = first["validation_images"].as_array().unwrap();
    assert_eq!(
        (
            validated.len(),
            first["training_images"].as_array().unwrap().len()
        ),
        (1, 4)
    );
    let dice = first["comparison"]["new_dice"].as_f64().unwrap();
    assert!(
        dice > 0.1,
        "it has to have learned something to lose: {first}"
    );

    // Half of the labels to learn from are wrong, those to validate on are not.
    let learned = first["training_images"].as_array().unwrap();
    for image in &learned[..2] {
        let study = image.as_str().unwrap().strip_prefix("case_").unwrap();
        site.submit(&server, study.parse().unwrap(), true).await;
    }
    let bad = site
        .round(&server, json!({"steps": steps, "client_id": "ann"}))
        .await;
    assert_eq!(
        (&bad["state"], &bad["version"]),
        (&json!("kept"), &json!(3)),
        "{bad}"
    );
    assert!(
        bad["reason"]
            .as_str()
            .unwrap()
            .starts_with("worse than the live version: "),
        "{bad}"
    );
    assert_eq!(
        (&bad["start"], &bad["start_version"], &bad["live_version"]),
        (&json!("base"), &json!(1), &json!(2))
    );
    let compared = &bad["comparison"];
    assert_eq!(compared["cases"], 1);
    assert_eq!(
        compared["per_case"][0]["old_dice"], first["comparison"]["per_case"][0]["new_dice"],
        "the live version on the same case"
    );
    let failed = compared["structures"].as_array().unwrap();
    assert!(
        failed.iter().any(|structure| structure["passed"] == false),
        "{compared}"
    );

    // The live version serves on, and the candidate answers when it is asked.
    assert_eq!(
        params_of(&server, "case_0", json!({})).await["model_version"],
        2
    );
    let candidate = params_of(&server, "case_0", json!({"version": "3 (candidate)"})).await;
    assert_eq!(candidate["model_version"], 3);

    let forced = server
        .post_json("/models/tiny/publish?version=3", "{}")
        .await;
    assert_eq!(forced.json()["live_version"], 3, "{}", forced.text());
    assert_eq!(
        params_of(&server, "case_0", json!({})).await["model_version"],
        3
    );
    let back = server.post_json("/models/tiny/rollback", "{}").await.json();
    assert_eq!(
        (&back["live_version"], &back["rollback_version"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(
        params_of(&server, "case_0", json!({})).await["model_version"],
        2
    );

    // While a version is pinned, nothing replaces it, however good.
    server.post_json("/models/tiny/pin", "{}").await;
    let held = site
        .round(&server, json!({"steps": 2, "val_split": 0.0}))
        .await;
    assert_eq!(
        (&held["state"], &held["reason"]),
        (&json!("kept"), &json!("version 2 is pinned"))
    );
    let lineage =
        server.get("/models/").await.json()["models"][0]["versions"][1]["lineage"].clone();
    assert_eq!(
        (
            &lineage["round"],
            &lineage["parent_version"],
            &lineage["label_sha256"]
        ),
        (&json!(2), &json!(1), &bad["label_sha256"])
    );
}

#[tokio::test]
async fn labels_start_a_round_and_proposals_are_made_ahead() {
    let site = Site::new();
    site.pretend_that_the_model_is_trained();
    let server = site.serve(&[
        "--round-after-labels",
        "2",
        "--round-steps",
        "3",
        "--ahead",
        "2",
    ]);
    let next = server
        .post_json("/activelearning/first", r#"{"client_id":"ann"}"#)
        .await;
    assert_eq!(next.json()["id"], "case_0");
    let start = Instant::now();
    while params_of(&server, "case_1", json!({})).await["computed_ahead"] != true {
        assert!(
            start.elapsed() < PATIENCE,
            "the next case is not made ahead"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // The same voxels as when it is made for somebody who waits.
    let with =
        |largest_cc: bool| format!(r#"{{"result_extension": ".nii", "largest_cc": {largest_cc}}}"#);
    let mask = async |params: String, image: &str| {
        let parts = [("params", "", params.as_bytes())];
        let path = format!("/infer/tiny?image={image}&output=image");
        server.form("POST", &path, &parts).await.body
    };
    let (ahead, again) = (
        mask(with(false), "case_1").await,
        mask(with(false), "case_1").await,
    );
    assert!(!ahead.is_empty() && ahead == again);
    assert_eq!(
        params_of(&server, "case_1", json!({"largest_cc": true})).await["computed_ahead"],
        false
    );

    site.submit(&server, 0, false).await;
    site.submit(&server, 1, false).await;
    let round = site
        .until(&server, 1, |round| round["state"] == "published")
        .await;
    assert_eq!(
        (&round["cause"], &round["actor"], &round["steps"]),
        (&json!("labels"), &json!("server"), &json!(3))
    );
    // Another version: what the one before made is not told any more.
    let now = params_of(&server, "case_2", json!({})).await;
    assert_eq!(now["model_version"], 2, "{now}");
}

#[tokio::test]
async fn a_round_goes_on_from_its_checkpoint_with_the_labels_that_it_began_with() {
    let site = Site::new();
    let server = site.serve(&[]);
    for study in 0..STUDIES {
        site.submit(&server, study, false).await;
    }
    let started = server.post_json("/rounds/tiny", r#"{"steps": 1200}"#).await;
    assert_eq!(started.status, 200, "{}", started.text());
    let step = |round: &Value| round["progress"]["step"].as_i64().unwrap_or(0);
    site.until(&server, 1, |round| step(round) > 40).await;
    let worker = children(server.pid())[0];
    kill_9(worker);
    // A label that came meanwhile is for the next round.
    site.submit(&server, 0, true).await;
    site.until(&server, 1, |round| step(round) > 60).await;
    let task = server.get("/train/").await.json();
    let lines: Vec<_> = task["details"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_str().unwrap())
        .collect();
    let went_on = lines
        .iter()
        .any(|line| line.starts_with("going on after step"));
    assert!(went_on, "{lines:?}");
    // Also after a clean stop of the server.
    server.terminate();
    let server = site.serve(&[]);
    let round = site
        .until(&server, 1, |round| {
            step(round) > 60 || round["state"] != "running" && round["state"] != "queued"
        })
        .await;
    assert!(
        ["running", "published"].contains(&round["state"].as_str().unwrap()),
        "{round}"
    );
    let round = server.delete("/rounds/1").await.json();
    assert!(
        ["stopped", "published"].contains(&round["state"].as_str().unwrap()),
        "{round}"
    );
}

#[tokio::test]
async fn a_worker_that_hangs_is_replaced() {
    let site = Site::new();
    let server = site.serve(&[]);
    let worker = loop {
        if let Some(pid) = children(server.pid()).first() {
            break *pid;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let stopped = std::process::Command::new("kill")
        .args(["-STOP", &worker.to_string()])
        .status()
        .unwrap();
    assert!(stopped.success());
    // The request waits for a minute, is then done by the next worker, and everything else goes on.
    let mask = params_of(&server, "case_0", json!({})).await;
    assert_eq!(mask["model_version"], 1);
    assert!(
        children(server.pid()).iter().all(|pid| *pid != worker),
        "it was killed"
    );
}
