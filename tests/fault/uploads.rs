//! Uploads cut at every byte and with every bit flipped: refused before anything is kept, or the same label.

use axum::body::Body;
use axum::http::Request;
use fewlabel::project::{ImageId, Project, Tag};
use fewlabel::rest::{App, AppParts, Offers, router};
use fewlabel::rng::Rng;
use fewlabel::rounds::registry::Registry;
use fewlabel::sessions::Sessions;
use fewlabel::telemetry::LogRing;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::http::multipart;
use crate::{Amount, site};

const IMAGES: usize = 10;

/// Sides of an image in voxels, `[z, y, x]`.
fn shape(image: usize) -> [usize; 3] {
    [1 + image % 4, 2 + image % 3, 1 + image / 2]
}

fn app(project: &Project) -> axum::Router {
    router::router(App::new(AppParts {
        project: project.clone(),
        registry: Registry::new(project),
        sessions: Sessions::new(project),
        logs: LogRing::default(),
        device: "cpu".to_owned(),
        infer_slots: 1,
        cors_origins: Vec::new(),
        hosts: None,
        prefix: String::new(),
        offers: Offers::default(),
        worker: watch::channel(false).1,
    }))
}

async fn put(app: &axum::Router, image: usize, label: &[u8]) -> u16 {
    let (content_type, body) = multipart(&[("label", "label.nii.gz", label)]);
    let request = Request::put(format!("/datastore/label?image=image_{image}&tag=final"))
        .header("Content-Type", content_type)
        .body(Body::from(body))
        .unwrap();
    app.clone()
        .oneshot(request)
        .await
        .unwrap()
        .status()
        .as_u16()
}

pub fn run(amount: &Amount) -> Result<String, String> {
    let folder = site::folder();
    std::fs::create_dir(folder.path().join("studies")).unwrap();
    for image in 0..IMAGES {
        let path = folder.path().join(format!("studies/image_{image}.nii.gz"));
        site::write_image(&path, shape(image));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (mut cut, mut flipped, mut same, mut bytes) = (0, 0, 0, 0);
    runtime.block_on(async {
        let project = site::open(folder.path()).await;
        let app = app(&project);
        let mut rng = Rng::new(1).named("uploads");
        for number in 0..amount.uploads {
            let image = number % IMAGES;
            let id = ImageId::parse(&format!("image_{image}")).unwrap();
            let count = shape(image).iter().product();
            let voxels = (0..count).map(|_| rng.below(3) as u16).collect();
            let label = site::label_of(shape(image), voxels);
            assert_eq!(put(&app, image, &label).await, 200);
            let current = async || project.label(&id, &Tag::accepted()).await.unwrap().unwrap();
            let sent = current().await;
            let mut revision = sent.revision;
            bytes += label.len();
            let mut damaged: Vec<Vec<u8>> = (0..label.len()).map(|n| label[..n].to_vec()).collect();
            cut += damaged.len();
            for bit in 0..label.len() * 8 {
                let mut other = label.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                damaged.push(other);
            }
            flipped += label.len() * 8;
            for (n, other) in damaged.iter().enumerate() {
                let status = put(&app, image, other).await;
                let now = current().await;
                if status == 200 {
                    // A field of gzip that says nothing about the content.
                    assert_eq!(
                        project.training_label_path(&now),
                        project.training_label_path(&sent),
                        "upload {number}, damage {n} is another label"
                    );
                    assert_eq!(now.annotated, sent.annotated);
                    revision += 1;
                    same += 1;
                } else {
                    assert!(
                        (400..500).contains(&status),
                        "upload {number}, damage {n}: {status}"
                    );
                }
                assert_eq!(now.revision, revision, "upload {number}, damage {n}");
            }
        }
        let staged = std::fs::read_dir(project.data_dir().join("staging")).unwrap();
        assert_eq!(staged.count(), 0);
        assert_eq!(project.check().await.unwrap(), Vec::<String>::new());
        project.close().await;
    });
    Ok(format!(
        "{} generated .nii.gz labels ({bytes} bytes): {} of {} cuts and bit flips ({cut} cuts, {flipped} flips) refused with 4xx and nothing kept, {same} accepted with the same voxels",
        amount.uploads,
        cut + flipped - same,
        cut + flipped
    ))
}
