//! `/rounds`, `/models`, `/leases`, `/statistics`: shapes and refusals, with a worker that does not compute.

use serde_json::{Value, json};

use crate::support::TestServer;

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test]
async fn a_round_from_start_to_stop() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/rounds/").await.json()["rounds"], json!([]));
    let body = r#"{"name":"endless","seed":5,"client_id":"ann"}"#;
    let reply = server.post_json("/rounds/pct-net-s", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    insta::assert_json_snapshot!(server.scrub(reply.json()), @r#"
    {
      "round": 1,
      "job_id": "(uuid)",
      "model": "pct-net-s",
      "name": "endless",
      "state": "queued",
      "cause": "request",
      "actor": "ann",
      "created_ts": 1700000000,
      "started_ts": null,
      "finished_ts": null,
      "reason": null,
      "version": null,
      "seed": 5,
      "progress": null,
      "start_version": null,
      "start": null,
      "steps": null,
      "training_images": null,
      "validation_images": null,
      "label_sha256": null,
      "live_version": null,
      "comparison": null
    }
    "#);
    assert_eq!(
        server.post_json("/rounds/pct-net-s", "{}").await.status,
        429
    );
    let _worker = server.worker();
    let running = loop {
        let round = server.get("/rounds/1").await.json();
        if round["progress"].is_object() {
            break round;
        }
    };
    assert_eq!(running["state"], "running");
    assert_eq!(
        keys(&running["progress"]),
        ["stage", "step", "steps", "loss", "rate_hz", "eta_s"]
    );
    let stopped = server.delete("/rounds/1?client_id=ann").await.json();
    assert_eq!(
        (&stopped["state"], &stopped["reason"], &stopped["progress"]),
        (
            &json!("stopped"),
            &json!("stopped on request"),
            &Value::Null
        )
    );
    assert_eq!(server.delete("/rounds/1").await.json()["state"], "stopped");
    // The button of MONAI Label's clients starts a round like any other.
    server.post_json("/train/pct-net-s", "{}").await;
    let rounds = server.get("/rounds/?limit=1").await.json()["rounds"].clone();
    assert_eq!(
        (rounds.as_array().unwrap().len(), &rounds[0]["round"]),
        (1, &json!(2))
    );
}

#[tokio::test]
async fn settings_are_changed_by_key() {
    let server = TestServer::start().await;
    let before = server.get("/rounds/settings").await.json();
    insta::assert_json_snapshot!(before, @r#"
    {
      "after_labels": null,
      "daily_at": null,
      "max_epochs": 50,
      "steps": null,
      "warm_start": false,
      "epsilon": 0.05,
      "epsilon_mean": 0.01,
      "epsilon_of": {},
      "lease_s": 14400,
      "ahead": 2
    }
    "#);
    let put = async |body: &str| {
        let headers = [("Content-Type", "application/json")];
        server
            .send("PUT", "/rounds/settings", &headers, body.as_bytes())
            .await
    };
    let changed =
        put(r#"{"after_labels": 4, "epsilon_of": {"liver": 0.1}, "client_id": "lead"}"#).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    let now = server.get("/rounds/").await.json()["settings"].clone();
    assert_eq!(
        (&now["after_labels"], &now["epsilon_of"]["liver"]),
        (&json!(4), &json!(0.1))
    );
    for refused in [
        r#"{"epsilon": 7}"#,
        r#"{"daily_at": "late"}"#,
        r#"{"epsilons": 0.1}"#,
    ] {
        let reply = put(refused).await;
        assert_eq!(
            (reply.status, reply.json()["code"].as_str()),
            (422, Some("refused")),
            "{refused}"
        );
    }
    assert_eq!(server.get("/rounds/settings").await.json(), now);
}

#[tokio::test]
async fn versions_are_listed_pinned_and_rolled_back() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let models = server.get("/models/").await.json();
    insta::assert_json_snapshot!(server.scrub(models), @r#"
    {
      "models": [
        {
          "name": "pct-net-s",
          "live_version": 1,
          "pinned": false,
          "rollback_version": null,
          "versions": [
            {
              "version": 1,
              "state": "published",
              "live": true,
              "reason": "the first version",
              "trained": false,
              "created_ts": 1700000000,
              "sha256": "(hash)",
              "weights_sha256": "(hash)",
              "parent": null,
              "round": null,
              "metrics": null,
              "lineage": {
                "origin": "import"
              }
            }
          ]
        }
      ]
    }
    "#);
    let mut weights = server.get("/model/pct-net-s").await.body;
    *weights.last_mut().unwrap() ^= 1;
    let file = [("file", "other.safetensors", weights.as_slice())];
    assert_eq!(
        server.form("PUT", "/model/pct-net-s", &file).await.status,
        200
    );
    let post = async |path: &str| server.post_json(path, r#"{"client_id": "lead"}"#).await;
    let about = async |path: &str| {
        let model = post(path).await.json();
        let live = model["live_version"].as_i64().unwrap();
        (
            live,
            model["pinned"].as_bool().unwrap(),
            model["rollback_version"].as_i64(),
        )
    };
    assert_eq!(about("/models/pct-net-s/pin").await, (2, true, Some(1)));
    assert_eq!(about("/models/pct-net-s/unpin").await, (2, false, Some(1)));
    assert_eq!(about("/models/pct-net-s/rollback").await, (1, false, None));
    let code = |reply: crate::support::Reply| (reply.status, reply.json()["code"].clone());
    assert_eq!(
        code(post("/models/pct-net-s/rollback").await),
        (409, json!("conflict"))
    );
    assert_eq!(
        code(post("/models/pct-net-s/keep?version=1").await),
        (409, json!("conflict"))
    );
    assert_eq!(
        about("/models/pct-net-s/pin?version=2").await,
        (2, true, Some(1))
    );
    assert_eq!(
        about("/models/pct-net-s/publish?version=1").await,
        (1, false, Some(2))
    );
    let kept = post("/models/pct-net-s/keep?version=2").await.json();
    assert_eq!(kept["versions"][0]["state"], "kept");
    for (path, status) in [
        ("/models/none/pin", 404),
        ("/models/none/rollback", 404),
        ("/models/pct-net-s/publish", 422),
        ("/models/pct-net-s/publish?version=9", 404),
        ("/models/pct-net-s/keep?version=9", 404),
        ("/models/pct-net-s/publish?version=two", 422),
    ] {
        assert_eq!(post(path).await.status, status, "{path}");
    }
    // What the options of Slicer's plugin offer, the live one first.
    let config = server.get("/info/").await.json()["models"]["pct-net-s"]["config"].clone();
    assert_eq!(config["version"], json!(["live (1)", "2 (kept)"]));
    for (chosen, status) in [("live (1)", 200), ("2 (kept)", 200), ("9", 404)] {
        let params = json!({"version": chosen, "result_extension": ".json"}).to_string();
        let parts = [("params", "", params.as_bytes())];
        let path = "/infer/pct-net-s?image=case_01&output=json";
        assert_eq!(
            server.form("POST", path, &parts).await.status,
            status,
            "{chosen}"
        );
    }
}

#[tokio::test]
async fn a_version_that_does_not_answer_is_not_published() {
    let server = TestServer::start().await;
    let mut weights = server.get("/model/pct-net-s").await.body;
    *weights.last_mut().unwrap() ^= 1;
    let file = [("file", "other.safetensors", weights.as_slice())];
    let jobs = server.project.jobs();
    let fail = async {
        loop {
            let infer = [fewlabel::project::JobKind::Infer];
            if let Some(claimed) = jobs.claim("w", &infer, 60).await.unwrap() {
                let reason = fewlabel::project::Finish::Error("the weights do not fit".to_owned());
                return jobs.finish(&claimed, reason).await.unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let (reply, ()) = tokio::join!(server.form("PUT", "/model/pct-net-s", &file), fail);
    assert_eq!(
        (reply.status, reply.json()["code"].as_str()),
        (503, Some("warm_up_failed"))
    );
    let model = server.get("/models/").await.json()["models"][0].clone();
    assert_eq!(
        (&model["live_version"], &model["versions"][0]["state"]),
        (&json!(1), &json!("candidate"))
    );
    // Who has to get on without a worker says so.
    let forced = r#"{"force": true}"#;
    let reply = server
        .post_json("/models/pct-net-s/publish?version=2", forced)
        .await;
    assert_eq!(reply.json()["live_version"], 2, "{}", reply.text());
}

#[tokio::test]
async fn sixteen_annotators_at_once_get_what_there_is_once() {
    let server = TestServer::start().await;
    let asking = (0..16).map(|n| {
        let http = *server;
        tokio::spawn(async move {
            let body = json!({"client_id": format!("annotator {n}")}).to_string();
            http.post_json("/activelearning/random", &body).await.json()
        })
    });
    let mut images = Vec::new();
    for answer in asking.collect::<Vec<_>>() {
        let answer = answer.await.unwrap();
        match answer["id"].as_str() {
            Some(id) => images.push(id.to_owned()),
            None => assert_eq!(answer, json!({"leased": 3})),
        }
    }
    images.sort();
    assert_eq!(images, ["case 02", "case.03", "case_01"]);
    let leases = server.get("/leases/").await.json();
    assert_eq!(
        (
            leases["leases"].as_array().unwrap().len(),
            &leases["lease_s"]
        ),
        (3, &json!(14400))
    );
}

#[tokio::test]
async fn a_lease_is_renewed_and_given_back() {
    let server = TestServer::start().await;
    let next = async |client: &str| {
        let body = json!({"client_id": client}).to_string();
        server
            .post_json("/activelearning/first", &body)
            .await
            .json()
    };
    let first = next("ann").await;
    insta::assert_json_snapshot!(first["lease"], @r#"
    {
      "image": "case 02",
      "client_id": "ann",
      "strategy": "first",
      "taken_ts": 1700000000,
      "expires_ts": 1700014400,
      "expires_in_s": 14400.0,
      "again": false
    }
    "#);
    assert_eq!(next("ann").await["lease"]["again"], true);
    let query = "/leases/?image=case%2002&client_id=";
    let renewed = server.send("PUT", &format!("{query}ann"), &[], b"").await;
    assert_eq!(renewed.json()["expires_in_s"], 14400.0);
    let code = |reply: crate::support::Reply| (reply.status, reply.json()["code"].clone());
    let others = server.send("PUT", &format!("{query}bob"), &[], b"").await;
    assert_eq!(code(others), (409, json!("conflict")));
    assert_eq!(
        code(server.delete(&format!("{query}bob")).await),
        (409, json!("conflict"))
    );
    assert_eq!(server.delete("/leases/?image=case%2002").await.status, 422);
    assert_eq!(server.delete(&format!("{query}ann")).await.status, 200);
    assert_eq!(
        code(server.delete(&format!("{query}ann")).await),
        (404, json!("not_found"))
    );
    assert_eq!(next("bob").await["id"], "case 02");
    let label = server.label_bytes();
    let parts = [("label", "l.nii.gz", label.as_slice())];
    let path = "/datastore/label?image=case+02";
    assert_eq!(server.form("PUT", path, &parts).await.status, 200);
    assert_eq!(server.get("/leases/").await.json()["leases"], json!([]));
}

#[tokio::test]
async fn statistics_count_images_annotators_and_structures() {
    let server = TestServer::start().await;
    let label = server.label_bytes();
    let params = br#"{"client_id": "ann", "seconds_open": 90}"#;
    let parts = [
        ("params", "", params.as_slice()),
        ("label", "l.nii.gz", label.as_slice()),
    ];
    let path = "/datastore/label?image=case_01";
    assert_eq!(server.form("PUT", path, &parts).await.status, 200);
    server
        .post_json("/activelearning/first", r#"{"client_id":"bob"}"#)
        .await;
    let found = server.get("/statistics/").await.json();
    let images = &found["images"];
    assert_eq!(
        (&images["total"], &images["labelled"], &images["leased"]),
        (&json!(3), &json!(1), &json!(1))
    );
    let parts = images["parts"].as_object().unwrap();
    assert_eq!(keys(&images["parts"]), ["train", "validation", "test"]);
    let sum = |key: &str| {
        parts
            .values()
            .map(|part| part[key].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((sum("total"), sum("labelled")), (3, 1));
    let ann = json!({
        "author": "ann", "images": 1, "revisions": 1, "seconds_median": 90.0, "last_ts": 1_700_000_000,
    });
    assert_eq!(found["annotators"], json!([ann]));
    let structures = found["structures"].as_array().unwrap();
    let names: Vec<_> = structures
        .iter()
        .map(|structure| &structure["name"])
        .collect();
    assert_eq!(names, ["spleen", "liver"]);
    let new_labels = async || server.get("/rounds/").await.json()["new_labels"].clone();
    assert_eq!(new_labels().await, 1);
    server.post_json("/rounds/pct-net-s", "{}").await;
    assert_eq!(new_labels().await, 0, "counted from the start of a round");
}
