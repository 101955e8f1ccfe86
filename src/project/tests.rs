//! The promises of the project, on files written with `imaging`.

mod faults;
mod images;

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::clock::ManualClock;
use crate::imaging::{Geometry, LabelFormat, Volume, read_label, write_label, write_scan};

/// A project with its folders, on a clock that stands still.
pub(crate) struct Bench {
    pub dir: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    pub project: Project,
}

pub(crate) fn geometry(shape: [usize; 3], origin_lps_mm: [f64; 3]) -> Geometry {
    Geometry::new(
        shape,
        origin_lps_mm,
        [[0.0, 0.0, 2.0], [0.0, 0.5, 0.0], [0.5, 0.0, 0.0]],
    )
    .unwrap()
}

const SHAPE: [usize; 3] = [3, 4, 5];
const ORIGIN_LPS_MM: [f64; 3] = [-10.0, 5.0, 100.0];

pub(crate) fn schema() -> LabelSchema {
    LabelSchema::new(["liver", "spleen"].map(str::to_owned).to_vec()).unwrap()
}

impl Bench {
    /// With images of these names in the studies folder.
    pub async fn with(images: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("studies")).unwrap();
        for name in images {
            Self::write_image(&dir.path().join("studies").join(name));
        }
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let project = Project::open(Self::opening(&dir, &clock)).await.unwrap();
        Self {
            dir,
            clock,
            project,
        }
    }

    pub fn write_image(path: &std::path::Path) {
        let voxels = (0..60u16).map(f32::from).collect();
        let format = if path.extension().unwrap() == "nrrd" {
            LabelFormat::Nrrd
        } else {
            LabelFormat::NiftiGz
        };
        write_scan(
            path,
            &Volume::new(geometry(SHAPE, ORIGIN_LPS_MM), voxels).unwrap(),
            format,
        )
        .unwrap();
    }

    fn opening(dir: &tempfile::TempDir, clock: &Arc<ManualClock>) -> OpenProject {
        OpenProject {
            studies: dir.path().join("studies").into(),
            data: dir.path().join("data"),
            labels: schema(),
            clock: clock.clone(),
            seed: 1,
            settle: Duration::ZERO,
        }
    }

    fn studies(&self) -> PathBuf {
        self.dir.path().join("studies")
    }

    async fn reopen(self) -> Self {
        let Self {
            dir,
            clock,
            project,
        } = self;
        project.close().await;
        drop(project);
        let project = Project::open(Self::opening(&dir, &clock)).await.unwrap();
        Self {
            dir,
            clock,
            project,
        }
    }

    pub async fn stage(&self, bytes: &[u8]) -> Staged {
        let mut writer = self.project.staging().create().await.unwrap();
        writer.write(bytes).await.unwrap();
        writer.finish().await.unwrap()
    }

    /// A staged label file of the given values from the first voxel on, zero elsewhere.
    async fn label_on(&self, geometry: Geometry, values: &[u16], format: LabelFormat) -> Staged {
        let mut voxels = vec![0; geometry.voxel_count()];
        voxels[..values.len()].copy_from_slice(values);
        let path = self.dir.path().join(format!(
            "label{}",
            if format == LabelFormat::SegNrrd {
                ".seg.nrrd"
            } else {
                ".nii.gz"
            }
        ));
        let names = [(1, "liver".to_owned()), (2, "spleen".to_owned())];
        write_label(
            &path,
            &Volume::new(geometry, voxels).unwrap(),
            &names,
            format,
        )
        .unwrap();
        self.stage(&std::fs::read(&path).unwrap()).await
    }

    async fn label(&self, values: &[u16]) -> Staged {
        self.label_on(geometry(SHAPE, ORIGIN_LPS_MM), values, LabelFormat::NiftiGz)
            .await
    }

    pub async fn submit(
        &self,
        image: &str,
        tag: &str,
        values: &[u16],
    ) -> Result<LabelRow, ProjectError> {
        let staged = self.label(values).await;
        self.project
            .submit_label(SubmitLabel::new(
                id(image),
                self::tag(tag),
                staged,
                "x.nii.gz",
                "ann",
            ))
            .await
    }

    fn staged_files(&self) -> usize {
        std::fs::read_dir(self.project.data_dir().join("staging"))
            .unwrap()
            .count()
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let folders = std::fs::read_dir(self.project.data_dir().join("blobs")).unwrap();
        folders
            .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
            .map(|file| file.unwrap().path())
            .collect()
    }

    /// Actor, action and subject of every audit row; the log is whole.
    async fn audit(&self) -> Vec<(String, String, String)> {
        assert_eq!(self.project.check().await.unwrap(), [""; 0]);
        let database = &self.project.store().database;
        let rows = database.audit_page(0, i64::MIN).await.unwrap();
        rows.into_iter()
            .map(|row| (row.actor, row.action, row.subject))
            .collect()
    }
}

pub(crate) fn id(text: &str) -> ImageId {
    ImageId::parse(text).unwrap()
}

pub(crate) fn tag(text: &str) -> Tag {
    Tag::parse(text).unwrap()
}

fn map(value: Value) -> Map {
    value.as_object().cloned().unwrap()
}

/// The values that training reads, from the first voxel on.
fn trained_on(bench: &Bench, label: &LabelRow, count: usize) -> Vec<u16> {
    let file = read_label(
        &bench.project.training_label_path(label),
        &Limits::default().budget,
    )
    .unwrap();
    assert!(
        file.geometry
            .same_grid(&geometry(SHAPE, ORIGIN_LPS_MM), 1e-3)
    );
    file.layers[0][..count].to_vec()
}

#[tokio::test]
async fn a_submit_keeps_the_bytes_the_parameters_and_who_sent_them() {
    let bench = Bench::with(&["case.with.dots.nii.gz"]).await;
    let staged = bench.label(&[1, 2]).await;
    let sent = std::fs::read(&staged.path).unwrap();
    let params = map(
        json!({"label_info": [{"name": "spleen", "idx": 3}, {"name": "liver", "idx": 9}], "client_id": "me"}),
    );
    let new = SubmitLabel::new(
        id("case.with.dots"),
        Tag::accepted(),
        staged,
        "C:\\x\\case.NII.GZ",
        "ann",
    );
    let job = NewJob {
        kind: JobKind::Score,
        payload: json!({}),
        request: json!({}),
    };
    let row = bench
        .project
        .submit_label(SubmitLabel {
            params,
            jobs: vec![job],
            ..new
        })
        .await
        .unwrap();

    assert_eq!(
        (row.revision, row.parent, row.author.as_str(), &row.origin),
        (1, None, "ann", &Origin::Manual)
    );
    assert_eq!(
        (row.file_name().as_str(), row.ts),
        ("case.with.dots.nii.gz", 1_700_000_000)
    );
    assert_eq!(
        row.info.keys().collect::<Vec<_>>(),
        ["label_info", "client_id", "ts", "name"]
    );
    assert_eq!(row.annotated, ["liver", "spleen"]);
    assert_eq!(
        row.image_sha256,
        bench
            .project
            .image_sha256(&id("case.with.dots"))
            .await
            .unwrap()
    );
    assert_eq!(std::fs::read(bench.project.label_path(&row)).unwrap(), sent);
    assert_eq!(trained_on(&bench, &row, 3), [2, 1, 0]);
    assert_eq!(
        bench.project.label(&row.image, &row.tag).await.unwrap(),
        Some(row)
    );
    assert_eq!(
        bench.project.jobs().waiting(JobKind::Score).await.unwrap(),
        1
    );
    assert_eq!(
        bench.audit().await,
        [(
            "ann".to_owned(),
            "submit-label".to_owned(),
            "case.with.dots".to_owned()
        )]
    );
    assert_eq!(bench.staged_files(), 0);

    // Everything is there after a restart.
    let bench = bench.reopen().await;
    assert_eq!(
        bench.project.counts().await.unwrap(),
        Counts {
            total: 1,
            completed: 1,
            label_tags: vec![("final".to_owned(), 1)]
        }
    );
}

#[tokio::test]
async fn a_label_that_does_not_fit_is_refused_and_leaves_nothing() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let submit = async |staged, name: &str, params: Value| {
        let new = SubmitLabel::new(id("a"), Tag::accepted(), staged, name, "ann");
        bench
            .project
            .submit_label(SubmitLabel {
                params: map(params),
                ..new
            })
            .await
    };
    let grid = |shape, x_mm| geometry(shape, [x_mm, ORIGIN_LPS_MM[1], ORIGIN_LPS_MM[2]]);
    let one_more = bench
        .label_on(grid([4, 4, 5], -10.0), &[1], LabelFormat::NiftiGz)
        .await;
    let shifted = bench
        .label_on(grid(SHAPE, -10.3), &[1], LabelFormat::NiftiGz)
        .await;
    let cases = [
        (
            one_more,
            "x.nii.gz",
            json!({}),
            "label is 5x4x4, image is 5x4x3: export with the source volume as reference",
        ),
        (shifted, "x.nii.gz", json!({}), "lie differently"),
        (
            bench.label(&[1]).await,
            "x.nii.gz",
            json!({"label_info": [{"name": "kidney"}]}),
            "liver, spleen",
        ),
        (
            bench.label(&[3]).await,
            "x.nii.gz",
            json!({}),
            "liver, spleen",
        ),
        (bench.label(&[1]).await, "x.txt", json!({}), "must end with"),
        (
            bench.stage(b"no label at all").await,
            "x.nii.gz",
            json!({}),
            "the label is refused",
        ),
        (bench.stage(b"12345").await, "x.bin", json!({}), "60 voxels"),
    ];
    for (staged, name, params, expected) in cases {
        match submit(staged, name, params).await {
            Err(ProjectError::Invalid(text)) => assert!(text.contains(expected), "{text}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let unknown = SubmitLabel::new(
        id("b"),
        Tag::accepted(),
        bench.label(&[1]).await,
        "x.nii.gz",
        "ann",
    );
    assert!(matches!(
        bench.project.submit_label(unknown).await,
        Err(ProjectError::NotFound(_))
    ));
    assert_eq!((bench.staged_files(), bench.blobs().len()), (0, 0));
    assert_eq!(bench.project.all_labels().await.unwrap(), []);
    assert_eq!(bench.audit().await, []);
}

#[tokio::test]
async fn rounding_of_the_header_is_tolerated() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let near = geometry(SHAPE, ORIGIN_LPS_MM.map(|mm| mm + 0.005));
    let staged = bench.label_on(near, &[1], LabelFormat::NiftiGz).await;
    let row = bench
        .project
        .submit_label(SubmitLabel::new(
            id("a"),
            Tag::accepted(),
            staged,
            "x.nii.gz",
            "ann",
        ))
        .await
        .unwrap();
    assert_eq!(trained_on(&bench, &row, 1), [1]);
}

#[tokio::test]
async fn raw_and_cropped_labels_land_on_their_voxels() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let mut raw = vec![0u8; 60];
    raw[7] = 2;
    let new = SubmitLabel::new(
        id("a"),
        tag("raw"),
        bench.stage(&raw).await,
        "mask.bin",
        "ann",
    );
    let row = bench.project.submit_label(new).await.unwrap();
    assert_eq!(
        (row.file_name().as_str(), trained_on(&bench, &row, 8)[7]),
        ("a.bin", 2)
    );

    // The box of one voxel at [z, y, x] = [1, 2, 3].
    let corner = geometry(SHAPE, ORIGIN_LPS_MM).to_world([1.0, 2.0, 3.0]);
    let cropped = |shape| bench.label_on(geometry(shape, corner), &[2], LabelFormat::SegNrrd);
    let new = SubmitLabel::new(
        id("a"),
        tag("crop"),
        cropped([1, 1, 1]).await,
        "s.seg.nrrd",
        "ann",
    );
    let row = bench.project.submit_label(new).await.unwrap();
    let values = trained_on(&bench, &row, 60);
    assert_eq!(
        values.iter().position(|value| *value == 2),
        Some(20 + 2 * 5 + 3)
    );
    assert_eq!(values.iter().filter(|value| **value > 0).count(), 1);
    // A box that leaves the image is no crop of it.
    let new = SubmitLabel::new(
        id("a"),
        tag("crop"),
        cropped([1, 1, 3]).await,
        "s.seg.nrrd",
        "ann",
    );
    assert!(matches!(
        bench.project.submit_label(new).await,
        Err(ProjectError::Invalid(_))
    ));
}

#[tokio::test]
async fn revisions_are_kept_and_tags_stay_in_their_order() {
    let bench = Bench::with(&["a.nii.gz", "b.nii.gz"]).await;
    let first = bench.submit("a", "final", &[1]).await.unwrap();
    bench.submit("a", "original", &[2]).await.unwrap();
    let second = bench.submit("a", "final", &[2]).await.unwrap();
    bench.submit("b", "original", &[2]).await.unwrap();
    assert_eq!((second.revision, second.parent), (2, Some(1)));
    assert_eq!(
        std::fs::read(bench.project.label_path(&first))
            .map(|bytes| bytes.len() as u64)
            .unwrap(),
        first.size_bytes
    );

    let tags = async || {
        bench
            .project
            .labels_of(&id("a"))
            .await
            .unwrap()
            .into_iter()
            .map(|row| row.tag.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(tags().await, ["final", "original"]);
    let counts = bench.project.counts().await.unwrap();
    assert_eq!(
        (counts.completed, counts.label_tags),
        (1, vec![("final".to_owned(), 1), ("original".to_owned(), 2)])
    );

    let reader = bench.project.acting_as("lead");
    reader
        .delete_label(&id("a"), &tag("final"), None)
        .await
        .unwrap();
    reader
        .delete_label(&id("a"), &tag("never there"), None)
        .await
        .unwrap();
    assert_eq!(
        bench.project.label(&id("a"), &tag("final")).await.unwrap(),
        None
    );
    let third = bench.submit("a", "final", &[1, 1]).await.unwrap();
    assert_eq!((third.revision, third.parent), (4, None));
    assert_eq!(tags().await, ["original", "final"]);
    let history = bench
        .project
        .history(&id("a"), &tag("final"))
        .await
        .unwrap();
    let authors: Vec<_> = history
        .iter()
        .map(|row| (row.revision, row.deleted, row.author.as_str()))
        .collect();
    assert_eq!(
        authors,
        [
            (1, false, "ann"),
            (2, false, "ann"),
            (3, true, "lead"),
            (4, false, "ann")
        ]
    );

    let meta = map(json!({"segmentationMeta": {"status": "approved"}}));
    bench
        .project
        .merge_label_info(&id("a"), &tag("final"), meta.clone())
        .await
        .unwrap();
    assert_eq!(
        bench
            .project
            .label(&id("a"), &tag("final"))
            .await
            .unwrap()
            .unwrap()
            .info["segmentationMeta"]["status"],
        "approved"
    );
    assert!(matches!(
        bench
            .project
            .merge_label_info(&id("b"), &tag("final"), meta)
            .await,
        Err(ProjectError::NotFound(_))
    ));
    assert_eq!(bench.audit().await.len(), 7);
}

#[tokio::test]
async fn the_second_of_two_annotators_is_told_and_a_repeat_adds_nothing() {
    let bench = Bench::with(&["a.nii.gz"]).await;
    let submit = async |values: &[u16], expected, key: Option<&str>| {
        let new = SubmitLabel::new(
            id("a"),
            Tag::accepted(),
            bench.label(values).await,
            "x.nii.gz",
            "ann",
        );
        let job = NewJob {
            kind: JobKind::Score,
            payload: json!({}),
            request: json!({}),
        };
        let new = SubmitLabel {
            expected_revision: expected,
            idempotency_key: key.map(str::to_owned),
            jobs: vec![job],
            ..new
        };
        bench.project.submit_label(new).await
    };
    assert_eq!(submit(&[1], Some(0), Some("k1")).await.unwrap().revision, 1);
    assert!(
        matches!(submit(&[2], Some(0), None).await, Err(ProjectError::Conflict(text)) if text.contains("revision 1, not 0"))
    );
    assert_eq!(submit(&[2], Some(1), None).await.unwrap().revision, 2);
    // The repeat of an old submit is answered with what it made, whatever came since.
    assert_eq!(submit(&[1], Some(0), Some("k1")).await.unwrap().revision, 1);
    assert!(matches!(
        submit(&[2], None, Some("k1")).await,
        Err(ProjectError::Conflict(_))
    ));
    assert_eq!(
        bench
            .project
            .history(&id("a"), &Tag::accepted())
            .await
            .unwrap()
            .len(),
        2
    );
    // A refused submit brings no job.
    assert_eq!(
        bench.project.jobs().waiting(JobKind::Score).await.unwrap(),
        2
    );
}

#[tokio::test]
async fn submits_at_the_same_time_are_all_kept() {
    let bench = Arc::new(Bench::with(&["a.nii.gz"]).await);
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let bench = bench.clone();
            tokio::spawn(async move {
                bench
                    .submit("a", "final", &vec![1; n + 1])
                    .await
                    .unwrap()
                    .revision
            })
        })
        .collect();
    let mut revisions = Vec::new();
    for task in tasks {
        revisions.push(task.await.unwrap());
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=12).collect::<Vec<i64>>());
}
