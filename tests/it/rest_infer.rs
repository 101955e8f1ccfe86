//! `/infer`: every kind of body, every output, and who waits.

use fewlabel::project::requests::{ImageSource, InferRequest, ResultType};
use fewlabel::project::{Job, JobKind, JobState};
use serde::Deserialize;

use crate::support::{Reply, Setup, TestServer};

async fn last_job(server: &TestServer) -> Job {
    server
        .project
        .jobs()
        .last(JobKind::Infer)
        .await
        .unwrap()
        .unwrap()
}

async fn last_request(server: &TestServer) -> InferRequest {
    InferRequest::deserialize(last_job(server).await.payload).unwrap()
}

/// Splits a two-part answer at its boundary: params, head of the file part, file.
fn parts(reply: &Reply) -> (String, String, Vec<u8>) {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let content_type = reply.header("content-type").unwrap();
    let boundary = content_type
        .strip_prefix("multipart/form-data; boundary=")
        .unwrap();
    assert_eq!(boundary.len(), 32);
    let first = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"params\"\r\n\
         Content-Type: application/json\r\n\r\n"
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let body = reply.body.strip_prefix(first.as_bytes()).unwrap();
    let body = body.strip_suffix(tail.as_bytes()).unwrap();
    let between = format!("\r\n--{boundary}\r\n");
    let at = body
        .windows(between.len())
        .position(|part| part == between.as_bytes())
        .unwrap();
    let params = String::from_utf8(body[..at].to_vec()).unwrap();
    let part = &body[at + between.len()..];
    let end = part
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(part[..end].to_vec()).unwrap();
    (params, head, part[end + 4..].to_vec())
}

#[tokio::test]
async fn the_two_parts_arrive_whole_and_the_file_is_gone() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let params = br#"{"result_extension":".nrrd","result_dtype":"uint8","image":"/etc/passwd","client_id":"a"}"#;
    let reply = server
        .form(
            "POST",
            "/infer/pct-net-s?image=case+02",
            &[("params", "", params.as_slice())],
        )
        .await;
    let (params, head, file) = parts(&reply);
    insta::assert_snapshot!(params, @r#"{"label_names":{"spleen":1,"liver":2},"latencies":{"total":0.0},"centroids":{}}"#);
    let (kind, media_type) = head.split_once("\r\n").unwrap();
    assert!(kind.starts_with("Content-Disposition: form-data; name=\"image\"; filename=\""));
    assert!(kind.ends_with(".nrrd\"") && !kind.contains('/'), "{kind}");
    assert_eq!(media_type, "Content-Type: application/octet-stream");
    assert!(file.starts_with(b"NRRD0004\n"));
    assert_eq!(
        file.len(),
        file.windows(2).position(|two| two == b"\n\n").unwrap() + 2 + 24
    );
    assert!(server.scratch_files().is_empty());
    let request = last_request(&server).await;
    assert!(matches!(request.image, ImageSource::Study { id } if id.as_str() == "case 02"));
    assert_eq!(request.result_dtype, Some(ResultType::Uint8));
}

#[tokio::test]
async fn bodies_of_every_kind() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let path = "/infer/pct-net-s?image=case_01";
    parts(&server.send("POST", path, &[], b"").await);
    assert_eq!(last_request(&server).await.result_extension, ".nii.gz");
    parts(
        &server
            .post_json(path, r#"{"result_extension":".nrrd"}"#)
            .await,
    );
    assert_eq!(last_request(&server).await.result_extension, ".nii.gz");
    let urlencoded = [("Content-Type", "application/x-www-form-urlencoded")];
    let body = b"params=%7B%22result_extension%22%3A%22.nrrd%22%2C%22largest_cc%22%3A%22true%22%7D";
    parts(&server.send("POST", path, &urlencoded, body).await);
    let request = last_request(&server).await;
    assert_eq!(
        (request.result_extension.as_str(), request.largest_cc),
        (".nrrd", true)
    );
    let reply = server
        .form("POST", path, &[("params", "", b"{not json")])
        .await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (400, "bad_params".into())
    );
    let cut = [("Content-Type", "multipart/form-data; boundary=x")];
    let reply = server
        .send("POST", path, &cut, b"--x\r\nContent-Disp")
        .await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (400, "body_cut".into())
    );
}

#[tokio::test]
async fn outputs() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let reply = server
        .send(
            "POST",
            "/infer/pct-net-s?image=case_01&output=json",
            &[],
            b"",
        )
        .await;
    assert_eq!(reply.json()["label_names"]["liver"], 2);
    assert!(server.scratch_files().is_empty());
    let reply = server
        .send(
            "POST",
            "/infer/pct-net-s?image=case_01&output=image",
            &[],
            b"",
        )
        .await;
    assert!(reply.body.starts_with(b"NRRD0004\n"));
    let disposition = reply.header("content-disposition").unwrap();
    assert!(
        disposition.starts_with("attachment; filename=\"") && disposition.ends_with(".nii.gz\"")
    );
    assert!(server.scratch_files().is_empty());
    for params in [
        r#"{"result_extension":".json"}"#,
        r#"{"result_write_to_file":false,"result_extension":".nrrd"}"#,
    ] {
        let params = [("params", "", params.as_bytes())];
        let reply = server
            .form("POST", "/infer/pct-net-s?image=case_01", &params)
            .await;
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    for (params, status) in [
        (r#"{"result_extension":".mha"}"#, 400),
        (r#"{"result_dtype":"complex64"}"#, 400),
        (r#"{"result_dtype":7}"#, 400),
        (r#"{"version":7}"#, 404),
    ] {
        let sent = [("params", "", params.as_bytes())];
        let reply = server
            .form("POST", "/infer/pct-net-s?image=case_01", &sent)
            .await;
        assert_eq!(reply.status, status, "{params}: {}", reply.text());
    }
    for (output, status) in [("dicom_seg", 400), ("other", 422)] {
        let path = format!("/infer/pct-net-s?image=case_01&output={output}");
        assert_eq!(server.send("POST", &path, &[], b"").await.status, status);
    }
}

#[tokio::test]
async fn an_uploaded_file_replaces_the_image() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let image = server.image_bytes();
    let file = [("file", r"C:\Users\a b\scan.nii.gz", image.as_slice())];
    parts(
        &server
            .form("POST", "/infer/pct-net-s?image=case_01", &file)
            .await,
    );
    let ImageSource::File { path } = last_request(&server).await.image else {
        panic!("the image was used");
    };
    assert!(!path.exists(), "the upload is removed after the answer");
}

#[tokio::test]
async fn sessions_and_what_is_missing() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let path = "/infer/pct-net-s?image=case_01&session_id=no-such-session";
    parts(&server.send("POST", path, &[], b"").await);
    let reply = server.send("POST", "/infer/pct-net-s", &[], b"").await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (400, "no_input".into())
    );
    for path in [
        "/infer/pct-net-s?image=none",
        "/infer/none?image=case_01",
        "/infer/a%2Bb?image=case_01",
    ] {
        let reply = server.send("POST", path, &[], b"").await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(reply.json()["detail"].is_string());
    }
    let reply = server
        .send("POST", "/infer/pct-net-s?image=..%2Fx", &[], b"")
        .await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (422, "bad_id".into())
    );
}

#[tokio::test]
async fn a_full_queue_is_told_and_empties() {
    let server = TestServer::with(Setup {
        infer_slots: 1,
        ..Setup::default()
    })
    .await;
    let path = "/infer/pct-net-s?image=case_01";
    let waiting = server.open("POST", path, &[], b"").await;
    while server
        .project
        .jobs()
        .running(JobKind::Infer)
        .await
        .unwrap()
        .is_none()
    {
        tokio::task::yield_now().await;
    }
    let reply = server.send("POST", path, &[], b"").await;
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (429, Some("5"))
    );
    drop(waiting);
    while last_job(&server).await.state != JobState::Stopped {
        tokio::task::yield_now().await;
    }
    let _worker = server.worker();
    parts(&server.send("POST", path, &[], b"").await);
}
