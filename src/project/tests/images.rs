use super::*;

async fn ids(project: &Project) -> Vec<String> {
    project
        .images()
        .await
        .unwrap()
        .into_iter()
        .map(|image| image.id.to_string())
        .collect()
}

#[tokio::test]
async fn a_scan_of_the_folder_follows_its_files() {
    let bench = Bench::with(&["b.nii.gz", "a.x.nrrd"]).await;
    let studies = bench.studies();
    for name in [".hidden.nii.gz", "x.seg.nrrd", "b.nrrd", "notes.txt"] {
        std::fs::write(studies.join(name), "x").unwrap();
    }
    std::fs::create_dir(studies.join("folder.nii.gz")).unwrap();
    assert_eq!(ids(&bench.project).await, ["a.x", "b"]);
    let image = bench.project.image(&id("a.x")).await.unwrap().unwrap();
    assert_eq!(
        (image.ext.as_str(), image.name.as_str(), image.uploaded),
        (".nrrd", "a.x.nrrd", false)
    );
    assert_eq!(image.info.keys().collect::<Vec<_>>(), ["ts", "name"]);
    assert_eq!(image.sha256, None);
    let sha256 = bench.project.image_sha256(&id("a.x")).await.unwrap();
    assert_eq!(
        bench
            .project
            .image(&id("a.x"))
            .await
            .unwrap()
            .unwrap()
            .sha256,
        Some(sha256)
    );

    // Two files of one id: the first by name is the image, the other one is named.
    let found = bench.project.rescan().await.unwrap();
    assert_eq!(
        (found.added.len(), found.changed.len(), found.vanished.len()),
        (0, 0, 0)
    );
    assert_eq!(
        found
            .skipped
            .iter()
            .map(|(file, _)| file.as_str())
            .collect::<Vec<_>>(),
        ["b.nrrd"]
    );

    bench.submit("b", "final", &[1]).await.unwrap();
    std::fs::rename(studies.join("b.nii.gz"), bench.dir.path().join("away")).unwrap();
    std::fs::remove_file(studies.join("b.nrrd")).unwrap();
    Bench::write_image(&studies.join("c.nii.gz"));
    std::fs::write(studies.join("a.x.nrrd"), "other").unwrap();
    let found = bench.project.rescan().await.unwrap();
    assert_eq!(
        (found.added, found.changed, found.vanished),
        (vec![id("c")], vec![id("a.x")], vec![id("b")])
    );
    assert_eq!(ids(&bench.project).await, ["a.x", "c"]);
    assert_eq!(
        bench
            .project
            .image(&id("a.x"))
            .await
            .unwrap()
            .unwrap()
            .sha256,
        None
    );
    assert!(matches!(
        bench.project.image_sha256(&id("b")).await,
        Err(ProjectError::NotFound(_))
    ));
    assert_eq!(bench.project.counts().await.unwrap().completed, 0);

    // It comes back with its labels, at its place.
    std::fs::rename(bench.dir.path().join("away"), studies.join("b.nii.gz")).unwrap();
    assert_eq!(bench.project.rescan().await.unwrap().added, [id("b")]);
    assert_eq!(ids(&bench.project).await, ["a.x", "b", "c"]);
    assert_eq!(bench.project.counts().await.unwrap().completed, 1);
}

#[tokio::test]
async fn a_file_changed_since_the_last_scan_is_read_as_it_is() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let other = Volume::new(geometry([2, 2, 2], ORIGIN_LPS_MM), vec![0.0; 8]).unwrap();
    write_scan(
        &bench.studies().join("a.nii.gz"),
        &other,
        LabelFormat::NiftiGz,
    )
    .unwrap();
    match bench.submit("a", "final", &[1]).await {
        Err(ProjectError::Invalid(text)) => assert!(text.contains("image is 2x2x2"), "{text}"),
        other => panic!("{other:?}"),
    }
    std::fs::remove_file(bench.studies().join("a.nii.gz")).unwrap();
    assert_eq!(bench.project.rescan().await.unwrap().vanished, [id("a")]);
    assert!(matches!(
        bench.submit("a", "final", &[1]).await,
        Err(ProjectError::NotFound(_))
    ));
}

#[tokio::test]
async fn a_deleted_image_stays_away_until_its_file_changes() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    bench
        .project
        .set_image_info(&id("a"), map(json!({"note": 1})))
        .await
        .unwrap();
    bench.submit("a", "final", &[1]).await.unwrap();
    bench.project.delete_image(&id("a")).await.unwrap();
    assert!(matches!(
        bench.project.delete_image(&id("a")).await,
        Err(ProjectError::NotFound(_))
    ));
    assert_eq!(bench.project.rescan().await.unwrap(), Rescan::default());
    assert_eq!(ids(&bench.project).await, [""; 0]);
    assert!(bench.studies().join("a.nii.gz").exists());

    std::fs::write(bench.studies().join("a.nii.gz"), "changed").unwrap();
    assert_eq!(bench.project.rescan().await.unwrap().added, [id("a")]);
    assert!(
        !bench
            .project
            .image(&id("a"))
            .await
            .unwrap()
            .unwrap()
            .info
            .contains_key("note")
    );
    assert_eq!(bench.project.labels_of(&id("a")).await.unwrap(), []);
    assert_eq!(
        bench
            .project
            .history(&id("a"), &Tag::accepted())
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn an_upload_is_checked_kept_as_a_blob_and_keeps_its_labels_when_replaced() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let upload = async |path: PathBuf, image: Option<&str>, name: &str, info: Value| {
        let staged = bench.stage(&std::fs::read(path).unwrap()).await;
        bench
            .project
            .add_image(image.map(id), staged, name, map(info))
            .await
    };
    let scan = bench.dir.path().join("scan.nii.gz");
    Bench::write_image(&scan);
    let new = upload(
        scan.clone(),
        None,
        "/home/me/CT: one.two.NII.GZ",
        json!({"user": "me", "name": "x"}),
    )
    .await
    .unwrap();
    let image = bench.project.image(&new).await.unwrap().unwrap();
    assert_eq!(
        (new.as_str(), image.name.as_str(), image.uploaded),
        ("CT: one.two", "CT: one.two.nii.gz", true)
    );
    assert_eq!(
        (image.ts, image.info["name"].as_str()),
        (1_700_000_000, Some("CT: one.two.nii.gz"))
    );
    assert_eq!(
        image.info.keys().collect::<Vec<_>>(),
        ["ts", "name", "user"]
    );
    assert_eq!(
        std::fs::read(&image.path).unwrap(),
        std::fs::read(&scan).unwrap()
    );

    // In front of a file of the folder, with its labels.
    bench.submit("a", "final", &[1]).await.unwrap();
    assert_eq!(
        upload(scan.clone(), Some("a"), "x.nii.gz", json!({}))
            .await
            .unwrap(),
        id("a")
    );
    assert_eq!(bench.project.rescan().await.unwrap(), Rescan::default());
    assert!(
        bench
            .project
            .image(&id("a"))
            .await
            .unwrap()
            .unwrap()
            .uploaded
    );
    assert_eq!(bench.project.labels_of(&id("a")).await.unwrap().len(), 1);
    assert_eq!(bench.submit("a", "final", &[2]).await.unwrap().revision, 2);

    let text = bench.dir.path().join("text");
    std::fs::write(&text, "no scan").unwrap();
    let blobs = bench.blobs().len();
    for (path, name) in [
        (text.clone(), "x.nii.gz"),
        (scan.clone(), "x.dcm"),
        (scan.clone(), ".nii.gz"),
        (scan, ".."),
    ] {
        let refused = upload(path, None, name, json!({})).await;
        assert!(
            matches!(refused, Err(ProjectError::Invalid(_))),
            "{name}: {refused:?}"
        );
    }
    assert_eq!((bench.staged_files(), bench.blobs().len()), (0, blobs));
}

#[tokio::test]
async fn labels_of_an_earlier_server_are_taken_over_once() {
    let bench = Bench::with(&["a.nii.gz", "b.nii.gz"]).await;
    let Bench {
        dir,
        clock,
        project,
    } = bench;
    project.close().await;
    drop(project);
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    let labels = dir.path().join("studies/labels");
    let write = |tag: &str, file: &str, value: u16| {
        std::fs::create_dir_all(labels.join(tag)).unwrap();
        let volume = Volume::new(geometry(SHAPE, ORIGIN_LPS_MM), vec![value; 60]).unwrap();
        write_label(
            &labels.join(tag).join(file),
            &volume,
            &[],
            LabelFormat::NiftiGz,
        )
        .unwrap();
    };
    write("final", "a.nii.gz", 1);
    write("original", "a.nii.gz", 2);
    write("final", "b.nii.gz", 9);
    write("final", "gone.nii.gz", 1);
    let label = json!({"ext": ".nii.gz", "info": {"ts": 1, "name": "a.nii.gz", "label_info": [{"name": "spleen", "idx": 1}]}});
    let image = json!({"ext": ".nii.gz", "info": {"ts": 1, "name": "a.nii.gz", "strategy": {"first": {"ts": 1, "client_id": "c"}}}});
    let index = json!({"objects": {"a": {"image": image, "labels": {"final": label}}}});
    std::fs::write(
        dir.path().join("studies/datastore_v2.json"),
        index.to_string(),
    )
    .unwrap();

    let project = Project::open(Bench::opening(&dir, &clock)).await.unwrap();
    let bench = Bench {
        dir,
        clock,
        project,
    };
    let rows = bench.project.all_labels().await.unwrap();
    let found: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.image.as_str(),
                row.tag.as_str(),
                row.author.as_str(),
                &row.origin,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("a", "final", "import", &Origin::Import),
            ("a", "original", "import", &Origin::Import)
        ]
    );
    assert_eq!(
        (trained_on(&bench, &rows[0], 1), rows[0].annotated.join(" ")),
        (vec![2], "spleen".to_owned())
    );
    assert_eq!(
        (&rows[0].info["ts"], &rows[0].info["name"]),
        (&json!(1), &json!("a.nii.gz"))
    );
    assert_eq!(
        bench.project.image(&id("a")).await.unwrap().unwrap().info["strategy"]["first"]["client_id"],
        "c"
    );
    let refused = bench
        .audit()
        .await
        .into_iter()
        .filter(|entry| entry.1 == "import-refused")
        .count();
    assert_eq!(refused, 2);

    // A label deleted afterwards does not come back, and the folder is as it was.
    bench
        .project
        .delete_label(&id("a"), &Tag::accepted(), None)
        .await
        .unwrap();
    let bench = bench.reopen().await;
    assert_eq!(bench.project.all_labels().await.unwrap().len(), 1);
    assert!(bench.studies().join("labels/final/a.nii.gz").exists());
}
