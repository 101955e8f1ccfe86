//! Clients that take too much or too long, and what a server does not offer.

use std::time::Duration;

use fewlabel::project::{JobKind, JobState};
use fewlabel::rest::Offers;
use fewlabel::rest::serve::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Setup, TestServer, multipart};

/// Short enough to be waited for, long enough for a busy machine to send a request in.
const SOON: Duration = Duration::from_millis(500);

async fn impatient() -> TestServer {
    TestServer::with(Setup {
        limits: Limits {
            head: SOON,
            idle: SOON,
            ..Limits::default()
        },
        ..Setup::default()
    })
    .await
}

/// What comes until the server closes the connection.
async fn rest_of(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A connection may also be reset, which ends it as well.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn connections_without_a_request_are_closed() {
    let server = impatient().await;
    for begin in ["", "GET /info/ HTTP/1.1\r\nHo"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let answer = rest_of(stream).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    // Also a kept one, after its first request.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = rest_of(stream).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn bodies_that_stop_are_let_go() {
    let server = impatient().await;
    let (kind, form) = multipart(&[("label", "a.nii.gz", server.label_bytes().as_slice())]);
    for (head, begin) in [
        (
            format!("PUT /datastore/label?image=case_01 HTTP/1.1\r\nContent-Type: {kind}"),
            &form[..form.len() / 2],
        ),
        (
            "POST /train/pct-net-s HTTP/1.1\r\nContent-Type: application/json".to_owned(),
            b"{\"max_".as_slice(),
        ),
        (
            "POST /infer/pct-net-s?image=case_01 HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded".to_owned(),
            b"params=".as_slice(),
        ),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("{head}\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let answer = rest_of(stream).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("upload_idle"), "{answer}");
    }
    assert_eq!(server.get("/datastore/").await.json()["completed"], 0);
    let jobs = server.project.jobs();
    assert_eq!(jobs.last(JobKind::Train).await.unwrap(), None);
}

#[tokio::test]
async fn more_connections_wait_until_one_ends() {
    let server = TestServer::with(Setup {
        limits: Limits {
            connections: 1,
            ..Limits::default()
        },
        ..Setup::default()
    })
    .await;
    let held = TcpStream::connect(server.address).await.unwrap();
    let next = server.open("GET", "/livez", &[], b"").await;
    drop(held);
    assert!(rest_of(next).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn bodies_are_as_long_as_their_route_needs() {
    let server = TestServer::start().await;
    let long = vec![b' '; (1 << 20) + 1];
    let json = [("Content-Type", "application/json")];
    let text = [("Content-Type", "application/x-www-form-urlencoded")];
    for (method, path, headers) in [
        ("POST", "/train/pct-net-s", &json),
        ("POST", "/activelearning/first", &json),
        (
            "PUT",
            "/datastore/label/info?label=case_01&tag=final",
            &text,
        ),
        ("POST", "/infer/pct-net-s?image=case_01", &text),
    ] {
        let reply = server.send(method, path, headers, &long).await;
        assert_eq!(
            (reply.status, &reply.json()["code"]),
            (413, &"too_large".into()),
            "{path}"
        );
    }
    // A form without files is no longer than a text, even where it carries one.
    let (kind, form) = multipart(&[("file", "x.nii", long.as_slice())]);
    let path = "/datastore/image/info?image=case_01";
    let reply = server
        .send("PUT", path, &[("Content-Type", &kind)], &form)
        .await;
    assert_eq!(reply.status, 413);
    // An upload that announces more than may be is refused before it is sent.
    let (kind, _) = multipart(&[]);
    let head = format!(
        "PUT /datastore/image HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        1u64 << 40
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(rest_of(stream).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn an_inference_ends_with_its_client() {
    let server = TestServer::start().await;
    let waiting = server
        .open("POST", "/infer/pct-net-s?image=case_01", &[], b"")
        .await;
    let jobs = server.project.jobs();
    let job = loop {
        match jobs.running(JobKind::Infer).await.unwrap() {
            Some(job) => break job,
            None => tokio::task::yield_now().await,
        }
    };
    // The worker has begun.
    let claimed = jobs
        .claim("a", &[JobKind::Infer], 60)
        .await
        .unwrap()
        .unwrap();
    drop(waiting);
    while jobs.get(job.id).await.unwrap().unwrap().state != JobState::Stopped {
        tokio::task::yield_now().await;
    }
    assert!(
        jobs.heartbeat(&claimed, None, &[]).await.unwrap().cancel,
        "the worker hears it at its next heartbeat"
    );
    let metrics = server.get("/metrics").await.text();
    assert!(
        metrics.contains("route=\"/infer/{model}\",status=\"499\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn what_is_switched_off_is_absent() {
    let server = TestServer::with(Setup {
        offers: Offers {
            sessions: false,
            train: false,
            strategies: false,
            scoring: false,
            batch_infer: false,
            ..Offers::default()
        },
        ..Setup::default()
    })
    .await;
    let info = server.get("/info/").await.json();
    for part in ["trainers", "strategies", "scoring", "train_stats"] {
        assert_eq!(info[part], serde_json::json!({}), "{part}");
    }
    assert!(info["models"]["pct-net-s"].is_object());
    for path in [
        "/train/pct-net-s",
        "/train/",
        "/activelearning/first",
        "/scoring/dice",
        "/scoring/",
        "/batch/infer/pct-net-s",
    ] {
        let reply = server.post_json(path, "{}").await;
        assert_eq!(
            (reply.status, &reply.json()["code"]),
            (404, &"not_offered".into()),
            "{path}"
        );
    }
    for (method, path) in [
        ("PUT", "/session/"),
        ("GET", "/session/a"),
        ("DELETE", "/session/a"),
    ] {
        let reply = server.send(method, path, &[], b"").await;
        assert_eq!(reply.status, 406);
        assert_eq!(reply.json()["detail"], "Session Feature is Not Enabled");
    }
}

#[tokio::test]
async fn the_protocol_may_have_a_prefix() {
    let server = TestServer::with(Setup {
        prefix: "/monai",
        ..Setup::default()
    })
    .await;
    assert_eq!(server.get("/monai/info/").await.status, 200);
    assert_eq!(server.get("/info/").await.status, 404);
    assert_eq!(server.get("/monai/auth/").await.json()["code"], "auth_off");
    let reply = server.get("/monai/datastore?output=all").await;
    let location = format!("http://{}/monai/datastore/?output=all", server.address);
    assert_eq!(
        (reply.status, reply.header("location")),
        (307, Some(location.as_str()))
    );
    let reply = server.send("PATCH", "/monai/train/", &[], b"").await;
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (405, &"wrong_method".into())
    );
    assert_eq!(
        server.get("/monai/model/none").await.json()["code"],
        "no_model"
    );
    for path in ["/", "/livez", "/readyz", "/metrics"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let api = server.get("/openapi.json").await.json();
    let answer = &api["paths"]["/monai/info/"]["get"]["responses"]["200"];
    let shape = &answer["content"]["application/json"]["schema"]["$ref"];
    assert_eq!(shape, "#/components/schemas/Info");
}
