//! `/session`: create, look, use, end.

use crate::support::TestServer;

#[tokio::test]
async fn from_creation_to_end() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let image = server.image_bytes();
    let parts = [
        ("client_id", "", b"anna".as_slice()),
        ("files", "scan.nii.gz", image.as_slice()),
    ];
    let created = server.form("PUT", "/session/", &parts).await.json();
    let id = created["session_id"].as_str().unwrap();
    let info = &created["session_info"];
    let keys: Vec<_> = info.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "name",
            "path",
            "image",
            "meta",
            "create_ts",
            "last_access_ts",
            "expiry"
        ]
    );
    assert_eq!(
        (&info["expiry"], &info["meta"]),
        (&3600.into(), &serde_json::json!({}))
    );
    let path = format!("/session/{id}");
    assert_eq!(server.get(&path).await.json()["image"], info["image"]);
    let file = server.get(&format!("{path}?image=true")).await;
    assert_eq!(
        file.header("content-disposition"),
        Some("attachment; filename=\"scan.nii.gz\"")
    );
    assert_eq!(file.body, image);
    let infer = format!("/infer/pct-net-s?session_id={id}&output=json");
    assert_eq!(server.send("POST", &infer, &[], b"").await.status, 200);
    assert_eq!(server.delete(&path).await.status, 200);
    let reply = server.get(&path).await;
    let detail = format!("Session ({id}) Not Found");
    assert_eq!(
        (reply.status, reply.json()["detail"].as_str()),
        (404, Some(detail.as_str()))
    );
    assert_eq!(
        server.delete(&path).await.json()["detail"],
        "Session Not Found"
    );
}

#[tokio::test]
async fn what_is_refused() {
    let server = TestServer::start().await;
    let parts = [("client_id", "", b"anna".as_slice())];
    assert_eq!(server.form("PUT", "/session/", &parts).await.status, 422);
    let image = server.image_bytes();
    let parts = [("files", "archive.zip", image.as_slice())];
    let reply = server
        .form("PUT", "/session/?uncompress=true", &parts)
        .await;
    assert_eq!(
        (
            reply.status,
            reply.json()["detail"].to_string().contains("zip file")
        ),
        (422, true)
    );
    for id in ["..%2F..%2Fdata", "no-such-session"] {
        assert_eq!(server.get(&format!("/session/{id}")).await.status, 404);
    }
}

#[tokio::test]
async fn several_files_and_the_end_by_time() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let image = server.image_bytes();
    let parts = [
        ("files", "/home/me/a.dcm", image.as_slice()),
        ("files", "/home/me/b.dcm", image.as_slice()),
    ];
    let created = server
        .form("PUT", "/session/?expiry=100", &parts)
        .await
        .json();
    let id = created["session_id"].as_str().unwrap();
    let info = &created["session_info"];
    assert_eq!(
        (&info["expiry"], &info["image"]),
        (&100.into(), &info["path"])
    );
    let path = format!("/session/{id}");
    // A look is no use; it is one when it says so, and an inference is.
    server.clock.advance_ms(60_000);
    let touched = server.get(&format!("{path}?update_ts=true")).await.json();
    let age = touched["last_access_ts"].as_i64().unwrap() - touched["create_ts"].as_i64().unwrap();
    assert_eq!(age, 60);
    server.clock.advance_ms(60_000);
    let infer = format!("/infer/pct-net-s?session_id={id}&output=json");
    assert_eq!(server.send("POST", &infer, &[], b"").await.status, 200);
    server.clock.advance_ms(60_000);
    assert_eq!(server.get(&path).await.status, 200);
    server.clock.advance_ms(60_000);
    assert_eq!(server.get(&path).await.status, 404);
    // Its image is not used any more either.
    assert_eq!(server.send("POST", &infer, &[], b"").await.status, 400);
}
