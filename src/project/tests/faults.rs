use std::fs::File;
use std::time::{Duration, SystemTime};

use super::*;
use crate::store::rows::{self, NewLabel};

fn make_old(path: &std::path::Path) {
    let then = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    File::options()
        .append(true)
        .open(path)
        .unwrap()
        .set_modified(then)
        .unwrap();
}

#[tokio::test]
async fn a_second_server_is_refused_with_the_holder_and_a_worker_is_not() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    match Project::open(Bench::opening(&bench.dir, &bench.clock)).await {
        Err(ProjectError::Unavailable(text)) => {
            assert!(
                text.contains(&format!("process {}", std::process::id())),
                "{text}"
            );
            assert!(text.contains("since 2023-11-14T22:13:20Z"), "{text}");
        }
        other => panic!("{other:?}"),
    }

    let worker = Project::open_worker(bench.project.data_dir())
        .await
        .unwrap();
    assert_eq!(
        (worker.schema(), worker.studies(), worker.seed()),
        (bench.project.schema(), bench.project.studies(), 1)
    );
    bench.submit("a", "final", &[1]).await.unwrap();
    assert_eq!(
        worker.all_labels().await.unwrap(),
        bench.project.all_labels().await.unwrap()
    );
    // The worker submits too, while the server is open.
    let staged = bench.label(&[2]).await;
    let auto = Origin::Auto(MadeBy {
        model: "m".to_owned(),
        version: Some(3),
        sha256: Some("f0".to_owned()),
    });
    let new = SubmitLabel {
        origin: auto.clone(),
        ..SubmitLabel::new(id("a"), Tag::original(), staged, "x.nii.gz", "worker")
    };
    worker.submit_label(new).await.unwrap();
    assert_eq!(
        bench
            .project
            .label(&id("a"), &Tag::original())
            .await
            .unwrap()
            .unwrap()
            .origin,
        auto
    );

    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(
        Project::open_worker(empty.path()).await,
        Err(ProjectError::NotFound(_))
    ));
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn other_labels_than_at_the_first_opening_are_refused() {
    let Bench {
        dir,
        clock,
        project,
    } = Bench::with(&["a.nii.gz"]).await;
    project.close().await;
    drop(project);
    let labels = LabelSchema::new(vec!["liver".to_owned()]).unwrap();
    match Project::open(OpenProject {
        labels,
        ..Bench::opening(&dir, &clock)
    })
    .await
    {
        Err(ProjectError::Conflict(text)) => assert!(text.contains("spleen"), "{text}"),
        other => panic!("{other:?}"),
    }
    // The refusal holds nothing and changed nothing.
    Project::open(Bench::opening(&dir, &clock)).await.unwrap();
}

#[tokio::test]
async fn a_kill_between_the_steps_of_a_submit_is_harmless() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let kept = bench.submit("a", "final", &[1]).await.unwrap();
    let store = bench.project.store().clone();

    // After step 1: a staged file without a process. After step 3: blobs without a row.
    let abandoned = bench.project.data_dir().join("staging/abandoned");
    std::fs::write(&abandoned, "x").unwrap();
    make_old(&abandoned);
    let (young, old, renewed) = (
        bench.stage(b"young").await,
        bench.stage(b"old").await,
        bench.stage(b"renewed").await,
    );
    for staged in [&young, &old, &renewed] {
        store.blobs.put(staged).await.unwrap();
    }
    for path in bench.blobs() {
        if path != store.blobs.path(&young.sha256) {
            make_old(&path);
        }
    }
    store.blobs.put(&renewed).await.unwrap();
    // Within step 4: a transaction that was not committed.
    let mut tx = store.database.begin().await.unwrap();
    let row = NewLabel {
        image: "a".to_owned(),
        tag: "final".to_owned(),
        deleted: false,
        ext: ".nii.gz".to_owned(),
        sha256: old.sha256.clone(),
        normalised_sha256: old.sha256.clone(),
        size_bytes: 3,
        author: "ann".to_owned(),
        origin: "\"manual\"".to_owned(),
        params: "{}".to_owned(),
        annotated: "[]".to_owned(),
        image_sha256: String::new(),
        created_ms: 0,
        idempotency_key: None,
        provenance: "{}".to_owned(),
        geometry_sha256: String::new(),
    };
    assert_eq!(rows::add_label(&mut tx, &row).await.unwrap().revision, 2);
    drop(tx);
    drop(store);

    let (young, old, renewed) = (
        young.sha256.clone(),
        old.sha256.clone(),
        renewed.sha256.clone(),
    );
    let bench = bench.reopen().await;
    let blobs = &bench.project.store().blobs;
    assert_eq!(
        [
            blobs.exists(&young),
            blobs.exists(&renewed),
            blobs.exists(&old),
            abandoned.exists()
        ],
        [true, true, false, false]
    );
    assert_eq!(
        bench
            .project
            .history(&id("a"), &Tag::accepted())
            .await
            .unwrap(),
        std::slice::from_ref(&kept)
    );
    assert!(bench.project.label_path(&kept).exists());
    assert_eq!(trained_on(&bench, &kept, 1), [1]);
    assert_eq!(bench.submit("a", "final", &[2]).await.unwrap().revision, 2);
}

#[tokio::test]
async fn below_the_floor_of_free_space_nothing_is_taken_and_reading_goes_on() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    bench.submit("a", "final", &[1]).await.unwrap();
    let full = bench.project.clone().with_limits(Limits {
        min_free_bytes: u64::MAX,
        ..Limits::default()
    });
    assert!(matches!(
        full.staging().create().await,
        Err(StoreError::NoSpace(_))
    ));
    let new = SubmitLabel::new(
        id("a"),
        Tag::accepted(),
        bench.label(&[2]).await,
        "x.nii.gz",
        "ann",
    );
    assert!(matches!(
        full.submit_label(new).await,
        Err(ProjectError::NoSpace(_))
    ));
    let upload = full
        .add_image(None, bench.stage(b"x").await, "x.nii.gz", Map::new())
        .await;
    assert!(matches!(upload, Err(ProjectError::NoSpace(_))));
    assert_eq!(full.all_labels().await.unwrap().len(), 1);
    assert_eq!(bench.staged_files(), 0);
}

#[tokio::test]
async fn a_blob_that_cannot_be_written_leaves_the_old_label() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let kept = bench.submit("a", "final", &[1]).await.unwrap();
    let staged = bench.label(&[2]).await;
    // A file where the folder of the blob should be.
    let folder = bench
        .project
        .store()
        .blobs
        .path(&staged.sha256)
        .parent()
        .unwrap()
        .to_owned();
    let aside = bench.dir.path().join("aside");
    if folder.exists() {
        std::fs::rename(&folder, &aside).unwrap();
    }
    std::fs::write(&folder, "in the way").unwrap();
    let new = SubmitLabel::new(id("a"), Tag::accepted(), staged, "x.nii.gz", "ann");
    assert!(matches!(
        bench.project.submit_label(new).await,
        Err(ProjectError::Internal(_))
    ));
    assert_eq!(
        bench
            .project
            .label(&id("a"), &Tag::accepted())
            .await
            .unwrap(),
        Some(kept)
    );
    assert_eq!(bench.staged_files(), 0);

    std::fs::remove_file(&folder).unwrap();
    if aside.exists() {
        std::fs::rename(&aside, &folder).unwrap();
    }
    assert_eq!(bench.submit("a", "final", &[2]).await.unwrap().revision, 2);
}

#[tokio::test]
async fn a_restart_gives_running_jobs_back_and_keeps_the_audit_log_whole() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let job = bench
        .project
        .jobs()
        .enqueue(JobKind::Train, json!({}), json!({}))
        .await
        .unwrap();
    let claimed = bench
        .project
        .jobs()
        .claim("w", &[JobKind::Train], 60)
        .await
        .unwrap()
        .unwrap();
    bench
        .project
        .audit("login", "ann", json!({}))
        .await
        .unwrap();
    let bench = bench.reopen().await;
    bench
        .project
        .audit("login", "bob", json!({}))
        .await
        .unwrap();
    assert_eq!(
        bench
            .project
            .jobs()
            .get(job.id)
            .await
            .unwrap()
            .unwrap()
            .state,
        JobState::Submitted
    );
    assert!(
        bench
            .project
            .jobs()
            .finish(&claimed, Finish::Done(json!({})))
            .await
            .is_err()
    );
    assert_eq!(bench.audit().await.len(), 2);
    bench.project.sweep().await.unwrap();
}

#[tokio::test]
async fn the_check_finds_a_flipped_byte_and_a_lost_blob() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let row = bench.submit("a", "final", &[1]).await.unwrap();
    bench.submit("a", "final", &[2]).await.unwrap();
    let path = bench.project.label_path(&row);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let found = bench.project.check().await.unwrap();
    assert!(
        found.len() == 1 && found[0].contains(&row.sha256) && found[0].contains("damaged"),
        "{found:?}"
    );
    std::fs::remove_file(&path).unwrap();
    assert!(bench.project.check().await.unwrap()[0].contains("it is missing"));
}

#[tokio::test]
async fn reads_are_noted_together_and_kept_when_the_log_cannot_be_written() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let reader = bench.project.acting_as("ann");
    for _ in 0..3 {
        reader.note("read-image", "a", json!({})).unwrap();
        bench.clock.advance_ms(10);
    }
    assert_eq!(bench.audit().await, [], "nobody waits for the log");
    // A full disk: the notes stay, in their order, before the newer ones.
    let full = "PRAGMA max_page_count = 1";
    let mut tx = bench.project.store().database.begin().await.unwrap();
    sqlx::query(full).execute(&mut *tx).await.unwrap();
    drop(tx);
    let long = "x".repeat(1 << 20);
    reader.note("read-label", &long, json!({})).unwrap();
    assert!(matches!(
        reader.write_notes().await,
        Err(ProjectError::NoSpace(_))
    ));
    reader.note("read-label", "a", json!({})).unwrap();
    reader.write_notes().await.unwrap();
    let rows: Vec<_> = bench
        .audit()
        .await
        .into_iter()
        .map(|(_, action, subject)| (action, subject.len()))
        .collect();
    let read = |what: &str, length| (format!("read-{what}"), length);
    assert_eq!(
        rows,
        [
            read("image", 1),
            read("image", 1),
            read("image", 1),
            read("label", 1 << 20),
            read("label", 1)
        ]
    );
    // A clean stop loses none.
    reader.note("read-image", "a", json!({})).unwrap();
    drop(reader);
    let bench = bench.reopen().await;
    assert_eq!(bench.audit().await.len(), 6);
}

#[tokio::test]
async fn a_correction_is_compared_with_the_proposal_that_is_stored() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let made_by = MadeBy {
        model: "m".to_owned(),
        version: Some(3),
        sha256: Some("f0".to_owned()),
    };
    let staged = bench.label(&[1, 1, 2]).await;
    let proposal = SubmitLabel {
        origin: Origin::Auto(made_by.clone()),
        ..SubmitLabel::new(id("a"), Tag::original(), staged, "x.nii.gz", "m")
    };
    let proposal = bench.project.submit_label(proposal).await.unwrap();
    assert_eq!(proposal.provenance, Provenance::default());
    let corrected = bench.submit("a", "final", &[1, 2, 2, 2]).await.unwrap();
    assert_eq!(corrected.provenance.voxels_changed, Some(2));
    assert_eq!(corrected.provenance.proposal, Some(made_by));
    assert_eq!(corrected.geometry_sha256, proposal.geometry_sha256);
    // A stored proposal that is damaged costs the comparison, not the label.
    std::fs::write(bench.project.training_label_path(&proposal), "x").unwrap();
    let again = bench.submit("a", "final", &[2, 2, 2]).await.unwrap();
    assert_eq!(again.provenance.voxels_changed, None);
}
