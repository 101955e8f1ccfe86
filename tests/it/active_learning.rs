//! Scores of the real worker, and next samples that go by them.

use fewlabel::imaging::phantom::ORGANS;
use serde_json::{Value, json};

use crate::pretrain::dataset;
use crate::simulate::tiny;
use crate::support::Process;

/// A server on phantoms with a tiny model that counts as trained.
fn server(dir: &std::path::Path, trained: bool) -> Process {
    let studies = dataset(dir, 5).join("imagesTr");
    let model = tiny(dir);
    let path = model.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["trained"] = trained.into();
    manifest["preprocessing"] =
        json!({"spacing_mm": [16.0, 10.0, 10.0], "hu_window": [-300.0, 700.0]});
    std::fs::write(&path, manifest.to_string()).unwrap();
    let arguments = [
        "--studies",
        studies.to_str().unwrap(),
        "--model",
        model.to_str().unwrap(),
    ];
    Process::serve(
        &dir.join("log"),
        arguments.into_iter().chain(["--device", "cpu"]),
    )
}

#[tokio::test]
async fn the_pool_is_scored_once_and_the_next_sample_says_where_to_look() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), true);
    let score = async |body: &str| {
        let reply = server
            .post_json("/scoring/epistemic?run_sync=true", body)
            .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["epistemic"]["scored"].clone()
    };
    assert_eq!(score("{}").await, 5);
    assert_eq!(
        score("{}").await,
        0,
        "the same version, asked in the same way"
    );
    assert_eq!(score(r#"{"passes":"single"}"#).await, 5);
    let refused = server
        .post_json("/scoring/epistemic", r#"{"passes":"dropout:4"}"#)
        .await;
    assert_eq!(
        refused.status, 200,
        "the worker finds out that this network drops nothing"
    );
    let wrong = server
        .post_json("/scoring/epistemic", r#"{"passes":"often"}"#)
        .await;
    assert_eq!(wrong.status, 400, "{}", wrong.text());

    let next = server
        .post_json("/activelearning/entropy", "{}")
        .await
        .json();
    let found = &next["uncertainty"];
    assert_eq!(
        (&found["model"], &found["version"]),
        (&json!("tiny"), &json!(1))
    );
    assert_eq!(found["entropy"], next["epistemic_entropy"]);
    assert_eq!(found["entropy"], next["score"]);
    for organ in ORGANS {
        assert!(found["classes"][organ]["volume_ml"].as_f64().unwrap() > 0.0);
    }
    let slice = &found["slices"][0];
    assert_eq!(slice["axis"], 2);
    assert!(slice["index"].as_u64().unwrap() < 20, "{slice}");
    let region = &found["region"];
    for (axis, size) in [40, 40, 20].into_iter().enumerate() {
        let [first, last] =
            ["first_ijk", "last_ijk"].map(|key| region[key][axis].as_u64().unwrap());
        assert!(first <= last && last < size, "{region}");
    }
    // No image is more uncertain than the one that was chosen.
    for n in 0..5 {
        let info = server
            .get(&format!("/datastore/image/info?image=case_{n}"))
            .await
            .json();
        assert!(info["epistemic_entropy"].as_f64() <= found["entropy"].as_f64());
    }
    for strategy in server.get("/info/").await.json()["strategies"]
        .as_object()
        .unwrap()
        .keys()
    {
        let next = server
            .post_json(&format!("/activelearning/{strategy}"), "{}")
            .await
            .json();
        assert!(
            next["id"].is_string() && next["uncertainty"]["slices"].is_array(),
            "{strategy}: {next}"
        );
    }
}

#[tokio::test]
async fn an_untrained_model_says_what_is_typical_and_asking_for_it_scores_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), false);
    let next = server.post_json("/activelearning/auto", "{}").await.json();
    assert!(
        next["chosen_by"].as_str().unwrap().starts_with("random"),
        "{next}"
    );
    assert!(next["uncertainty"].is_null());
    let task = loop {
        let task = server.get("/scoring/").await.json();
        match task["status"].as_str().unwrap() {
            "SUBMITTED" | "RUNNING" => {}
            _ => break task,
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(task["status"], "DONE", "{task}");
    let next = server.post_json("/activelearning/auto", "{}").await.json();
    assert_eq!(next["chosen_by"], "cold_start");
    assert!(next["score"].as_f64().unwrap() > 0.0 && next["uncertainty"].is_null());
}

#[tokio::test]
async fn labels_are_summed() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), true);
    let label = std::fs::read(dir.path().join("data/labelsTr/case_1.nii.gz")).unwrap();
    let path = "/datastore/label?image=case_1";
    let reply = server
        .form("PUT", path, &[("label", "case_1.nii.gz", label.as_slice())])
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let sums = server
        .post_json("/scoring/sum?run_sync=true", "{}")
        .await
        .json();
    let sum = &sums["sum"]["case_1"]["final"];
    assert!(
        sum["sum"].as_u64().unwrap() > 0 && sum["slices"].as_u64().unwrap() <= 20,
        "{sums}"
    );
    let info = server
        .get("/datastore/label/info?label=case_1&tag=final")
        .await
        .json();
    assert_eq!(
        (&info["sum"], &info["slices"]),
        (&sum["sum"], &sum["slices"])
    );
}
