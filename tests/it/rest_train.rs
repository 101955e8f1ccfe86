//! `/train`, `/scoring` and `/batch/infer`: one task object, the same rules.

use fewlabel::project::JobKind;

use crate::support::TestServer;

async fn until_running(server: &TestServer) {
    loop {
        let task = server.get("/train/").await.json();
        if task["status"] == "RUNNING" && task["details"][0] == "epoch 1 done" {
            return;
        }
    }
}

#[tokio::test]
async fn nothing_has_run_yet() {
    let server = TestServer::start().await;
    for (path, found, running) in [
        (
            "/train/",
            "No Train Tasks Found",
            "No Train Tasks are currently Running",
        ),
        (
            "/scoring/",
            "No Scoring Tasks Found",
            "No Scoring Tasks are currently Running",
        ),
        (
            "/batch/infer",
            "No Batch_infer Tasks Found",
            "No Batch_infer Tasks are currently Running",
        ),
    ] {
        for (query, detail) in [
            ("", found),
            ("?all=true", found),
            ("?check_if_running=true", running),
        ] {
            let reply = server.get(&format!("{path}{query}")).await;
            assert_eq!(
                (reply.status, reply.json()["detail"].as_str()),
                (404, Some(detail))
            );
        }
        let reply = server.delete(path).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "null"));
    }
}

#[tokio::test]
async fn a_task_from_start_to_stop() {
    let server = TestServer::start().await;
    let body = r#"{"name":"endless","max_epochs":3,"client_id":"u","model":"other"}"#;
    let reply = server.post_json("/train/pct-net-s", body).await;
    assert_eq!(reply.status, 200);
    insta::assert_json_snapshot!(server.scrub(reply.json()), @r#"
    {
      "id": "(uuid)",
      "status": "SUBMITTED",
      "request": {
        "model": "pct-net-s",
        "name": "endless",
        "max_epochs": 3,
        "client_id": "u"
      },
      "start_ts": "(local time)"
    }
    "#);
    assert_eq!(
        server.get("/train/?check_if_running=true").await.status,
        200
    );
    let reply = server.post_json("/train/pct-net-s", "{}").await;
    assert_eq!(reply.status, 429);
    assert_eq!(
        reply.json()["detail"],
        "++++++++++ Train Task is Already Running"
    );
    let _worker = server.worker();
    until_running(&server).await;
    let reply = server.delete("/train/").await;
    insta::assert_json_snapshot!(server.scrub(reply.json()), @r#"
    {
      "id": "(uuid)",
      "status": "STOPPED",
      "request": {
        "model": "pct-net-s",
        "name": "endless",
        "max_epochs": 3,
        "client_id": "u"
      },
      "start_ts": "(local time)",
      "details": [
        "epoch 1 done",
        "stopped on request"
      ],
      "end_ts": "(local time)"
    }
    "#);
    assert_eq!(
        server.get("/train/?check_if_running=true").await.status,
        404
    );
    assert_eq!(server.get("/train/").await.json()["status"], "STOPPED");
    assert_eq!(
        server
            .get("/train/?all=true")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn a_task_that_never_ran_still_has_a_last_detail() {
    let server = TestServer::start().await;
    server.send("POST", "/train/pct-net-s", &[], b"").await;
    let task = server.delete("/train/").await.json();
    assert_eq!(task["status"], "STOPPED");
    assert!(!task["details"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn synchronous_and_queued() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let reply = server
        .post_json("/train/pct-net-s?run_sync=true", "{}")
        .await;
    assert_eq!(reply.json()["total_time"], "0:00:01");
    let reply = server.post_json("/scoring/dice?run_sync=1", "{}").await;
    assert_eq!(reply.json()["dice"], 1.0);
    let reply = server
        .post_json("/batch/infer/pct-net-s?run_sync=yes&images=unlabeled", "{}")
        .await;
    assert_eq!(reply.json()["case_01"]["tag"], "original");
    let body = r#"{"pct-net-s":{"name":"endless"}}"#;
    let reply = server.post_json("/train/", body).await;
    let task = &reply.json()["pct-net-s"];
    assert_eq!(
        (&task["detail"], &task["result"]["request"]["name"]),
        (&().into(), &"endless".into())
    );
    let reply = server
        .post_json("/train/pct-net-s?enqueue=true", "{}")
        .await;
    assert_eq!(reply.json()["status"], "SUBMITTED");
    assert_eq!(
        server
            .project
            .jobs()
            .list(JobKind::Train)
            .await
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test]
async fn requests_that_cannot_be() {
    let server = TestServer::start().await;
    for (path, body, status) in [
        ("/train/none", "{}", 404),
        ("/scoring/none", "{}", 404),
        ("/batch/infer/none", "{}", 404),
        ("/batch/infer/pct-net-s?images=some", "{}", 422),
        ("/batch/infer/pct-net-s", r#"{"label_tag":"../x"}"#, 422),
        ("/train/pct-net-s", r#"{"max_epochs":"many"}"#, 400),
        ("/train/pct-net-s", r#"{"max_epochs":0}"#, 400),
        ("/train/pct-net-s", r#"{"val_split":1.0}"#, 400),
        ("/train/pct-net-s", r#"{"name":"../x"}"#, 422),
        ("/train/pct-net-s?run_sync=perhaps", "{}", 422),
    ] {
        let reply = server.post_json(path, body).await;
        assert_eq!(reply.status, status, "{path} {body} {}", reply.text());
    }
    assert!(
        server
            .project
            .jobs()
            .list(JobKind::Train)
            .await
            .unwrap()
            .is_empty()
    );
}
