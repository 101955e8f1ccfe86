//! `/datastore`: images and labels in and out.

use serde_json::json;

use crate::support::TestServer;

const PARAMS: &[u8] =
    br#"{"label_info":[{"name":"spleen","idx":1},{"name":"liver","idx":2}],"client_id":"anna"}"#;

async fn submit(
    server: &TestServer,
    query: &str,
    headers: &[(&str, &str)],
) -> crate::support::Reply {
    let label = server.label_bytes();
    let parts = [
        ("params", "", PARAMS),
        ("label", "/tmp/x y/spleen.nii.gz", label.as_slice()),
    ];
    let (content_type, body) = crate::support::multipart(&parts);
    let mut all = vec![("Content-Type", content_type.as_str())];
    all.extend(headers);
    server
        .send("PUT", &format!("/datastore/label?{query}"), &all, &body)
        .await
}

#[tokio::test]
async fn stats_and_document() {
    let server = TestServer::start().await;
    assert_eq!(
        server.get("/datastore/").await.text(),
        r#"{"total":3,"completed":0,"label_tags":{}}"#
    );
    for tag in ["", "&tag=version_10", "&tag=version_2"] {
        let reply = submit(&server, &format!("image=case_01{tag}"), &[]).await;
        assert_eq!(reply.text(), r#"{"image":"case_01","label":"case_01"}"#);
    }
    let stats = server.get("/datastore/?output=stats").await.json();
    assert_eq!(
        (&stats["total"], &stats["completed"]),
        (&json!(3), &json!(1))
    );
    let all = server.get("/datastore/?output=all").await.json();
    let objects = all["objects"].as_object().unwrap();
    assert_eq!(objects.len(), 3);
    let tags: Vec<_> = objects["case_01"]["labels"]
        .as_object()
        .unwrap()
        .keys()
        .collect();
    assert_eq!(
        tags,
        ["final", "version_10", "version_2"],
        "the Reviewer takes the last as newest"
    );
    insta::assert_json_snapshot!(server.scrub(all["objects"]["case_01"]["labels"]["final"].clone()), @r#"
    {
      "ext": ".nii.gz",
      "info": {
        "label_info": [
          {
            "name": "spleen",
            "idx": 1
          },
          {
            "name": "liver",
            "idx": 2
          }
        ],
        "client_id": "anna",
        "ts": 1700000000,
        "name": "case_01.nii.gz"
      }
    }
    "#);
    insta::assert_json_snapshot!(server.scrub(all["objects"]["case 02"].clone()), @r#"
    {
      "image": {
        "ext": ".nii.gz",
        "info": {
          "ts": "(seconds)",
          "name": "case 02.nii.gz"
        }
      },
      "labels": {}
    }
    "#);
    let keys: Vec<_> = all.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        ["name", "description", "images_dir", "labels_dir", "objects"]
    );
    let train = server.get("/datastore/?output=train").await.json();
    assert_eq!(train.as_array().unwrap().len(), 1);
    for key in ["image", "label"] {
        assert!(std::path::Path::new(train[0][key].as_str().unwrap()).is_file());
    }
}

#[tokio::test]
async fn images_out() {
    let server = TestServer::start().await;
    let reply = server.get("/datastore/image?image=case%2002").await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("content-type"),
        Some("application/octet-stream")
    );
    let name = "attachment; filename*=utf-8''case%2002.nii.gz";
    assert_eq!(reply.header("content-disposition"), Some(name));
    assert!(reply.header("etag").is_some() && reply.header("last-modified").is_some());
    assert_eq!(
        reply.body,
        std::fs::read(server.project.studies().join("case 02.nii.gz")).unwrap()
    );
    let reply = server.get("/datastore/image?image=none").await;
    assert_eq!(reply.json()["detail"], "Image NOT Found or is a directory");
    let sample = server.post_json("/activelearning/first", "{}").await.json();
    let (id, checksum) = (
        sample["id"].as_str().unwrap(),
        sample["checksum"].as_str().unwrap(),
    );
    let id = id.replace(' ', "+");
    for (query, status) in [
        (format!("image={id}"), 200),
        (format!("image={id}&check_sum={checksum}"), 200),
        (format!("image={id}&check_sum=SHA256:00"), 404),
        ("image=none".to_owned(), 404),
    ] {
        let reply = server
            .send("HEAD", &format!("/datastore/image?{query}"), &[], b"")
            .await;
        assert_eq!((reply.status, reply.body.len()), (status, 0), "{query}");
    }
    let info = server
        .get("/datastore/image/info?image=case_01")
        .await
        .json();
    assert_eq!(info["name"], "case_01.nii.gz");
    assert!(info["path"].as_str().unwrap().ends_with("case_01.nii.gz"));
    assert_eq!(
        server.get("/datastore/image/info?image=none").await.text(),
        "{}"
    );
}

#[tokio::test]
async fn images_in() {
    let server = TestServer::start().await;
    let image = server.image_bytes();
    let file = ("file", r"C:\scans\New.Case.nii.gz", image.as_slice());
    let params = ("params", "", br#"{"client_id":"anna"}"#.as_slice());
    let reply = server
        .form("PUT", "/datastore/?image=node+1%3A+CT", &[params, file])
        .await;
    assert_eq!(reply.text(), r#"{"image":"node 1: CT"}"#);
    let reply = server.form("PUT", "/datastore/image", &[file]).await;
    assert_eq!(reply.text(), r#"{"image":"New.Case"}"#);
    assert_eq!(
        server.get("/datastore/image?image=New.Case").await.body,
        image
    );
    let info = server
        .get("/datastore/image/info?image=node+1:+CT")
        .await
        .json();
    assert_eq!(
        (&info["client_id"], &info["user"]),
        (&json!("anna"), &json!("admin"))
    );
    let reply = server.form("PUT", "/datastore/image", &[params]).await;
    assert_eq!(reply.status, 422);
    insta::assert_json_snapshot!(reply.json()["detail"], @r#"
    [
      {
        "type": "missing",
        "loc": [
          "body",
          "file"
        ],
        "msg": "Field required",
        "input": null
      }
    ]
    "#);
    let file = ("file", "x.nii.gz", b"not an image".as_slice());
    assert_eq!(
        server
            .form("PUT", "/datastore/image?image=x", &[file])
            .await
            .status,
        422
    );
    assert_eq!(server.get("/datastore/image?image=x").await.status, 404);
    assert_eq!(
        server.delete("/datastore/image?id=New.Case").await.text(),
        "{}"
    );
    assert_eq!(server.delete("/datastore/?id=New.Case").await.status, 404);
    assert_eq!(
        server.get("/datastore/image?image=New.Case").await.status,
        404
    );
}

#[tokio::test]
async fn labels_in_and_out() {
    let server = TestServer::start().await;
    assert_eq!(submit(&server, "image=none", &[]).await.status, 404);
    assert_eq!(submit(&server, "image=case.03", &[]).await.status, 200);
    let reply = server.get("/datastore/label?label=case.03&tag=final").await;
    assert_eq!(reply.body, server.label_bytes());
    let name = "attachment; filename=\"case.03.nii.gz\"";
    assert_eq!(reply.header("content-disposition"), Some(name));
    assert_eq!(
        server
            .get("/datastore/label?label=case.03&tag=")
            .await
            .status,
        200
    );
    for (query, status) in [("image=case.03", 200), ("image=case.03&tag=other", 404)] {
        let reply = server
            .send("HEAD", &format!("/datastore/label?{query}"), &[], b"")
            .await;
        assert_eq!(reply.status, status);
    }
    let info = "/datastore/label/info?label=case.03&tag=final";
    assert_eq!(server.get(info).await.json()["client_id"], "anna");
    let body = b"params=%7B%22segmentationMeta%22%3A%7B%22status%22%3A%22approved%22%7D%7D";
    let urlencoded = [("Content-Type", "application/x-www-form-urlencoded")];
    let path = "/datastore/updatelabelinfo?label=case.03&tag=final";
    assert_eq!(
        server.send("PUT", path, &urlencoded, body).await.text(),
        "null"
    );
    let about = server.get(info).await.json();
    assert_eq!(about["segmentationMeta"]["status"], "approved");
    assert_eq!(
        (&about["client_id"], &about["user"]),
        (&json!("anna"), &json!("admin"))
    );
    for _ in 0..2 {
        let reply = server.delete("/datastore/label?id=case.03&tag=final").await;
        assert_eq!(reply.text(), "{}");
    }
    assert_eq!(server.get(info).await.text(), "{}");
    let reply = server.get("/datastore/label?label=case.03&tag=final").await;
    assert_eq!(reply.json()["detail"], "Label NOT Found or is a directory");
}

#[tokio::test]
async fn a_label_that_was_changed_meanwhile() {
    let server = TestServer::start().await;
    let first = submit(&server, "image=case_01", &[("If-None-Match", "*")]).await;
    let etag = first.header("etag").unwrap().to_owned();
    assert_eq!(
        submit(&server, "image=case_01", &[("If-None-Match", "*")])
            .await
            .status,
        412
    );
    let second = submit(&server, "image=case_01", &[("If-Match", &etag)]).await;
    assert_eq!(second.status, 200);
    assert_eq!(
        submit(&server, "image=case_01", &[("If-Match", &etag)])
            .await
            .status,
        412
    );
    assert_eq!(
        submit(&server, "image=case_01", &[("If-Match", "x")])
            .await
            .status,
        400
    );
    let reply = server.get("/datastore/label?label=case_01&tag=final").await;
    assert_eq!(reply.header("etag"), second.header("etag"));
}

#[tokio::test]
async fn ids_never_leave_the_store() {
    let server = TestServer::start().await;
    for query in [
        "image=case_01&tag=..%2F..%2Fevil",
        "image=..%2Fcase_01",
        "image=.hidden",
        "image=",
    ] {
        let reply = submit(&server, query, &[]).await;
        assert_eq!(
            (reply.status, reply.json()["code"].clone()),
            (422, "bad_id".into()),
            "{query}"
        );
    }
    assert_eq!(
        server
            .get("/datastore/image?image=..%2F..%2Fetc%2Fpasswd")
            .await
            .status,
        404
    );
    assert_eq!(
        server
            .get("/datastore/label?label=..&tag=final")
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn the_dataset_is_a_zip_file() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/datastore/dataset").await.status, 404);
    submit(&server, "image=case_01", &[]).await;
    let reply = server.get("/datastore/dataset?limit_cases=5").await;
    assert_eq!(
        reply.header("content-disposition"),
        Some("attachment; filename=\"dataset.zip\"")
    );
    assert!(reply.body.starts_with(b"PK\x03\x04"));
    for name in [
        "image/case_01.nii.gz",
        "label/case_01.nii.gz",
        "metadata.json",
    ] {
        let found = reply
            .body
            .windows(name.len())
            .filter(|part| *part == name.as_bytes())
            .count();
        assert_eq!(
            found, 2,
            "{name} in a local header and in the central directory"
        );
    }
}
