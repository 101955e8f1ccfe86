//! Second readers, and what clients that draw need of the labels.

use serde_json::{Value, json};

use crate::support::{Reply, TestServer};

async fn submit(server: &TestServer, value: u16, author: &str) -> Reply {
    let params = json!({"client_id": author}).to_string();
    let label = server.label_of(value);
    let parts: [(&str, &str, &[u8]); 2] = [
        ("params", "", params.as_bytes()),
        ("label", "l.nii.gz", &label),
    ];
    server
        .form("PUT", "/datastore/label?image=case_01", &parts)
        .await
}

async fn judge(server: &TestServer, revision: i64, verdict: &str, comment: &str) -> Reply {
    let body =
        json!({"revision": revision, "verdict": verdict, "comment": comment, "client_id": "ben"});
    let path = "/reviews/?image=case_01";
    let kind = [("Content-Type", "application/json")];
    server
        .send("PUT", path, &kind, body.to_string().as_bytes())
        .await
}

/// How many labels would be learned from.
async fn learned_from(server: &TestServer) -> usize {
    let pairs = server.get("/datastore/?output=train").await.json();
    pairs.as_array().unwrap().len()
}

async fn cases(server: &TestServer) -> Value {
    server.get("/reviews/").await.json()["cases"].clone()
}

#[tokio::test]
async fn a_label_is_sent_back_submitted_again_and_approved() {
    let server = TestServer::start().await;
    assert_eq!(cases(&server).await, json!([]));
    assert_eq!(judge(&server, 1, "approved", "").await.status, 404);
    assert_eq!(submit(&server, 1, "ann").await.status, 200);
    assert_eq!(
        cases(&server).await,
        json!([{"image": "case_01", "revision": 1, "author": "ann", "ts": 1_700_000_000, "annotated": ["spleen", "liver"], "review": null}])
    );

    let refused = judge(&server, 1, "sent_back", "  ").await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert_eq!(cases(&server).await[0]["review"], Value::Null);
    assert_eq!(judge(&server, 1, "perhaps", "").await.status, 400);

    let judged = judge(&server, 1, "sent_back", "the tip is missing").await;
    assert_eq!(judged.status, 200, "{}", judged.text());
    let review = json!({"verdict": "sent_back", "reviewer": "ben", "comment": "the tip is missing", "ts": 1_700_000_000});
    assert_eq!(judged.json()["review"], review);
    assert_eq!(cases(&server).await[0]["review"], review);
    assert_eq!(
        learned_from(&server).await,
        0,
        "not before it is submitted again"
    );
    // MONAILabelReviewer sees it as its own.
    let info = server
        .get("/datastore/label/info?label=case_01&tag=final")
        .await
        .json();
    let meta = &info["segmentationMeta"];
    assert_eq!(
        (&meta["status"], &meta["approvedBy"]),
        (&json!("flagged"), &json!("ben"))
    );
    for key in ["level", "comment", "editTime"] {
        assert!(meta[key].is_string(), "{key}");
    }

    // Another revision is to be reviewed again, and a verdict on the old one comes too late.
    assert_eq!(submit(&server, 2, "ann").await.status, 200);
    assert_eq!(cases(&server).await[0]["review"], Value::Null);
    assert_eq!(learned_from(&server).await, 1);
    let late = judge(&server, 1, "approved", "").await;
    assert_eq!(late.status, 409, "{}", late.text());
    assert_eq!(judge(&server, 2, "approved", "").await.status, 200);
    assert_eq!(cases(&server).await[0]["review"]["verdict"], "approved");
}

#[tokio::test]
async fn the_reviewers_own_verdict_counts() {
    let server = TestServer::start().await;
    submit(&server, 1, "ann").await;
    let meta = json!({"segmentationMeta": {"status": "approved", "level": "easy", "approvedBy": "cem", "comment": "", "editTime": ""}});
    let meta = meta.to_string();
    let parts: [(&str, &str, &[u8]); 1] = [("params", "", meta.as_bytes())];
    let path = "/datastore/updatelabelinfo?label=case_01&tag=final";
    assert_eq!(server.form("PUT", path, &parts).await.status, 200);
    let review = cases(&server).await[0]["review"].clone();
    assert_eq!(
        (&review["verdict"], &review["reviewer"]),
        (&json!("approved"), &json!("cem"))
    );
}

#[tokio::test]
async fn a_label_comes_in_the_values_of_the_project() {
    let server = TestServer::start().await;
    let schema = server.get("/datastore/schema").await.json();
    assert_eq!(schema["structures"][0]["name"], "spleen");
    assert_eq!(schema["structures"][0]["value"], 1);
    assert_eq!(
        schema["structures"][1]["terminology"]["type"]["meaning"],
        "Liver"
    );
    assert_eq!(
        schema["structures"][1]["color_rgb"]
            .as_array()
            .unwrap()
            .len(),
        3
    );

    let path = "/datastore/label/map?image=case_01";
    assert_eq!(server.get(path).await.status, 404);
    // Sent with the names in the other order: its 2 is the project's 1.
    let params = json!({"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]});
    let (params, label) = (params.to_string(), server.label_of(2));
    let parts: [(&str, &str, &[u8]); 2] = [
        ("params", "", params.as_bytes()),
        ("label", "l.nii.gz", &label),
    ];
    let sent = server
        .form("PUT", "/datastore/label?image=case_01", &parts)
        .await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    let map = server.get(path).await;
    assert_eq!(map.status, 200, "{}", map.text());
    assert_eq!(map.header("etag"), Some("\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("map.nrrd");
    std::fs::write(&file, &map.body).unwrap();
    let read = fewlabel::imaging::read_label(&file, &fewlabel::imaging::Budget::default()).unwrap();
    assert_eq!(read.layers[0][..3], [1, 2, 0]);
    assert_eq!(
        server
            .get("/datastore/label/map?image=case_01&revision=9")
            .await
            .status,
        404
    );
    assert!(
        server.scratch_files().is_empty(),
        "nothing is left of the answer"
    );
}
