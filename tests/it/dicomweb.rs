//! Studies on a DICOMweb server, through the public binary: the list, copies, results, the proxy, and what goes wrong.

use std::time::Duration;

use fewlabel::imaging::{LabelFormat, Volume, dicom, read_scan, write_label};
use serde_json::Value;

use crate::support::dicom::{CANARIES, SIDE, SLICES};
use crate::support::pacs::{FakePacs, Fault, series_uid};
use crate::support::{Process, Reply};

const TOKEN: &str = "a-secret-token";

fn serve(folder: &std::path::Path, pacs: &FakePacs, more: &[&str]) -> Process {
    let data = folder.join("data");
    let url = pacs.url();
    let mut arguments = vec![
        "--studies",
        &url,
        "--data",
        data.to_str().unwrap(),
        "--labels",
        "liver",
        "--ahead",
        "0",
        "--poll-s",
        "3600",
        "--log",
        "trace",
    ];
    arguments.extend(more);
    let variables = [("FEWLABEL_DICOMWEB_TOKEN", TOKEN)];
    Process::serve_with(&folder.join("log"), arguments, &variables)
}

fn good(what: &str, reply: Reply) -> Reply {
    assert_eq!(reply.status, 200, "{what}: {}", reply.text());
    reply
}

/// Whether nothing that names a patient, and no login, is in there.
fn tells_nobody(what: &str, bytes: &[u8]) {
    for secret in CANARIES.into_iter().chain([TOKEN]) {
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} is in {what}");
    }
}

/// Asks until the answer is there, for a minute.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it did not happen within a minute");
}

fn infer(series: u32, output: &str) -> String {
    format!(
        "/infer/pct-net-s?image={}&output={output}",
        series_uid(series)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_case_goes_from_the_archive_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let pacs = FakePacs::start(&(1..=30).map(|n| (n, SLICES)).collect::<Vec<_>>()).await;
    pacs.archive().authorization = Some("Bearer a-secret-token");
    // The first question fails once.
    pacs.archive().faults.push(("/series?", Fault::Status(503)));
    let server = serve(folder.path(), &pacs, &[]);

    // The list came page by page, and no image was fetched for it.
    let counts = good("counts", server.get("/datastore/").await).json();
    assert_eq!(
        (&counts["total"], &counts["completed"]),
        (&30.into(), &0.into())
    );
    assert!(pacs.archive().count("GET", "/series?Modality=CT&") >= 3);
    assert_eq!(pacs.archive().count("GET", "/studies/"), 0);

    // The connection is cut inside of the fourth slice: the rest comes one by one.
    pacs.archive().faults.push((".2$", Fault::CutAfter(3)));
    let next = server.post_json("/activelearning/first", "{}").await;
    let next = good("the next sample", next).json();
    let uid = next["id"].as_str().unwrap().to_owned();
    let number = (1..=30).find(|n| series_uid(*n) == uid).unwrap();
    let its_study = format!("{}.1", uid.strip_suffix(".2").unwrap());
    let whole = format!("/studies/{its_study}/series/{uid}");
    assert_eq!(next["StudyInstanceUID"], its_study.as_str());
    assert_eq!(next["patient"].as_str().unwrap().len(), 12);
    let image = server.get(&format!("/datastore/image?image={uid}")).await;
    let image = good("the image", image).body;
    let file = folder.path().join("image.nii.gz");
    std::fs::write(&file, &image).unwrap();
    let scan = read_scan(&file, &Default::default()).unwrap().volume;
    assert_eq!(scan.geometry.shape(), [SLICES, SIDE, SIDE]);
    let asked = pacs.archive().asked.clone();
    let fetched = asked.iter().filter(|asked| asked.path == whole).count();
    assert_eq!(fetched, 1, "kept from then on");
    assert_eq!(pacs.archive().count("GET", "/instances/"), SLICES - 3);
    assert!(
        asked
            .iter()
            .all(|asked| asked.authorization == "Bearer a-secret-token")
    );

    // A proposal, also as DICOM object that names its slices.
    good(
        "a proposal",
        server.form("POST", &infer(number, "image"), &[]).await,
    );
    let object = server.form("POST", &infer(number, "dicom_seg"), &[]).await;
    let object = good("a proposal as DICOM", object);
    assert_eq!(object.header("content-type"), Some("application/dicom"));
    let proposed = dicom::identity(&object.body, &Default::default()).unwrap();
    assert_eq!(proposed.study_uid, its_study);

    // A label is safe at once, and stored as soon as the archive takes it.
    pacs.archive().faults.push((".1$", Fault::Status(503)));
    let mut voxels = vec![0u16; scan.voxels.len()];
    let middle = (SLICES / 2 * SIDE + SIDE / 2) * SIDE + SIDE / 2;
    voxels[middle..middle + 9].fill(1);
    let drawn = folder.path().join("drawn.nii.gz");
    let labels = Volume::new(scan.geometry, voxels).unwrap();
    write_label(&drawn, &labels, &[], LabelFormat::NiftiGz).unwrap();
    let drawn = std::fs::read(drawn).unwrap();
    let parts = [("label", "label.nii.gz", drawn.as_slice())];
    let put = format!("/datastore/label?image={uid}&tag=final");
    good("the label", server.form("PUT", &put, &parts).await);
    let counts = good("counts", server.get("/datastore/").await).json();
    assert_eq!(counts["completed"], 1);
    let about = format!("/datastore/label/info?label={uid}&tag=final");
    let info: Value = until(async || {
        let info = server.get(&about).await.json();
        info["dicomweb"].is_object().then_some(info)
    })
    .await;
    assert_eq!(info["dicomweb"]["state"], "stored", "{info}");
    let stored = pacs.archive().stored.clone();
    let [(study, body)] = stored.as_slice() else {
        panic!("{} objects were stored", stored.len());
    };
    assert_eq!(*study, its_study);
    let start = body
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    let end = body.windows(4).rposition(|four| four == b"\r\n--").unwrap();
    let object = dicom::identity(&body[start..end], &Default::default()).unwrap();
    assert_eq!(
        info["dicomweb"]["SOPInstanceUID"],
        object.instance_uid.as_str()
    );
    assert_eq!(object.study_uid, *study);

    // Nothing is stored twice, also not by the next start.
    server.terminate();
    let server = serve(folder.path(), &pacs, &[]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(pacs.archive().stored.len(), 1);
    tells_nobody(
        "the log",
        &std::fs::read(folder.path().join("log")).unwrap(),
    );
    tells_nobody("/logs/", &server.get("/logs/?text=true&lines=0").await.body);
    for entry in ["fewlabel.db", "fewlabel.db-wal"] {
        if let Ok(bytes) = std::fs::read(folder.path().join("data").join(entry)) {
            tells_nobody(entry, &bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_fails_takes_nobody_along() {
    let folder = tempfile::tempdir().unwrap();
    let pacs = FakePacs::start(&[(1, SLICES), (2, SLICES), (3, SLICES)]).await;
    let server = serve(folder.path(), &pacs, &["--store-as", "none"]);
    good(
        "the first image",
        server
            .get(&format!("/datastore/image?image={}", series_uid(1)))
            .await,
    );

    // It cannot give whole series, and is busy for a moment.
    let second = format!("/datastore/image?image={}", series_uid(2));
    pacs.archive().faults.extend([
        (
            "/series/1.2.826.0.1.3680043.10.999.2.2$",
            Fault::Status(406),
        ),
        (
            "/instances/1.2.826.0.1.3680043.10.999.2.3.7$",
            Fault::Status(429),
        ),
        (
            "/instances/1.2.826.0.1.3680043.10.999.2.3.8$",
            Fault::CutAfter(0),
        ),
    ]);
    good("a series slice by slice", server.get(&second).await);
    assert_eq!(pacs.archive().count("GET", "/instances/"), SLICES + 2);

    // It is down: what is here still works, what is not is told.
    pacs.archive().down = Some(503);
    let third = format!("/datastore/image?image={}", series_uid(3));
    let refused = server.get(&third).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(
        refused.json()["detail"]
            .as_str()
            .unwrap()
            .contains("DICOMweb server failed (503)")
    );
    good("a copy", server.form("POST", &infer(1, "image"), &[]).await);
    let rescan = server.send("POST", "/datastore/rescan", &[], b"").await;
    assert_eq!(rescan.status, 503);
    assert_eq!(
        server.get("/datastore/").await.json()["total"],
        3,
        "the list stays"
    );

    // It wants another login.
    pacs.archive().down = Some(401);
    let refused = server.get(&third).await;
    assert!(
        refused.text().contains("refuses the login (401)"),
        "{}",
        refused.text()
    );

    // It leads elsewhere, sends nonsense, or something else; nothing of it is kept.
    pacs.archive().down = None;
    pacs.archive().faults.push(("/instances", Fault::Redirect));
    let refused = server.get(&third).await;
    assert!(
        refused.text().contains("redirects (302)"),
        "{}",
        refused.text()
    );
    let copies = || std::fs::read_dir(folder.path().join("data/dicomweb")).unwrap();
    let whole_copies = copies().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".zip")
    });
    assert_eq!(whole_copies.count(), 2);
    good("it recovers", server.get(&third).await);

    // A series is gone, one is new, one grows.
    {
        let mut archive = pacs.archive();
        archive.series.remove(&1);
        archive.series.insert(2, SLICES - 1);
        archive.series.insert(4, SLICES);
    }
    let rescan = good(
        "a rescan",
        server.send("POST", "/datastore/rescan", &[], b"").await,
    )
    .json();
    assert_eq!(rescan["vanished"], serde_json::json!([series_uid(1)]));
    assert_eq!(rescan["added"], serde_json::json!([series_uid(4)]));
    assert_eq!(rescan["changed"], serde_json::json!([series_uid(2)]));
    let gone = server.form("POST", &infer(1, "image"), &[]).await;
    assert_eq!(gone.status, 404, "{}", gone.text());
    let reply = good("the changed series", server.get(&second).await);
    let file = folder.path().join("changed.nii.gz");
    std::fs::write(&file, reply.body).unwrap();
    let scan = read_scan(&file, &Default::default()).unwrap().volume;
    assert_eq!(scan.geometry.shape()[0], SLICES - 1);

    // A series that vanished since the last look.
    pacs.archive().series.remove(&4);
    let gone = server
        .get(&format!("/datastore/image?image={}", series_uid(4)))
        .await;
    assert_eq!(gone.status, 404, "{}", gone.text());
    assert!(gone.text().contains("does not have it"), "{}", gone.text());
    tells_nobody(
        "the log",
        &std::fs::read(folder.path().join("log")).unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_reach_the_archive_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let pacs = FakePacs::start(&[(1, SLICES)]).await;
    let server = serve(folder.path(), &pacs, &["--store-as", "none"]);
    let headers = [
        ("Accept", "application/dicom+json"),
        ("Authorization", "Basic of-the-client"),
        ("Cookie", "a=b"),
    ];
    let path = "/proxy/dicom/qido/studies?PatientName=CANARY%5EJANE&limit=3";
    let found = good("a query", server.send("GET", path, &headers, b"").await);
    assert_eq!(
        found.json()[0]["query"],
        "PatientName=CANARY%5EJANE&limit=3"
    );
    let asked = pacs.archive().asked.last().unwrap().clone();
    assert_eq!(asked.accept, "application/dicom+json");
    assert_eq!(asked.authorization, format!("Bearer {TOKEN}"));
    assert!(!asked.has_cookie);

    let before = pacs.archive().asked.len();
    for path in [
        "/proxy/dicom/qido/..%2f..%2fadmin",
        "/proxy/dicom/%2e%2e/admin",
        "/proxy/dicom/wado/studies/%252e%252e/%252e%252e/admin",
        "/proxy/dicom/studies/..%5cadmin",
        "/proxy/dicom/http://elsewhere.invalid/",
        "/proxy/dicom//elsewhere.invalid/x",
        "/proxy/dicom/studies/%00",
    ] {
        let refused = server.send("GET", path, &[], b"").await;
        assert!(
            [400, 404].contains(&refused.status),
            "{path}: {}",
            refused.status
        );
    }
    assert_eq!(pacs.archive().asked.len(), before, "nothing was passed on");
    pacs.archive().faults.push(("/studies", Fault::Redirect));
    let refused = server.get("/proxy/dicom/studies").await;
    assert_eq!(refused.status, 502);
    assert!(!refused.head.to_ascii_lowercase().contains("location"));
    assert_eq!(server.delete("/proxy/dicom/studies/1").await.status, 405);

    let stored = server
        .send(
            "POST",
            "/proxy/dicom/stow/studies/1.2",
            &[("Content-Type", "multipart/related; boundary=x")],
            b"--x--\r\n",
        )
        .await;
    good("storing", stored);
    let kept = pacs.archive().stored.last().unwrap().clone();
    assert_eq!(kept, ("1.2".to_owned(), b"--x--\r\n".to_vec()));
    // What an archive says stays what it says.
    assert_eq!(
        server.get("/proxy/dicom/studies/9/series/9").await.status,
        404
    );
    tells_nobody(
        "the log",
        &std::fs::read(folder.path().join("log")).unwrap(),
    );
}
