//! `/metrics`: every promised family, in the text format, without ids.

use std::collections::BTreeMap;

use crate::support::TestServer;

/// Values by name and labels; panics on a line that is not of the format.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    let mut families = Vec::new();
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            families.push(about.split(' ').next().unwrap().to_owned());
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let family = families.last().unwrap();
        assert!(name.starts_with(family.as_str()), "{line} in {family}");
        let again = values.insert(name.to_owned(), value.parse().unwrap());
        assert_eq!(again, None, "{line} stands once");
    }
    values
}

#[tokio::test]
async fn what_happened_is_counted() {
    let server = TestServer::start().await;
    let _worker = server.worker();
    let infer = "/infer/pct-net-s?image=case+02&output=json";
    assert_eq!(server.send("POST", infer, &[], b"").await.status, 200);
    let label = server.label_bytes();
    let parts = [("label", "a.nii.gz", label.as_slice())];
    let reply = server
        .form("PUT", "/datastore/label?image=case_01", &parts)
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(server.get("/session/DOE-JANE").await.status, 404);
    assert_eq!(server.get("/DOE-JANE").await.status, 404);
    let reply = server.get("/metrics").await;
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = reply.text();
    assert!(!text.contains("DOE") && !text.contains("case"), "{text}");
    let values = parse(&text);
    for (name, value) in [
        (
            "fewlabel_http_request_duration_seconds_count{method=\"POST\",route=\"/infer/{model}\",status=\"200\"}",
            1.0,
        ),
        (
            "fewlabel_http_request_duration_seconds_count{method=\"GET\",route=\"/session/{session_id}\",status=\"404\"}",
            1.0,
        ),
        (
            "fewlabel_http_request_duration_seconds_count{method=\"GET\",route=\"(none)\",status=\"404\"}",
            1.0,
        ),
        ("fewlabel_http_requests_in_progress", 1.0),
        ("fewlabel_infer_stage_seconds_count{stage=\"wait\"}", 1.0),
        ("fewlabel_label_submits_total", 1.0),
        ("fewlabel_label_revisions_total", 1.0),
        ("fewlabel_images{state=\"labelled\"}", 1.0),
        ("fewlabel_images{state=\"unlabelled\"}", 2.0),
        ("fewlabel_queue_jobs{kind=\"train\",state=\"waiting\"}", 0.0),
        ("fewlabel_queue_oldest_age_seconds{kind=\"infer\"}", 0.0),
        ("fewlabel_store_writable", 1.0),
        ("fewlabel_worker_up", 1.0),
    ] {
        assert_eq!(values.get(name), Some(&value), "{name}\n{text}");
    }
    for name in ["fewlabel_store_bytes", "fewlabel_store_free_bytes"] {
        assert!(values[name] > 0.0, "{name}");
    }
    let build = format!(
        "fewlabel_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(values[&build], 1.0);
}

#[tokio::test]
async fn a_queue_has_a_depth_and_an_age() {
    let server = TestServer::start().await;
    for _ in 0..2 {
        let reply = server
            .post_json("/train/pct-net-s?enqueue=true", "{}")
            .await;
        assert_eq!(reply.status, 200);
    }
    server.clock.advance_ms(90_000);
    let values = parse(&server.get("/metrics").await.text());
    assert_eq!(
        values["fewlabel_queue_jobs{kind=\"train\",state=\"waiting\"}"],
        2.0
    );
    assert_eq!(
        values["fewlabel_queue_oldest_age_seconds{kind=\"train\"}"],
        90.0
    );
}
