//! `check`, `backup`, `restore`, `export`, `import`, and a server whose data are damaged or whose
//! studies change: through the program.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use fewlabel::imaging::{Geometry, LabelFormat, Volume, write_label, write_scan};
use fewlabel::model::LabelSchema;
use fewlabel::project;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, Row};

use crate::support::{Http, Process, Reply, tiny_model};

/// Longest wait for anything; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn fewlabel(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fewlabel"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

/// What a command says that must end with `code`.
fn ends(code: i32, arguments: &[&str]) -> String {
    let output = fewlabel(arguments);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// Studies, a tiny model, and data folders that outlive every server.
struct Site(tempfile::TempDir);

impl Site {
    fn new(images: &[&str]) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(site.path("studies")).unwrap();
        for (seed, name) in (0..).zip(images) {
            write_image(&site.path("studies").join(name), seed);
        }
        let labels = LabelSchema::from_list("spleen,liver").unwrap();
        tiny_model(&site.path("model"), &labels);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn serve_on(&self, studies: &str, data: &str) -> Process {
        let [studies, data, model] = [studies, data, "model"].map(|name| self.text(name));
        let arguments = [
            "--studies",
            &studies,
            "--data",
            &data,
            "--model",
            &model,
            "--labels",
            "spleen,liver",
        ];
        Process::serve(&self.path("server.log"), arguments)
    }

    fn serve(&self) -> Process {
        self.serve_on("studies", "data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("server.log")).unwrap_or_default()
    }

    fn label(&self, value: u16, suffix: &str) -> Vec<u8> {
        let path = self.path(&format!("label{suffix}"));
        let mut voxels = vec![0; 24];
        (voxels[0], voxels[1], voxels[5]) = (1, 2, value % 3);
        (6..22).for_each(|bit| voxels[bit] = value >> (bit - 6) & 1);
        let names = [(1, "spleen".to_owned()), (2, "liver".to_owned())];
        let format = match suffix {
            ".seg.nrrd" => LabelFormat::SegNrrd,
            ".nrrd" => LabelFormat::Nrrd,
            _ => LabelFormat::NiftiGz,
        };
        write_label(&path, &Volume::new(grid(), voxels).unwrap(), &names, format).unwrap();
        std::fs::read(path).unwrap()
    }
}

fn grid() -> Geometry {
    Geometry::new(
        [2, 3, 4],
        [0.0; 3],
        [[0.0, 0.0, 3.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
    )
    .unwrap()
}

fn write_image(path: &Path, seed: u16) {
    let voxels = (0..24).map(|n| f32::from(n * 10 + seed)).collect();
    let format = match path.extension() {
        Some(suffix) if suffix == "nrrd" => LabelFormat::Nrrd,
        _ => LabelFormat::NiftiGz,
    };
    write_scan(path, &Volume::new(grid(), voxels).unwrap(), format).unwrap();
}

async fn submit(server: &Http, query: &str, file: &str, label: &[u8], params: Value) -> Reply {
    let params = params.to_string();
    let parts = [("params", "", params.as_bytes()), ("label", file, label)];
    let path = format!("/datastore/label?{query}");
    server.form("PUT", &path, &parts).await
}

/// Waits until the answer of a route is as wished.
async fn until(server: &Http, path: &str, wished: impl Fn(&Reply) -> bool) -> Reply {
    let start = Instant::now();
    loop {
        let reply = server.get(path).await;
        if wished(&reply) {
            return reply;
        }
        assert!(start.elapsed() < PATIENCE, "{path}: {}", reply.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every file below a folder with its bytes; JSON is compared as such.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut folders, mut found) = (vec![root.to_owned()], BTreeMap::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// A server with labels of every kind, and two projects that took its export.
#[tokio::test]
async fn an_export_comes_back_as_it_was() {
    let site = Site::new(&["case_01.nii.gz", "case 02.nrrd", "case.with.dots.nii.gz"]);
    let server = site.serve();
    let info = json!({"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}], "client_id": "anna"});
    for (query, file, params) in [
        (
            "image=case_01&tag=version_2",
            "x.nii.gz",
            json!({"segmentationMeta": {"status": "approved"}}),
        ),
        ("image=case_01", "x.nii.gz", info.clone()),
        (
            "image=case.with.dots",
            "x.seg.nrrd",
            json!({"comment": "Ünïcode"}),
        ),
        (
            "image=case%2002&tag=original",
            "x.nrrd",
            json!({"model": "m", "params": {"latencies": {"total": 1.5}}}),
        ),
        ("image=case%2002", "x.nii.gz", info),
    ] {
        let suffix = &file[1..];
        let reply = submit(&server, query, file, &site.label(1, suffix), params).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let image = site.path("up.nii.gz");
    write_image(&image, 77);
    let image = std::fs::read(image).unwrap();
    let parts = [
        ("params", "", &br#"{"source": "pacs"}"#[..]),
        ("file", "up.nii.gz", &image),
    ];
    assert_eq!(
        server
            .form("PUT", "/datastore/?image=up.1", &parts)
            .await
            .status,
        200
    );
    let about = [("info", "", &br#"{"patient": "p1"}"#[..])];
    let path = "/datastore/image/info?image=case_01";
    assert_eq!(server.form("PUT", path, &about).await.status, 200);
    let merged = [("params", "", &br#"{"reviewed": true}"#[..])];
    let path = "/datastore/updatelabelinfo?label=case_01&tag=version_2";
    assert_eq!(server.form("PUT", path, &merged).await.status, 200);

    // While the server runs.
    let [data, a, b, c] = ["data", "a", "b", "c"].map(|name| site.text(name));
    ends(0, &["export", "--data", &data, "--out", &a]);
    let first = tree(&site.path("a"));
    let document = json_of(&first["datastore_v2.json"]);
    assert_eq!(document, server.get("/datastore/?output=all").await.json());
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "case 02.nrrd",
            "case.with.dots.nii.gz",
            "case_01.nii.gz",
            "datastore_v2.json",
            "labels/final/case 02.nii.gz",
            "labels/final/case.with.dots.seg.nrrd",
            "labels/final/case_01.nii.gz",
            "labels/original/case 02.nrrd",
            "labels/version_2/case_01.nii.gz",
            "up.1.nii.gz",
        ]
    );
    let refused = ends(1, &["export", "--data", &data, "--out", &a]);
    assert!(refused.contains("is there already"), "{refused}");
    assert_eq!(tree(&site.path("a")), first);
    // What is exported is there already.
    let said = ends(0, &["import", "--data", &data, &a]);
    assert!(
        said.contains("0 new images, 0 new revisions of labels, 9 unchanged"),
        "{said}"
    );
    drop(server);

    // Into a project without images, and adopted in place.
    std::fs::create_dir(site.path("empty")).unwrap();
    site.serve_on("empty", "imported").terminate();
    let imported = site.text("imported");
    let said = ends(0, &["import", "--data", &imported, &a]);
    assert!(
        said.contains("4 new images, 5 new revisions of labels, 0 unchanged, 0 refused"),
        "{said}"
    );
    ends(0, &["export", "--data", &imported, "--out", &b]);
    assert_eq!(tree(&site.path("b")), first);
    site.serve_on("a", "adopted").terminate();
    assert_eq!(tree(&site.path("a")), first, "the folder was not changed");
    ends(0, &["export", "--data", &site.text("adopted"), "--out", &c]);
    assert_eq!(
        json_of(&tree(&site.path("c"))["datastore_v2.json"]),
        document
    );
    assert_eq!(tree(&site.path("c")), first);
    for data in [&data, &imported, &site.text("adopted")] {
        ends(0, &["check", "--data", data]);
    }

    let links = site.text("links");
    ends(
        0,
        &[
            "export", "--data", &data, "--out", &links, "--images", "link",
        ],
    );
    assert!(site.path("links/case_01.nii.gz").is_symlink());
    assert_eq!(tree(&site.path("links")), first);
    ends(
        0,
        &[
            "export",
            "--data",
            &data,
            "--out",
            &site.text("none"),
            "--images",
            "none",
        ],
    );
    assert!(!site.path("none/case_01.nii.gz").exists() && site.path("none/labels/final").is_dir());

    // What is no such folder, and a label that does not fit.
    let said = ends(1, &["import", "--data", &data, &site.text("empty")]);
    assert!(said.contains("no MONAI Label studies folder"), "{said}");
    std::fs::create_dir_all(site.path("bad/labels/final")).unwrap();
    std::fs::write(site.path("bad/labels/final/case_01.nii.gz"), b"no label").unwrap();
    let said = ends(1, &["import", "--data", &data, &site.text("bad")]);
    assert!(
        said.contains("final/case_01.nii.gz was not imported") && said.contains("1 refused"),
        "{said}"
    );
    let partial = std::fs::read_dir(site.0.path()).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.')
    });
    assert_eq!(partial.count(), 0, "nothing partial is left");
}

#[tokio::test]
async fn an_export_in_msd_layout_is_read_by_training() {
    let site = Site::new(&["a.nii.gz", "b.nrrd", "c.nii.gz"]);
    let server = site.serve();
    let spleen = json!({"label_info": [{"name": "spleen", "idx": 1}]});
    for (image, params) in [("a", json!({})), ("b", spleen)] {
        let mut label = site.label(1, ".nii.gz");
        if image == "b" {
            // Spleen alone.
            let volume = Volume::new(grid(), [vec![1], vec![0; 23]].concat()).unwrap();
            let path = site.path("one.nii.gz");
            write_label(&path, &volume, &[], LabelFormat::NiftiGz).unwrap();
            label = std::fs::read(path).unwrap();
        }
        let reply = submit(
            &server,
            &format!("image={image}"),
            "x.nii.gz",
            &label,
            params,
        )
        .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let [data, out] = ["data", "msd"].map(|name| site.text(name));
    ends(
        0,
        &["export", "--data", &data, "--out", &out, "--format", "msd"],
    );
    let files = tree(&site.path("msd"));
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "dataset.json",
            "dataset_nnunet_v2.json",
            "imagesTr/a.nii.gz",
            "imagesTr/b.nii.gz",
            "imagesTs/c.nii.gz",
            "labelsTr/a.nii.gz",
            "labelsTr/b.nii.gz",
        ]
    );
    let msd = json_of(&files["dataset.json"]);
    assert_eq!(
        msd["labels"],
        json!({"0": "background", "1": "spleen", "2": "liver"})
    );
    assert_eq!(msd["modality"], json!({"0": "CT"}));
    assert_eq!(msd["channel_names"], json!({"0": "CT"}));
    assert_eq!(
        (&msd["numTraining"], &msd["numTest"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(msd["training"][0]["annotated_labels"], json!([1, 2]));
    assert_eq!(msd["training"][1]["annotated_labels"], json!([1]));
    assert_eq!(msd["test"], json!(["./imagesTs/c.nii.gz"]));
    let v2 = json_of(&files["dataset_nnunet_v2.json"]);
    assert_eq!(
        v2["labels"],
        json!({"background": 0, "spleen": 1, "liver": 2})
    );
    assert_eq!(v2["file_ending"], ".nii.gz");
    assert_eq!(
        v2["dataset"]["b"],
        json!({"images": ["imagesTr/b.nii.gz"], "label": "labelsTr/b.nii.gz"})
    );
    let inspected = ends(
        0,
        &[
            "inspect",
            &site.text("msd/imagesTr/b.nii.gz"),
            "--probe",
            "1,0,0",
        ],
    );
    assert!(inspected.contains("11"), "{inspected}");
}

/// What the rows say, whatever the pages look like; none when they cannot be read.
async fn rows(database: &Path) -> Option<Vec<String>> {
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(database)
        .read_only(true);
    let mut connection = options.connect().await.ok()?;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
    )
    .fetch_all(&mut connection)
    .await
    .ok()?;
    let mut all = Vec::new();
    for table in tables {
        let columns: Vec<String> =
            sqlx::query_scalar("SELECT 'quote(' || name || ')' FROM pragma_table_info(?)")
                .bind(&table)
                .fetch_all(&mut connection)
                .await
                .ok()?;
        let select = format!(
            "SELECT {} FROM {table} ORDER BY 1",
            columns.join(" || ',' || ")
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(select))
            .fetch_all(&mut connection)
            .await
            .ok()?;
        all.extend(
            rows.iter()
                .map(|row| format!("{table}: {}", row.get::<String, _>(0))),
        );
    }
    connection.close().await.ok()?;
    Some(all)
}

#[tokio::test]
async fn any_flipped_byte_is_found() {
    let site = Site::new(&["a.nii.gz", "b.nii.gz"]);
    let server = site.serve();
    for (image, value) in [("a", 1), ("b", 2)] {
        let reply = submit(
            &server,
            &format!("image={image}"),
            "x.nii.gz",
            &site.label(value, ".nii.gz"),
            json!({}),
        )
        .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    server.terminate();
    let data = site.path("data");
    let text = site.text("data");
    assert!(ends(0, &["check", "--data", &text]).contains("0 problems"));

    // Every byte of every small file that rows name.
    let (mut flips, mut found) = (0, 0);
    for (name, bytes) in tree(&data.join("blobs")) {
        let path = data.join("blobs").join(name);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, damaged).unwrap();
            let checked = project::check(&data, false).await.unwrap();
            flips += 1;
            found += usize::from(
                checked.report.problems.len() == 1 && checked.report.problems[0].area == "blob",
            );
        }
        std::fs::write(&path, bytes).unwrap();
    }
    println!("blobs: {found} of {flips} flipped bytes found");
    assert_eq!(found, flips);

    let database = data.join("fewlabel.db");
    let bytes = std::fs::read(&database).unwrap();
    let whole = rows(&database).await.unwrap();
    let (mut flips, mut found, mut harmless) = (0, 0, 0);
    for at in (0..bytes.len()).step_by(127) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&database, damaged).unwrap();
        flips += 1;
        let problems = project::check(&data, false)
            .await
            .map(|checked| checked.report.problems.len());
        match problems {
            Ok(0) => {
                // Unused space of a page, or a counter of SQLite: all rows are as they were.
                assert_eq!(
                    rows(&database).await.as_ref(),
                    Some(&whole),
                    "byte {at} was not found"
                );
                harmless += 1;
            }
            _ => found += 1,
        }
        for suffix in ["-wal", "-shm", "-journal"] {
            let _ = std::fs::remove_file(data.join(format!("fewlabel.db{suffix}")));
        }
    }
    std::fs::write(&database, &bytes).unwrap();
    println!("database: of {flips} flipped bytes {found} found, {harmless} in no row");
    assert!(found > 50, "{found} of {flips}");

    // Missing and superfluous files, and the exit codes.
    let orphan = data.join("blobs/ab").join("ab".repeat(32));
    std::fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    std::fs::write(&orphan, "x").unwrap();
    let said = ends(1, &["check", "--data", &text]);
    assert!(
        said.contains("no row names it") && said.contains("--repair-orphans"),
        "{said}"
    );
    let parsed = json_of(&fewlabel(&["check", "--data", &text, "--json"]).stdout);
    assert_eq!(parsed["orphans"].as_array().unwrap().len(), 1);
    assert!(ends(0, &["check", "--data", &text, "--repair-orphans"]).contains("1 removed"));
    assert!(!orphan.exists());
    std::fs::remove_dir_all(data.join("models/tiny/1")).unwrap();
    let said = ends(1, &["check", "--data", &text]);
    assert!(said.contains("model tiny/1: its folder is missing, and it is the live one; labels and images are not touched"), "{said}");
    assert!(ends(1, &["check", "--data", &site.text("studies")]).contains("no data directory"));
    assert!(
        ends(
            1,
            &["backup", "--data", &text, "--out", &site.text("saved")]
        )
        .contains("model tiny/1")
    );
    assert!(!site.path("saved").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_eight_writers_is_one_moment() {
    let site = Site::new(&["a.nii.gz"]);
    let server = site.serve();
    let http: Http = *server;
    let (stop, _) = tokio::sync::watch::channel(false);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8u16 {
        let labels: Vec<Vec<u8>> = (0..40)
            .map(|n| site.label(writer * 100 + n, ".nii.gz"))
            .collect();
        let stop = stop.subscribe();
        writers.spawn(async move {
            let mut taken = 0;
            for label in labels.iter().cycle() {
                if *stop.borrow() {
                    break;
                }
                let reply = submit(
                    &http,
                    &format!("image=a&tag=w{writer}"),
                    "x.nii.gz",
                    label,
                    json!({}),
                )
                .await;
                assert_eq!(reply.status, 200, "{}", reply.text());
                taken += 1;
            }
            (writer, taken)
        });
    }
    let count = async |server: &Http, writer: u16| {
        let path = format!("/datastore/label/revisions?image=a&tag=w{writer}");
        let list = server.get(&path).await.json();
        list["revisions"].as_array().map_or(0, Vec::len)
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut before = Vec::new();
    for writer in 0..8 {
        before.push(count(&http, writer).await);
    }
    let [data, folder, file] = ["data", "saved", "saved.tar"].map(|name| site.text(name));
    for out in [&folder, &file] {
        let (data, out) = (data.clone(), out.clone());
        let said = tokio::task::spawn_blocking(move || {
            ends(0, &["backup", "--data", &data, "--out", &out])
        });
        assert!(said.await.unwrap().contains("all verified"));
    }
    stop.send(true).unwrap();
    let mut after = [0; 8];
    while let Some(ended) = writers.join_next().await {
        let (writer, taken) = ended.unwrap();
        after[usize::from(writer)] = taken;
    }
    drop(server);
    assert!(ends(1, &["backup", "--data", &data, "--out", &folder]).contains("is there already"));
    for (number, saved) in [folder, file].into_iter().enumerate() {
        let restored = format!("restored{number}");
        ends(0, &["restore", &saved, "--data", &site.text(&restored)]);
        assert!(
            ends(1, &["restore", &saved, "--data", &site.text(&restored)])
                .contains("is there already")
        );
        ends(0, &["check", "--data", &site.text(&restored)]);
        let again = site.serve_on("studies", &restored);
        assert!(!again.ready().contains("READ ONLY"), "{}", again.ready());
        let mut kept = Vec::new();
        for writer in 0..8u16 {
            let at = usize::from(writer);
            let revisions = count(&again, writer).await;
            assert!(
                (before[at]..=after[at]).contains(&revisions),
                "writer {writer}: {revisions}"
            );
            kept.push(revisions);
        }
        println!("before {before:?}, restored {kept:?}, at the end {after:?}");
    }
}

/// A server of damaged data reads, refuses to write with the reason, and says so everywhere.
async fn expect_read_only(site: &Site, server: &Http, reason: &str, next: &str) {
    let ready = until(server, "/readyz", |reply| reply.text().contains("reason")).await;
    assert_eq!(ready.status, 503);
    for text in [ready.text(), server.get("/info/").await.text(), site.log()] {
        assert!(text.contains(reason), "{reason} is missing in {text}");
    }
    let info = server.get("/info/").await;
    assert_eq!(info.status, 200);
    assert!(
        info.json()["description"]
            .as_str()
            .unwrap()
            .starts_with("READ ONLY: ")
    );
    let refused = submit(
        server,
        "image=a",
        "x.nii.gz",
        &site.label(9, ".nii.gz"),
        json!({}),
    )
    .await;
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (503, Some("read_only")),
        "{}",
        refused.text()
    );
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(reason) && detail.contains(next), "{detail}");
    assert_eq!(server.get("/datastore/").await.json()["total"], 2);
    let label = server.get("/datastore/label?label=a&tag=final").await;
    assert_eq!((label.status, label.body), (200, site.label(1, ".nii.gz")));
}

#[tokio::test]
async fn damaged_data_are_served_read_only() {
    let site = Site::new(&["a.nii.gz", "b.nii.gz"]);
    let server = site.serve();
    for (image, value) in [("a", 1), ("b", 2)] {
        let params = json!({"comment": "needle in the page"});
        let reply = submit(
            &server,
            &format!("image={image}"),
            "x.nii.gz",
            &site.label(value, ".nii.gz"),
            params,
        )
        .await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let listed = server
        .get("/datastore/label/revisions?image=b")
        .await
        .json();
    let blob = listed["revisions"][0]["sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    server.terminate();
    ends(
        0,
        &[
            "backup",
            "--data",
            &site.text("data"),
            "--out",
            &site.text("saved"),
            "--copy",
        ],
    );

    // A missing live model.
    let model = site.path("data/models/tiny/1");
    std::fs::rename(&model, site.path("away")).unwrap();
    let server = site.serve();
    assert!(server.ready().contains("READ ONLY"), "{}", server.ready());
    expect_read_only(
        &site,
        &server,
        "model tiny/1: its folder is missing",
        "copy its folder from a backup",
    )
    .await;
    drop(server);
    std::fs::rename(site.path("away"), &model).unwrap();

    // A damaged blob of the same size, found while the server runs.
    let path = site.path("data/blobs").join(&blob[..2]).join(&blob);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let server = site.serve();
    expect_read_only(
        &site,
        &server,
        &format!("blob {blob}: its bytes are damaged"),
        "from a backup",
    )
    .await;
    drop(server);
    std::fs::copy(site.path("saved/blobs").join(&blob[..2]).join(&blob), &path).unwrap();

    // A flipped byte inside a page, which SQLite does not notice.
    let database = site.path("data/fewlabel.db");
    site.serve().terminate();
    let whole = std::fs::read(&database).unwrap();
    let at = whole.windows(6).position(|six| six == b"needle").unwrap();
    let mut bytes = whole.clone();
    bytes[at] ^= 1;
    std::fs::write(&database, bytes).unwrap();
    let server = site.serve();
    expect_read_only(&site, &server, "row labels [", "fewlabel restore").await;
    drop(server);

    // A structure that cannot be read at all.
    let mut bytes = whole.clone();
    bytes[..16].fill(b'x');
    std::fs::write(&database, bytes).unwrap();
    let server = site.serve();
    assert!(server.ready().contains("DAMAGED"), "{}", server.ready());
    let info = server.get("/info/").await;
    assert_eq!(info.status, 200);
    assert!(
        info.json()["description"]
            .as_str()
            .unwrap()
            .contains("fewlabel restore")
    );
    assert_eq!(server.get("/livez").await.status, 200);
    let refused = server.get("/datastore/").await;
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (503, Some("damaged"))
    );
    drop(server);

    // And the way back.
    ends(
        0,
        &["restore", &site.text("saved"), "--data", &site.text("back")],
    );
    let server = site.serve_on("studies", "back");
    assert!(!server.ready().contains("READ ONLY"), "{}", server.ready());
    let taken = submit(
        &server,
        "image=a",
        "x.nii.gz",
        &site.label(3, ".nii.gz"),
        json!({}),
    )
    .await;
    assert_eq!(taken.status, 200, "{}", taken.text());
}

#[tokio::test]
async fn files_that_appear_change_and_vanish_are_noticed() {
    let site = Site::new(&["a.nii.gz"]);
    let server = site.serve();
    let total = |wished: i64| move |reply: &Reply| reply.json()["total"] == wished;
    let taken = submit(
        &server,
        "image=a",
        "x.nii.gz",
        &site.label(1, ".nii.gz"),
        json!({}),
    )
    .await;
    assert_eq!(taken.status, 200, "{}", taken.text());

    // A copy that takes its time is not offered before it is complete.
    write_image(&site.path("whole.nii.gz"), 5);
    let bytes = std::fs::read(site.path("whole.nii.gz")).unwrap();
    let target = site.path("studies/b.nii.gz");
    for end in [10, 20, 30, 40, bytes.len()] {
        std::fs::write(&target, &bytes[..end]).unwrap();
        let total = server.get("/datastore/").await.json()["total"].clone();
        assert_eq!(total, 1, "a file of {end} bytes is offered");
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    until(&server, "/datastore/", total(2)).await;

    // Another content under the same id: the label is kept, marked, and not learned from.
    let original = std::fs::read(site.path("studies/a.nii.gz")).unwrap();
    write_image(&site.path("studies/a.nii.gz"), 40);
    let stale = |reply: &Reply| {
        reply
            .text()
            .contains("the image was changed after this label was drawn")
    };
    until(&server, "/datastore/label/info?label=a&tag=final", stale).await;
    let all = server.get("/datastore/?output=all").await.json();
    assert!(
        all["objects"]["a"]["labels"]["final"]["info"]["stale"].is_string(),
        "{all}"
    );
    let label = server.get("/datastore/label?label=a&tag=final").await;
    assert_eq!(label.body, site.label(1, ".nii.gz"));
    let started = server
        .post_json("/train/tiny", r#"{"max_epochs": 1, "steps": 1}"#)
        .await;
    if started.status == 200 {
        let failed = |reply: &Reply| reply.json()["status"] == "ERROR";
        let task = until(&server, "/train/?all=true", |reply| {
            reply.text().contains("ERROR") || failed(reply)
        })
        .await;
        assert!(
            task.text().contains("can be learned from"),
            "{}",
            task.text()
        );
    } else {
        assert!(
            started.text().contains("can be learned from"),
            "{}",
            started.text()
        );
    }
    let confirmed = server
        .send(
            "PUT",
            "/datastore/label/confirm?image=a&client_id=ben",
            &[],
            b"",
        )
        .await;
    assert_eq!(confirmed.status, 200, "{}", confirmed.text());
    assert!(!stale(
        &server.get("/datastore/label/info?label=a&tag=final").await
    ));
    assert!(ends(0, &["audit", "--data", &site.text("data")]).contains("confirm-label"));

    // Back to the first content: the label was drawn on it.
    std::fs::write(site.path("studies/a.nii.gz"), original).unwrap();
    let rescanned = server.post_json("/datastore/rescan", "").await;
    assert_eq!(rescanned.status, 200, "{}", rescanned.text());
    assert!(!stale(
        &server.get("/datastore/label/info?label=a&tag=final").await
    ));

    // Gone and back.
    std::fs::rename(site.path("studies/a.nii.gz"), site.path("away")).unwrap();
    until(&server, "/datastore/", total(1)).await;
    std::fs::rename(site.path("away"), site.path("studies/a.nii.gz")).unwrap();
    let counts = until(&server, "/datastore/", total(2)).await.json();
    assert_eq!(counts["completed"], 1);
    assert!(!stale(
        &server.get("/datastore/label/info?label=a&tag=final").await
    ));

    // Another grid cannot be confirmed.
    let voxels = vec![0.0; 32];
    let steps = [[0.0, 0.0, 3.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let other = Geometry::new([2, 4, 4], [0.0; 3], steps).unwrap();
    write_scan(
        &site.path("studies/a.nii.gz"),
        &Volume::new(other, voxels).unwrap(),
        LabelFormat::NiftiGz,
    )
    .unwrap();
    server.post_json("/datastore/rescan", "").await;
    let refused = server
        .send("PUT", "/datastore/label/confirm?image=a", &[], b"")
        .await;
    assert_eq!(refused.status, 422, "{}", refused.text());
}
