//! DICOM series through the server: a folder of the studies, a session, an upload. And nothing that names the patient
//! leaves the files.

use std::path::Path;

use fewlabel::imaging::{LabelFormat, Volume, write_label};
use sha2::{Digest, Sha256};

use crate::support::dicom::{CANARIES, SIDE, SLICES, SPACING_MM, write_series, zipped_series};
use crate::support::{Process, Reply};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn without_canary(what: &str, bytes: &[u8]) {
    for canary in CANARIES {
        let found = bytes
            .windows(canary.len())
            .any(|window| window == canary.as_bytes());
        assert!(!found, "{canary} is in {what}");
    }
}

fn answered(what: &str, reply: &Reply) {
    assert_eq!(reply.status, 200, "{what}: {}", reply.text());
    without_canary(what, &reply.body);
    without_canary(what, reply.head.as_bytes());
}

/// Every file of the data folder but those that clients sent.
fn kept_files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["blobs", "sessions"].contains(&name.as_str()) {
                kept_files(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

#[tokio::test]
async fn series_are_served_segmented_and_never_named() {
    let folder = tempfile::tempdir().unwrap();
    let studies = folder.path().join("studies");
    write_series(&studies.join("chest"), 1);
    std::fs::write(studies.join("notes.txt"), "no image").unwrap();
    std::fs::create_dir(studies.join("empty")).unwrap();
    let (data, log) = (folder.path().join("data"), folder.path().join("log"));
    let server = Process::serve(
        &log,
        [
            "--studies".as_ref(),
            studies.as_os_str(),
            "--data".as_ref(),
            data.as_os_str(),
            "--labels".as_ref(),
            "liver".as_ref(),
            "--log".as_ref(),
            "fewlabel=trace".as_ref(),
        ],
    );

    let all = server.get("/datastore/?output=all").await;
    answered("the list", &all);
    let objects = all.json()["objects"].clone();
    assert_eq!(objects.as_object().unwrap().len(), 1, "{objects}");
    assert_eq!(objects["chest"]["image"]["ext"], ".nii.gz");

    // What a client gets is one file, which it can open by its path or download.
    let next = server.post_json("/activelearning/first", "{}").await;
    answered("the next sample", &next);
    let next = next.json();
    let path = Path::new(next["path"].as_str().unwrap());
    let image = server.get("/datastore/image?image=chest").await;
    answered("the image", &image);
    assert_eq!(std::fs::read(path).unwrap(), image.body);
    assert_eq!(next["checksum"], format!("SHA256:{}", hex(&image.body)));
    assert_eq!(next["name"], "chest.nii.gz");
    let scan = fewlabel::imaging::read_scan(path, &Default::default()).unwrap();
    assert_eq!(scan.volume.geometry.shape(), [SLICES, SIDE, SIDE]);
    assert_eq!(scan.volume.geometry.spacing_mm(), [SPACING_MM; 3]);
    let middle = (SLICES / 2 * SIDE + SIDE / 2) * SIDE + SIDE / 2;
    assert_eq!(scan.volume.voxels[middle], 40.0);
    assert_eq!(scan.volume.voxels[0], -1024.0);

    // Segmented from the project, from a session, and after an upload.
    let infer = |query: &str| format!("/infer/pct-net-s?{query}&output=image");
    let study = server.form("POST", &infer("image=chest"), &[]).await;
    answered("a proposal", &study);
    let zip = zipped_series(2);
    let parts = [("files", "series.zip", zip.as_slice())];
    let session = server
        .form("PUT", "/session/?uncompress=true", &parts)
        .await;
    answered("the session", &session);
    let id = session.json()["session_id"].as_str().unwrap().to_owned();
    let of_session = server
        .form("POST", &infer(&format!("session_id={id}")), &[])
        .await;
    answered("a proposal for the session", &of_session);
    assert_eq!(study.body, of_session.body);
    let parts = [("file", "second.zip", zip.as_slice())];
    let upload = server.form("PUT", "/datastore/", &parts).await;
    answered("the upload", &upload);
    assert_eq!(upload.json()["image"], "second");
    let again = server.get("/datastore/image?image=second").await;
    answered("the uploaded image", &again);
    assert_eq!(again.body, image.body);

    // A label on the series' grid is taken.
    let mut voxels = vec![0u16; scan.volume.voxels.len()];
    voxels[middle..middle + 9].fill(1);
    let drawn = Volume::new(scan.volume.geometry, voxels).unwrap();
    let file = folder.path().join("drawn.nii.gz");
    write_label(&file, &drawn, &[], LabelFormat::NiftiGz).unwrap();
    let drawn = std::fs::read(file).unwrap();
    let parts = [("label", "chest.nii.gz", drawn.as_slice())];
    let label = server
        .form("PUT", "/datastore/label?image=chest", &parts)
        .await;
    answered("the label", &label);

    // A damaged upload is refused without naming anybody.
    let mut cut = zipped_series(3);
    cut.truncate(cut.len() / 2);
    let parts = [("file", "cut.zip", cut.as_slice())];
    let refused = server.form("PUT", "/datastore/", &parts).await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    without_canary("a refusal", &refused.body);

    answered("the log", &server.get("/logs/?text=true&lines=0").await);
    server.terminate();
    without_canary("the log", &std::fs::read(&log).unwrap());
    let mut files = Vec::new();
    kept_files(&data, &mut files);
    assert!(!files.is_empty());
    for file in files {
        without_canary(&file.display().to_string(), &std::fs::read(&file).unwrap());
    }
    // The series is as it was.
    assert_eq!(
        std::fs::read_dir(studies.join("chest")).unwrap().count(),
        SLICES
    );
}
