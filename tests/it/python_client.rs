//! The real Python client of MONAI Label against this server: `tests/python/test_client.py`.

use crate::support::TestServer;

/// Set it to a Python that has the packages `requests` and `monailabel`.
const PYTHON: &str = "FEWLABEL_TEST_PYTHON";

#[tokio::test]
async fn every_method_of_the_python_client() {
    let Some(python) = std::env::var_os(PYTHON) else {
        eprintln!("skipped: {PYTHON} does not name a Python with requests and monailabel");
        return;
    };
    let server = TestServer::start().await;
    let _worker = server.worker();
    let files = tempfile::tempdir().unwrap();
    let (image, label) = (
        files.path().join("scan.nii.gz"),
        files.path().join("label.nii.gz"),
    );
    std::fs::write(&image, server.image_bytes()).unwrap();
    std::fs::write(&label, server.label_bytes()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/test_client.py");
    let output = tokio::process::Command::new(python)
        .arg(script)
        .env("FEWLABEL_URL", format!("http://{}", server.address))
        .env("FEWLABEL_IMAGE", image)
        .env("FEWLABEL_LABEL", label)
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
