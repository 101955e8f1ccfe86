//! What outlives a day: revisions, who did what, what is held out, and data of earlier releases.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use fewlabel::model::LabelSchema;
use fewlabel::project::{Limits, OpenProject, Project, Tag};
use serde_json::{Value, json};

use crate::support::{Http, Process, Reply, TestServer, multipart};

fn fewlabel(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fewlabel"))
        .args(arguments)
        .env("USER", "lead")
        .output()
        .unwrap()
}

/// What a command printed, which must have succeeded.
fn printed(arguments: &[&str]) -> String {
    let output = fewlabel(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

async fn submit(
    server: &Http,
    image: &str,
    label: &[u8],
    client: &str,
    headers: &[(&str, &str)],
) -> Reply {
    let params = json!({"client_id": client, "tool_version": "9.1", "tool": "Pen"}).to_string();
    let parts = [
        ("params", "", params.as_bytes()),
        ("label", "l.nii.gz", label),
    ];
    let (content_type, body) = multipart(&parts);
    let mut all = vec![
        ("Content-Type", content_type.as_str()),
        ("User-Agent", "Slicer/5.8 (x)"),
    ];
    all.extend(headers);
    let path = format!("/datastore/label?image={image}");
    server.send("PUT", &path, &all, &body).await
}

#[tokio::test]
async fn revisions_are_listed_compared_and_made_current_again() {
    let server = TestServer::start().await;
    let [one, two] = [1, 2].map(|value| server.label_of(value));
    let revisions = "/datastore/label/revisions?image=case_01";
    assert_eq!(server.get(revisions).await.status, 404);
    server
        .post_json("/activelearning/first", r#"{"client_id":"anna"}"#)
        .await;
    let first = submit(&server, "case_01", &one, "anna", &[]).await;
    assert_eq!(first.header("etag"), Some("\"1\""));
    // Both annotators keep theirs; who did not see the other's is told.
    let stale = [("If-None-Match", "*")];
    let refused = submit(&server, "case_01", &two, "ben", &stale).await;
    assert_eq!(refused.status, 412, "{}", refused.text());
    let seen = [("If-Match", "\"1\"")];
    assert_eq!(
        submit(&server, "case_01", &two, "ben", &seen).await.status,
        200
    );
    let refused = submit(&server, "case_01", &one, "anna", &seen).await;
    assert_eq!(refused.status, 412);
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("at revision 2, not 1"), "{detail}");

    let list = server.get(revisions).await.json();
    assert_eq!(list["current"], 2);
    let entries = list["revisions"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    let of = |n: usize, key: &str| entries[n][key].clone();
    assert_eq!(
        (of(0, "author"), of(1, "author")),
        ("anna".into(), "ben".into())
    );
    assert_eq!((of(0, "parent"), of(1, "parent")), (Value::Null, 1.into()));
    let provenance = of(0, "provenance");
    assert_eq!(
        (
            &provenance["client"],
            &provenance["tool"],
            &provenance["tool_version"]
        ),
        (&"Slicer/5.8 (x)".into(), &"Pen".into(), &"9.1".into())
    );
    for key in ["sha256", "geometry_sha256", "image_sha256"] {
        assert_eq!(of(0, key).as_str().unwrap().len(), 64, "{key}");
    }
    assert_eq!(of(0, "geometry_sha256"), of(1, "geometry_sha256"));

    let old = server
        .get("/datastore/label?label=case_01&tag=final&revision=1")
        .await;
    assert!(old.body == one && old.header("etag") == Some("\"1\""));
    let none = "/datastore/label?label=case_01&tag=final&revision=7";
    assert_eq!(server.get(none).await.status, 404);
    let compare = "/datastore/label/compare?image=case_01&a=1&b=2";
    let found = server.get(compare).await.json();
    assert_eq!(found["voxels_changed"], 1);
    let spleen = &found["classes"][0];
    assert_eq!(
        (&spleen["class"], &spleen["voxels"]),
        (&"spleen".into(), &json!([2, 1]))
    );
    assert_eq!(spleen["dice"], 2.0 / 3.0);

    let current = |revision: i64| {
        format!("/datastore/label/current?image=case_01&revision={revision}&client_id=lead")
    };
    let moved = server.send("PUT", &current(1), &seen, b"").await;
    assert_eq!(moved.status, 412, "the current one is 2");
    let moved = server.send("PUT", &current(1), &[], b"").await;
    assert_eq!((moved.status, moved.header("etag")), (200, Some("\"1\"")));
    let label = server.get("/datastore/label?label=case_01&tag=final").await;
    assert!(label.body == one && label.header("etag") == Some("\"1\""));
    assert_eq!(server.send("PUT", &current(9), &[], b"").await.status, 404);
    // The next revision is number 3, and its parent is what its author saw.
    let third = submit(&server, "case_01", &two, "anna", &seen).await;
    assert_eq!(third.header("etag"), Some("\"3\""), "{}", third.text());
    let list = server.get(revisions).await.json();
    assert_eq!(list["revisions"][2]["parent"], 1);

    let delete = "/datastore/label?id=case_01&tag=final";
    assert_eq!(server.send("DELETE", delete, &seen, b"").await.status, 412);
    let seen = [("If-Match", "\"3\"")];
    assert_eq!(server.send("DELETE", delete, &seen, b"").await.status, 200);
    let list = server.get(revisions).await.json();
    assert_eq!(
        (&list["current"], &list["revisions"][3]["deleted"]),
        (&Value::Null, &true.into())
    );
    assert_eq!(server.send("PUT", &current(4), &[], b"").await.status, 422);
    // A deletion is undone by naming what was there.
    assert_eq!(server.send("PUT", &current(2), &[], b"").await.status, 200);
    let stats = server.get("/datastore/").await.json();
    assert_eq!(stats["completed"], 1);
}

#[tokio::test]
async fn a_label_that_was_damaged_on_the_way_is_refused_by_its_announced_hash() {
    let server = TestServer::start().await;
    let label = server.label_bytes();
    let params = json!({"label_sha256": "0".repeat(64)}).to_string();
    let parts = [
        ("params", "", params.as_bytes()),
        ("label", "l.nii.gz", label.as_slice()),
    ];
    let reply = server
        .form("PUT", "/datastore/label?image=case_01", &parts)
        .await;
    assert_eq!(
        (reply.status, reply.json()["code"].as_str()),
        (422, Some("other_bytes"))
    );
    assert_eq!(server.get("/datastore/").await.json()["completed"], 0);
}

#[tokio::test]
async fn a_submit_knows_its_proposal_and_how_far_it_is_from_it() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let params = br#"{"client_id":"anna","result_extension":".nii.gz"}"#;
    let reply = server
        .form(
            "POST",
            "/infer/pct-net-s?image=case_01",
            &[("params", "", params)],
        )
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let label = server.label_bytes();
    submit(&server, "case_01", &label, "anna", &[]).await;
    submit(&server, "case_01", &label, "ben", &[]).await;
    let list = server.get("/datastore/label/revisions?image=case_01").await;
    let list = list.json();
    let [anna, ben] = [0, 1].map(|n| list["revisions"][n]["provenance"].clone());
    assert!(anna["proposal"].is_object(), "{list}");
    assert!(anna["seconds_open"].is_number(), "{list}");
    assert!(
        ben["proposal"].is_null(),
        "the proposal was another's: {list}"
    );
}

#[tokio::test]
async fn below_the_floor_uploads_are_refused_before_they_are_read() {
    let server = TestServer::start().await;
    let full = server.project.clone().with_limits(Limits {
        min_free_bytes: u64::MAX,
        ..Limits::default()
    });
    let full = server.again(full).await;
    // The body never comes: an answer shows that nobody waited for it.
    for (method, path) in [
        ("PUT", "/datastore/label?image=case_01"),
        ("PUT", "/datastore/image?image=new"),
        ("PUT", "/session/"),
    ] {
        let headers = [
            ("Content-Type", "multipart/form-data; boundary=x"),
            ("Expect", "100-continue"),
        ];
        let reply = full.send(method, path, &headers, b"").await;
        assert_eq!(reply.status, 507, "{path}: {}", reply.text());
        let text = reply.text();
        assert!(text.contains("free space and repeat"), "{text}");
    }
    assert_eq!(full.get("/datastore/image?image=case_01").await.status, 200);
    assert_eq!(full.get("/info/").await.status, 200);
    // Space comes back, nothing has to be restarted.
    let reply = submit(&server, "case_01", &server.label_bytes(), "anna", &[]).await;
    assert_eq!(reply.status, 200);
}

/// A folder with the studies and the data of the first release.
fn first_release() -> tempfile::TempDir {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data-v1");
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture, dir.path());
    let packed = std::fs::File::open(fixture.join("fewlabel.db.gz")).unwrap();
    let mut database = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .read_to_end(&mut database)
        .unwrap();
    std::fs::write(dir.path().join("data/fewlabel.db"), database).unwrap();
    std::fs::write(dir.path().join("data/server.lock"), "{}").unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(path, target).unwrap();
        }
    }
}

#[tokio::test]
async fn data_of_the_first_release_are_opened_and_served() {
    let dir = first_release();
    let argument = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let log = dir.path().join("log");
    let (studies, data) = (argument("studies"), argument("data"));
    let server = Process::serve(&log, ["--studies", &studies, "--data", &data]);
    let stats = server.get("/datastore/").await.json();
    assert_eq!(
        stats,
        json!({"total": 4, "completed": 2, "label_tags": {"final": 2}})
    );
    let list = server.get("/datastore/label/revisions?image=case_1").await;
    let list = list.json();
    assert_eq!(list["current"], 2);
    assert_eq!(list["revisions"][1]["author"], "ben");
    assert_eq!(list["revisions"][1]["geometry_sha256"], "");
    let label = server.get("/datastore/label?label=case_1&tag=final").await;
    assert_eq!((label.status, label.header("etag")), (200, Some("\"2\"")));
    let first = server
        .get("/datastore/label?label=case_1&tag=final&revision=1")
        .await;
    assert!(first.status == 200 && first.body != label.body);
    // The key of a submit before the upgrade is still known, and work goes on.
    let key = [("Idempotency-Key", "k2")];
    let again = submit(&server, "case_1", &label.body, "ben", &key).await;
    assert_eq!((again.status, again.header("etag")), (200, Some("\"2\"")));
    let next = submit(&server, "case_1", &first.body, "anna", &[]).await;
    assert_eq!(next.header("etag"), Some("\"3\""), "{}", next.text());
    let sample = server.post_json("/activelearning/first", "{}").await;
    assert_eq!(sample.json()["id"], "case_3");
    server.kill_9();
    let labels = LabelSchema::from_list("liver,spleen").unwrap();
    let project = Project::open(OpenProject {
        studies: dir.path().join("studies").into(),
        data: dir.path().join("data"),
        labels,
        clock: std::sync::Arc::new(fewlabel::clock::SystemClock),
        seed: 0,
        settle: std::time::Duration::ZERO,
    })
    .await
    .unwrap();
    assert_eq!(project.check().await.unwrap(), Vec::<String>::new());
    let image = project.images().await.unwrap().remove(0).id;
    let history = project.history(&image, &Tag::accepted()).await.unwrap();
    assert_eq!(history.len(), 3);
    project.close().await;
}

#[tokio::test]
async fn data_of_a_later_release_are_refused_in_plain_words() {
    let dir = first_release();
    let data = dir.path().join("data");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("fewlabel.db"));
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (9000, 'later', '2030-01-01', 1, x'00', 0)")
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    let before = std::fs::read(data.join("fewlabel.db")).unwrap();
    let studies = dir.path().join("studies");
    let (studies, data) = (studies.to_str().unwrap(), data.to_str().unwrap());
    for arguments in [
        vec!["serve", "--port", "0", "--studies", studies, "--data", data],
        vec!["audit", "--data", data],
        vec!["split", "--data", data],
    ] {
        let output = fewlabel(&arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(
            text.contains("later release") && text.contains("use that release"),
            "{text}"
        );
    }
    let after = std::fs::read(dir.path().join("data/fewlabel.db")).unwrap();
    assert!(before == after, "nothing was changed");
}

#[tokio::test]
async fn an_older_server_keeps_its_schema_while_it_runs() {
    let dir = first_release();
    let lock = std::fs::File::create(dir.path().join("data/server.lock")).unwrap();
    std::fs::write(
        dir.path().join("data/server.lock"),
        r#"{"pid":4711,"host":"ward-3","since_ms":0}"#,
    )
    .unwrap();
    lock.lock().unwrap();
    let before = std::fs::read(dir.path().join("data/fewlabel.db")).unwrap();
    let (studies, data) = (dir.path().join("studies"), dir.path().join("data"));
    let started = Instant::now();
    let output = fewlabel(&[
        "serve",
        "--port",
        "0",
        "--studies",
        studies.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
    ]);
    let took = started.elapsed();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["process 4711", "ward-3", "since 1970-01-01T00:00:00Z"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The promise is one second; a loaded machine gets more.
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(before == std::fs::read(data.join("fewlabel.db")).unwrap());
}

#[tokio::test]
async fn who_did_what_is_exported_and_reads_survive_a_clean_stop() {
    let dir = first_release();
    let (studies, data) = (dir.path().join("studies"), dir.path().join("data"));
    let (studies, data) = (studies.to_str().unwrap(), data.to_str().unwrap());
    let log = dir.path().join("log");
    let server = Process::serve(&log, ["--studies", studies, "--data", data]);
    let image = server.get("/datastore/image?image=case_1").await;
    assert_eq!(image.status, 200);
    for _ in 0..3 {
        let label = server.get("/datastore/label?label=case_1&tag=final").await;
        assert_eq!(label.status, 200);
    }
    server.terminate();
    let lines = printed(&["audit", "--data", data]);
    let rows: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let count = |action: &str| rows.iter().filter(|row| row["action"] == action).count();
    assert_eq!(
        (
            count("submit-label"),
            count("read-image"),
            count("read-label")
        ),
        (4, 1, 3)
    );
    for (number, row) in (1..).zip(&rows) {
        assert_eq!(row["seq"], number);
        assert!(row["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(row["hash"].as_str().unwrap().len(), 64);
    }
    let read = rows
        .iter()
        .find(|row| row["action"] == "read-label")
        .unwrap();
    assert_eq!(read["subject"], "case_1");
    assert_eq!(read["detail"]["revision"], 2);
    let later = printed(&["audit", "--data", data, "--since", "2999-01-01"]);
    assert_eq!(later, "");
    assert_eq!(
        fewlabel(&["audit", "--data", data, "--since", "soon"])
            .status
            .code(),
        Some(2)
    );
}

#[tokio::test]
async fn the_split_is_shown_and_changed_until_an_image_is_used() {
    let dir = first_release();
    let (studies, data) = (dir.path().join("studies"), dir.path().join("data"));
    let (studies, data) = (studies.to_str().unwrap(), data.to_str().unwrap());
    let log = dir.path().join("log");
    let server = Process::serve(&log, ["--studies", studies, "--data", data]);
    let split = |set: &[&str]| {
        let mut arguments = vec!["split", "--data", data, "--json"];
        arguments.extend(set);
        fewlabel(&arguments)
    };
    let shown = |output: &Output| -> Value { serde_json::from_slice(&output.stdout).unwrap() };
    let parts = shown(&split(&[]));
    assert_eq!(parts["split"].as_array().unwrap().len(), 4);
    assert!(
        parts["split"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["part"] != "test")
    );
    let set = split(&["--set", "case_2=test"]);
    assert_eq!(set.status.code(), Some(0));
    let row = shown(&set)["split"][3].clone();
    assert_eq!(
        (&row["image"], &row["part"]),
        (&"case_2".into(), &"test".into())
    );
    assert_eq!(
        (&row["reason"], &row["actor"]),
        (&"command".into(), &"lead".into())
    );
    // case_3 was offered by the first release already.
    let refused = split(&["--set", "case_3=test"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("a next sample"), "{text}");
    assert_eq!(split(&["--set", "case_3=other"]).status.code(), Some(2));
    assert_eq!(split(&["--set", "unknown=test"]).status.code(), Some(1));
    // The label on the test image is not learned from.
    let pairs = server.get("/datastore/?output=train").await.json();
    assert_eq!(pairs.as_array().unwrap().len(), 1);
    let audit = printed(&["audit", "--data", data]);
    assert!(
        audit.lines().last().unwrap().contains("set-split"),
        "{audit}"
    );
}
