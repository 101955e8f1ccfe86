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
