//! `/model`: weights out and in.

use crate::support::TestServer;

#[tokio::test]
async fn weights_out_and_in() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let about = server.get("/model/info/pct-net-s").await.json();
    let live = server.registry.live("pct-net-s").await.unwrap().unwrap();
    let weights_sha256 = live.manifest().unwrap().weights_sha256;
    assert_eq!(about["checksum"], format!("SHA256:{weights_sha256}"));
    assert!(about["modified_time"].is_i64() && about["train_stats"].is_object());
    let reply = server.get("/model/pct-net-s").await;
    let name = "attachment; filename=\"pct-net-s.safetensors\"";
    assert_eq!(reply.header("content-disposition"), Some(name));
    let mut weights = reply.body;
    *weights.last_mut().unwrap() ^= 1;
    let file = [("file", "other.safetensors", weights.as_slice())];
    let put = server.form("PUT", "/model/pct-net-s", &file).await;
    assert_eq!(put.status, 200, "{}", put.text());
    assert_ne!(put.json()["checksum"], about["checksum"]);
    assert_eq!(server.get("/model/pct-net-s").await.body, weights);
    let models = server.get("/info/").await.json()["models"].clone();
    assert!(
        models["pct-net-s"]["description"]
            .as_str()
            .unwrap()
            .contains("version 2")
    );
}

#[tokio::test]
async fn what_is_refused() {
    let server = TestServer::start().await;
    for path in ["/model/none", "/model/info/none"] {
        assert_eq!(
            server.get(path).await.json()["detail"],
            "Model File NOT Found for none"
        );
    }
    let pickle = [(
        "file",
        "model.pt",
        b"PK\x03\x04 archive/data.pkl".as_slice(),
    )];
    assert_eq!(
        server.form("PUT", "/model/pct-net-s", &pickle).await.status,
        415
    );
    let header = br#"{"other":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let bytes = [
        &(header.len() as u64).to_le_bytes(),
        header.as_slice(),
        &[0; 4],
    ]
    .concat();
    let other = [("file", "other.safetensors", bytes.as_slice())];
    let reply = server.form("PUT", "/model/pct-net-s", &other).await;
    assert_eq!(
        (reply.status, reply.json()["code"].clone()),
        (422, "other_architecture".into())
    );
    assert_eq!(
        server.form("PUT", "/model/pct-net-s", &[]).await.status,
        422
    );
    assert_eq!(server.delete("/model/pct-net-s").await.status, 409);
    assert_eq!(server.get("/model/pct-net-s").await.status, 200);
}
