//! `/activelearning`: the next sample.

use serde_json::json;

use crate::support::TestServer;

#[tokio::test]
async fn first_and_again() {
    let server = TestServer::start().await;
    let reply = server
        .post_json("/activelearning/first", r#"{"client_id":"anna"}"#)
        .await;
    insta::assert_json_snapshot!(server.scrub(reply.json()), @r#"
    {
      "id": "case 02",
      "path": "(root)/studies/case 02.nii.gz",
      "ts": "(seconds)",
      "name": "case 02.nii.gz",
      "checksum": "SHA256:(hash)"
    }
    "#);
    let again = server
        .send("POST", "/activelearning/first", &[], b"")
        .await
        .json();
    assert_eq!(again["strategy"]["first"]["client_id"], "anna");
    assert_eq!(
        server.post_json("/activelearning/none", "{}").await.status,
        404
    );
}

#[tokio::test]
async fn nothing_left() {
    let server = TestServer::start().await;
    for image in ["case_01", "case+02", "case.03"] {
        let label = server.label_bytes();
        let path = format!("/datastore/label?image={image}");
        let reply = server
            .form("PUT", &path, &[("label", "l.nii.gz", label.as_slice())])
            .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    for strategy in ["random", "first", "last", "auto", "entropy"] {
        let reply = server
            .post_json(&format!("/activelearning/{strategy}"), "{}")
            .await;
        assert_eq!((reply.status, reply.json()), (200, json!({})));
    }
}
