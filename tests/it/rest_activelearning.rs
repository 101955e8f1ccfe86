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
      "checksum": "SHA256:(hash)",
      "lease": {
        "image": "case 02",
        "client_id": "anna",
        "strategy": "first",
        "taken_ts": 1700000000,
        "expires_ts": 1700014400,
        "expires_in_s": 14400.0,
        "again": false
      }
    }
    "#);
    let again = server
        .post_json("/activelearning/first", r#"{"client_id":"anna"}"#)
        .await
        .json();
    assert_eq!(again["strategy"]["first"]["client_id"], "anna");
    assert_eq!(
        (&again["id"], &again["lease"]["again"]),
        (&json!("case 02"), &json!(true))
    );
    // A client without a name gets what nobody has, and no lease.
    let other = server
        .send("POST", "/activelearning/first", &[], b"")
        .await
        .json();
    assert_eq!(
        (&other["id"], &other["lease"]),
        (&json!("case.03"), &json!(null))
    );
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
