//! Versions in a project in a temporary folder.

use super::*;
use crate::project::tests::Bench;
use crate::store::sha256_of_file;

/// A model directory; the registry looks at the manifest only, not at the weights.
fn model(bench: &Bench, folder: &str, weights: &str) -> PathBuf {
    let dir = bench.project.scratch_dir().join(folder);
    std::fs::create_dir(&dir).unwrap();
    let network = json!({
        "input_size": [32, 32, 32], "resolution_mode": 0, "feature_chns": [4, 8, 16, 24, 32], "num_heads": [2, 4, 4],
        "window_sizes": [6, 6, 6], "depths": [2, 2, 2], "class_num": 3, "in_chns": 1, "dropout": [0, 0, 0.2, 0.2, 0.2],
    });
    let manifest = json!({
        "format": 1, "name": "ct", "network": network, "labels": ["liver", "spleen"],
        "preprocessing": {"spacing_mm": null, "hu_window": [-1000.0, 1000.0]}, "patch": [32, 32, 32], "trained": false,
        "lineage": {"made_by": "test", "code_version": "0"}, "weights_sha256": format!("hash of {weights}"),
    });
    std::fs::write(dir.join(MANIFEST), manifest.to_string()).unwrap();
    std::fs::write(dir.join(WEIGHTS), weights).unwrap();
    dir
}

fn addition(live: bool) -> Addition {
    Addition {
        parent: Some(1),
        metrics: json!({"dice": 0.9}),
        lineage: json!({"seed": 3}),
        live,
        reason: "because".to_owned(),
        round: None,
    }
}

/// Version, state and whether it is live, of all versions.
async fn versions(registry: &Registry) -> Vec<(i64, &'static str, bool)> {
    let models = registry.models().await.unwrap();
    models
        .iter()
        .map(|model| (model.version, model.state.as_str(), model.live))
        .collect()
}

async fn live(registry: &Registry) -> (i64, bool) {
    let live = registry.live("ct").await.unwrap().unwrap();
    (live.version, live.pinned)
}

#[tokio::test]
async fn versions_are_kept_and_live_is_a_pointer() {
    let bench = Bench::with(&[]).await;
    let registry = Registry::new(&bench.project);
    assert_eq!(registry.live("ct").await.unwrap(), None);
    let first = registry
        .import_initial(&model(&bench, "init", "w0"))
        .await
        .unwrap();
    assert_eq!(
        (first.version, first.live, first.weights_sha256.as_str()),
        (1, true, "hash of w0")
    );

    let staged = model(&bench, "round", "w1");
    let second = registry.add("ct", &staged, addition(true)).await.unwrap();
    assert_eq!(
        (second.version, second.parent, &second.metrics, second.live),
        (2, Some(1), &json!({"dice": 0.9}), true)
    );
    assert!(!staged.exists());
    assert_eq!(std::fs::read(second.weights_path()).unwrap(), b"w1");
    assert_eq!(second.manifest().unwrap().name, "ct");
    assert_eq!(registry.live("ct").await.unwrap(), Some(second.clone()));

    // The same model at the next start changes nothing, another one waits for a decision.
    let again = bench.project.data_dir().join("models/ct/1");
    assert_eq!(registry.import_initial(&again).await.unwrap().version, 1);
    registry
        .import_initial(&model(&bench, "other", "w2"))
        .await
        .unwrap();
    let all = [
        (1, "published", false),
        (2, "published", true),
        (3, "candidate", false),
    ];
    assert_eq!(versions(&registry).await, all);
}

#[tokio::test]
async fn a_candidate_is_published_or_kept_by_hand() {
    let bench = Bench::with(&[]).await;
    let registry = Registry::new(&bench.project).acting_as("lead");
    registry
        .import_initial(&model(&bench, "init", "w0"))
        .await
        .unwrap();
    for round in ["a", "b"] {
        let staged = model(&bench, round, round);
        let added = registry.add("ct", &staged, addition(false)).await.unwrap();
        assert_eq!((added.live, added.reason.as_str()), (false, "because"));
    }
    registry.publish("ct", 2, false).await.unwrap();
    registry.keep("ct", 3).await.unwrap();
    let all = [
        (1, "published", false),
        (2, "published", true),
        (3, "kept", false),
    ];
    assert_eq!(versions(&registry).await, all);
    let refused = registry.keep("ct", 2).await;
    assert!(
        matches!(refused, Err(ProjectError::Conflict(_))),
        "{refused:?}"
    );
    let unknown = registry.publish("ct", 9, false).await;
    assert!(
        matches!(unknown, Err(ProjectError::NotFound(_))),
        "{unknown:?}"
    );
    let audit = bench
        .project
        .store()
        .database
        .audit_page(0, i64::MIN)
        .await
        .unwrap();
    let by_lead: Vec<_> = audit
        .iter()
        .filter(|row| row.actor == "lead")
        .map(|row| row.action.as_str())
        .collect();
    assert_eq!(
        by_lead,
        [
            "publish-model",
            "keep-candidate",
            "keep-candidate",
            "publish-model",
            "keep-model"
        ]
    );
}

#[tokio::test]
async fn the_way_back_goes_one_version_at_a_time() {
    let bench = Bench::with(&[]).await;
    let registry = Registry::new(&bench.project);
    registry
        .import_initial(&model(&bench, "init", "w0"))
        .await
        .unwrap();
    let none = registry.roll_back("ct").await;
    assert!(matches!(none, Err(ProjectError::Conflict(_))), "{none:?}");
    for round in ["a", "b"] {
        let staged = model(&bench, round, round);
        registry.add("ct", &staged, addition(true)).await.unwrap();
    }
    registry.publish("ct", 3, true).await.unwrap();
    assert_eq!(live(&registry).await, (3, true));
    assert_eq!(registry.roll_back("ct").await.unwrap().version, 2);
    assert_eq!(live(&registry).await, (2, false), "it is pinned no more");
    assert_eq!(registry.roll_back("ct").await.unwrap().version, 1);
    assert!(registry.roll_back("ct").await.is_err());
    // What is published again can be taken back again.
    registry.publish("ct", 3, false).await.unwrap();
    assert_eq!(registry.roll_back("ct").await.unwrap().version, 1);
    registry.publish("ct", 1, true).await.unwrap();
    assert_eq!(registry.unpin("ct").await.unwrap().version, 1);
    assert_eq!(live(&registry).await, (1, false));
}

#[tokio::test]
async fn other_weights_make_a_candidate_of_the_same_network() {
    let bench = Bench::with(&[]).await;
    let registry = Registry::new(&bench.project);
    let first = registry
        .import_initial(&model(&bench, "init", "w0"))
        .await
        .unwrap();
    let second = registry
        .add_weights(&first, bench.stage(b"w9").await)
        .await
        .unwrap();
    assert_eq!(
        (second.version, second.parent, second.live),
        (2, Some(1), false)
    );
    assert_eq!(std::fs::read(second.weights_path()).unwrap(), b"w9");
    assert_eq!(
        second.weights_sha256,
        sha256_of_file(&second.weights_path()).unwrap()
    );
    let manifest = second.manifest().unwrap();
    assert!(manifest.trained && manifest.weights_sha256 == second.weights_sha256);
    assert_eq!(std::fs::read(first.weights_path()).unwrap(), b"w0");
    assert_eq!(
        std::fs::read_dir(bench.project.scratch_dir())
            .unwrap()
            .count(),
        1,
        "only the directory that was imported"
    );
}

#[tokio::test]
async fn a_directory_left_by_a_crash_is_passed_over() {
    let bench = Bench::with(&[]).await;
    let registry = Registry::new(&bench.project);
    let orphan = bench.project.data_dir().join("models/ct/1");
    std::fs::create_dir_all(&orphan).unwrap();
    std::fs::write(orphan.join(WEIGHTS), "half").unwrap();
    let model = registry
        .import_initial(&model(&bench, "init", "w0"))
        .await
        .unwrap();
    assert_eq!(model.version, 2);
    assert_eq!(registry.models().await.unwrap(), [model]);
}

#[tokio::test]
async fn a_worker_that_lost_its_job_adds_nothing() {
    let bench = Bench::with(&[]).await;
    let project = &bench.project;
    let registry = Registry::new(project);
    registry
        .import_initial(&model(&bench, "init", "w0"))
        .await
        .unwrap();
    let request = crate::project::requests::TrainRequest::of("ct");
    let cause = crate::rounds::round::Cause::Request;
    crate::rounds::round::ask_for(project, &request, cause, "ann")
        .await
        .unwrap();
    let train = [crate::project::JobKind::Train];
    let claimed = project
        .jobs()
        .claim("w", &train, 60)
        .await
        .unwrap()
        .unwrap();
    let end = RoundEnd {
        number: 1,
        decision: "published",
        reason: "better".to_owned(),
        comparison: None,
    };
    let add = async |weights: &str| {
        let new = Addition {
            round: Some((end.clone(), claimed.clone())),
            ..addition(true)
        };
        registry
            .add("ct", &model(&bench, weights, weights), new)
            .await
    };
    project.jobs().cancel(claimed.job.id).await.unwrap();
    let lost = add("late").await;
    assert!(matches!(lost, Err(ProjectError::Conflict(_))), "{lost:?}");
    assert_eq!(versions(&registry).await, [(1, "published", true)]);
    let left = std::fs::read_dir(project.data_dir().join("models/ct")).unwrap();
    assert_eq!(left.count(), 1, "nothing is left of it");
}

#[tokio::test]
async fn what_is_no_model_is_refused_and_leaves_nothing() {
    let bench = Bench::with(&[]).await;
    let registry = Registry::new(&bench.project);
    let empty = tempfile::tempdir().unwrap();
    let linked = model(&bench, "linked", "w0");
    std::fs::create_dir(linked.join("sub")).unwrap();
    for dir in [empty.path(), &linked] {
        let refused = registry.import_initial(dir).await;
        assert!(matches!(refused, Err(ProjectError::Invalid(_))));
        let refused = registry.add("ct", dir, addition(true)).await;
        assert!(matches!(refused, Err(ProjectError::Invalid(_))));
    }
    let refused = registry.add("../ct", &linked, addition(true)).await;
    assert!(matches!(refused, Err(ProjectError::Invalid(_))));
    assert_eq!(registry.models().await.unwrap(), []);
    assert_eq!(
        std::fs::read_dir(bench.project.data_dir().join("models"))
            .unwrap()
            .count(),
        0
    );
}
