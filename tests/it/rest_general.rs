//! What holds for every route: errors, slashes, HEAD, request ids, pages, health, stopping.

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::support::TestServer;

#[tokio::test]
async fn unknown_routes_and_methods() {
    let server = TestServer::start().await;
    let reply = server.get("/no/such/route").await;
    assert_eq!(reply.status, 404);
    insta::assert_json_snapshot!(server.scrub(reply.json()), @r#"
    {
      "detail": "Not Found",
      "code": "no_route",
      "request_id": "(uuid)"
    }
    "#);
    let reply = server.send("PATCH", "/train/", &[], b"").await;
    assert_eq!(reply.status, 405);
    assert_eq!(reply.header("allow"), Some("GET,HEAD,POST,DELETE"));
    insta::assert_json_snapshot!(server.scrub(reply.json()), @r#"
    {
      "detail": "Method Not Allowed",
      "code": "wrong_method",
      "request_id": "(uuid)"
    }
    "#);
}

#[tokio::test]
async fn faults_of_a_request_are_told_as_fastapi_does() {
    let server = TestServer::start().await;
    let reply = server.get("/datastore/?output=everything").await;
    assert_eq!(reply.status, 422);
    insta::assert_json_snapshot!(server.scrub(reply.json()), @r#"
    {
      "detail": [
        {
          "type": "enum",
          "loc": [
            "query",
            "output"
          ],
          "msg": "Input should be 'train', 'stats' or 'all'",
          "input": "everything",
          "ctx": {
            "expected": "'train', 'stats' or 'all'"
          }
        }
      ],
      "code": "invalid_request",
      "request_id": "(uuid)"
    }
    "#);
    let reply = server.get("/datastore/label").await;
    assert_eq!(reply.status, 422);
    insta::assert_json_snapshot!(reply.json()["detail"], @r#"
    [
      {
        "type": "missing",
        "loc": [
          "query",
          "label"
        ],
        "msg": "Field required",
        "input": null
      },
      {
        "type": "missing",
        "loc": [
          "query",
          "tag"
        ],
        "msg": "Field required",
        "input": null
      }
    ]
    "#);
    let reply = server.post_json("/activelearning/random", "[1]").await;
    assert_eq!(reply.status, 422);
    insta::assert_json_snapshot!(reply.json()["detail"], @r#"
    [
      {
        "type": "dict_type",
        "loc": [
          "body"
        ],
        "msg": "Input should be a valid dictionary",
        "input": [
          1
        ]
      }
    ]
    "#);
    let reply = server.post_json("/activelearning/random", "{").await;
    assert_eq!(
        (reply.status, &reply.json()["detail"][0]["type"]),
        (422, &json!("json_invalid"))
    );
}

#[tokio::test]
async fn the_other_slash_is_redirected() {
    let server = TestServer::start().await;
    for (method, path, target) in [
        ("GET", "/info", "/info/"),
        (
            "GET",
            "/datastore?output=all&x=%2B",
            "/datastore/?output=all&x=%2B",
        ),
        (
            "POST",
            "/train/pct-net-s/?run_sync=true",
            "/train/pct-net-s?run_sync=true",
        ),
        ("GET", "/batch/infer/", "/batch/infer"),
        ("PUT", "/session", "/session/"),
    ] {
        let reply = server.send(method, path, &[], b"").await;
        assert_eq!(reply.status, 307, "{path}");
        let location = format!("http://{}{target}", server.address);
        assert_eq!(reply.header("location"), Some(location.as_str()));
        assert!(reply.body.is_empty());
    }
    assert_eq!(server.get("//info/").await.status, 404);
}

#[tokio::test]
async fn request_ids_are_taken_and_returned() {
    let server = TestServer::start().await;
    let sent = [("X-Request-Id", "slicer-7")];
    let reply = server.send("GET", "/model/none", &sent, b"").await;
    assert_eq!(reply.header("x-request-id"), Some("slicer-7"));
    assert_eq!(reply.json()["request_id"], "slicer-7");
    let reply = server
        .send("GET", "/livez", &[("X-Request-Id", "a b")], b"")
        .await;
    assert_eq!(reply.header("x-request-id").map(str::len), Some(36));
}

#[tokio::test]
async fn named_origins_only_and_no_compressed_bodies() {
    let server = TestServer::start().await;
    let other = [("Origin", "https://other.example.org")];
    let reply = server.send("GET", "/info/", &other, b"").await;
    assert_eq!(reply.header("access-control-allow-origin"), None);
    let named = [
        ("Origin", "https://viewer.example.org"),
        ("Access-Control-Request-Method", "PUT"),
    ];
    let reply = server
        .send("OPTIONS", "/datastore/label", &named, b"")
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("access-control-allow-origin"),
        Some(named[0].1)
    );
    assert_eq!(reply.header("access-control-allow-credentials"), None);
    let reply = server.send("POST", "/train/pct-net-s", &other, b"").await;
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (403, &"wrong_origin".into())
    );
    let sent = [
        ("Content-Encoding", "gzip"),
        ("Content-Type", "application/json"),
    ];
    let reply = server
        .send("POST", "/train/pct-net-s", &sent, b"\x1f\x8b")
        .await;
    assert_eq!(reply.status, 415);
}

#[tokio::test]
async fn routes_that_are_absent_on_purpose() {
    let server = TestServer::start().await;
    for (method, path) in [
        ("GET", "/auth/"),
        ("GET", "/ohif/"),
        ("GET", "/ohif/static/app.js"),
        ("GET", "/proxy/dicom/qido/studies"),
        ("POST", "/proxy/dicom/stow/studies"),
        ("POST", "/infer/wsi/pct-net-s"),
    ] {
        let reply = server.send(method, path, &[], b"").await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(reply.json()["detail"].is_string());
    }
    assert_eq!(
        server.get("/ohif/").await.json()["detail"],
        "Resource NOT Found"
    );
    assert_eq!(server.send("POST", "/reload", &[], b"").await.status, 403);
}

#[tokio::test]
async fn pages_load_only_from_here() {
    let server = TestServer::start().await;
    for path in ["/", "/docs", "/logs/"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 200);
        assert_eq!(
            reply.header("content-security-policy"),
            Some("default-src 'self'")
        );
        let page = reply.text();
        assert!(
            !page.contains("http://") && !page.contains("https://"),
            "{page}"
        );
    }
    let icon = server.get("/favicon.ico").await;
    assert_eq!(icon.header("content-type"), Some("image/svg+xml"));
    for asset in ["docs.js", "logs.js", "page.css"] {
        assert_eq!(server.get(&format!("/static/{asset}")).await.status, 200);
    }
    assert_eq!(server.get("/static/../Cargo.toml").await.status, 404);
    assert_eq!(
        server.get("/logs/?text=true").await.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
}

#[tokio::test]
async fn the_description_lists_every_route() {
    let server = TestServer::start().await;
    let api = server.get("/openapi.json").await.json();
    let routes: Vec<String> = api["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, methods)| {
            let methods: Vec<&str> = methods
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            format!("{path} {}", methods.join(" "))
        })
        .collect();
    insta::assert_json_snapshot!(routes, @r#"
    [
      "/activelearning/{strategy} post",
      "/batch/infer get delete",
      "/batch/infer/{model} post",
      "/datastore/ get put delete",
      "/datastore/dataset get",
      "/datastore/image get put delete head",
      "/datastore/image/info get put",
      "/datastore/label get put delete head",
      "/datastore/label/compare get",
      "/datastore/label/confirm put",
      "/datastore/label/current put",
      "/datastore/label/info get put",
      "/datastore/label/map get",
      "/datastore/label/revisions get",
      "/datastore/rescan post",
      "/datastore/schema get",
      "/datastore/updatelabelinfo put",
      "/infer/{model} post",
      "/info/ get",
      "/leases/ get put delete",
      "/livez get",
      "/logs/ get",
      "/logs/gpu get",
      "/metrics get",
      "/model/info/{model} get",
      "/model/{model} get put delete",
      "/models/ get",
      "/models/{model}/keep post",
      "/models/{model}/pin post",
      "/models/{model}/publish post",
      "/models/{model}/rollback post",
      "/models/{model}/unpin post",
      "/readyz get",
      "/reviews/ get put",
      "/rounds/ get",
      "/rounds/settings get put",
      "/rounds/{id} get post delete",
      "/scoring/ get post delete",
      "/scoring/{method} post",
      "/session/ put",
      "/session/{session_id} get delete",
      "/statistics/ get",
      "/train/ get post delete",
      "/train/{model} post"
    ]
    "#);
    for (path, methods) in api["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let answers = &operation["responses"];
            assert!(answers["default"].is_object(), "{method} {path}");
        }
    }
    let form = &api["paths"]["/datastore/label"]["put"]["requestBody"];
    assert_eq!(
        form["content"]["multipart/form-data"]["schema"]["required"],
        json!(["label"])
    );
}

#[tokio::test]
async fn health_names_what_is_missing() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/livez").await.status, 200);
    let reply = server.get("/readyz").await;
    assert_eq!(
        (reply.status, reply.json()),
        (200, json!({ "ready": true, "missing": [] }))
    );
    server.worker_alive.send_replace(false);
    let reply = server.get("/readyz").await;
    let missing = json!({ "ready": false, "missing": ["worker"] });
    assert_eq!((reply.status, reply.json()), (503, missing));
}

#[tokio::test]
async fn a_stopping_server_answers_what_it_has_accepted() {
    let mut server = TestServer::start().await;
    let path = "/infer/pct-net-s?image=case_01&output=json";
    let mut waiting = server.open("POST", path, &[], b"").await;
    let kind = fewlabel::project::JobKind::Infer;
    while server.project.jobs().running(kind).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    let serving = server.stop();
    let _worker = server.worker();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(serving.await.unwrap());
    assert!(
        tokio::net::TcpStream::connect(server.address)
            .await
            .is_err()
    );
}
