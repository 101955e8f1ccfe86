//! Folders with a few small studies, and labels for them.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewlabel::clock::SystemClock;
use fewlabel::imaging::{Geometry, LabelFormat, Volume, write_label, write_scan};
use fewlabel::model::LabelSchema;
use fewlabel::project::{ImageId, LabelRow, OpenProject, Project, SubmitLabel, Tag};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

pub const STUDIES: [&str; 3] = ["case_1", "case_2", "case_3"];
pub const SHAPE: [usize; 3] = [3, 4, 5];

pub fn geometry(shape: [usize; 3]) -> Geometry {
    let steps = [[0.0, 0.0, 3.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    Geometry::new(shape, [0.0; 3], steps).unwrap()
}

/// A folder in memory where there is one: what is tested survives a kill of the process, not of the machine.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// Makes `studies` in `dir`.
pub fn make_studies(dir: &Path) {
    std::fs::create_dir_all(dir.join("studies")).unwrap();
    for name in STUDIES {
        write_image(&dir.join(format!("studies/{name}.nii.gz")), SHAPE);
    }
}

pub fn write_image(path: &Path, shape: [usize; 3]) {
    let voxels = (0..shape.iter().product::<usize>())
        .map(|n| n as f32)
        .collect();
    let volume = Volume::new(geometry(shape), voxels).unwrap();
    write_scan(path, &volume, LabelFormat::NiftiGz).unwrap();
}

/// Bytes of a label file; every `variant` below 2^32 has others.
pub fn label(variant: u32) -> Vec<u8> {
    let mut voxels = vec![0u16; SHAPE.iter().product()];
    for (bit, voxel) in voxels.iter_mut().take(32).enumerate() {
        *voxel = (variant >> bit & 1) as u16;
    }
    voxels[40] = 2;
    // Packed as another program would: the file as sent and the normalised one are two blobs.
    let mut plain = Vec::new();
    GzDecoder::new(label_of(SHAPE, voxels).as_slice())
        .read_to_end(&mut plain)
        .unwrap();
    let mut packed = GzEncoder::new(Vec::new(), Compression::none());
    packed.write_all(&plain).unwrap();
    packed.finish().unwrap()
}

pub fn label_of(shape: [usize; 3], voxels: Vec<u16>) -> Vec<u8> {
    let dir = folder();
    let path = dir.path().join("label.nii.gz");
    let volume = Volume::new(geometry(shape), voxels).unwrap();
    write_label(&path, &volume, &[], LabelFormat::NiftiGz).unwrap();
    std::fs::read(path).unwrap()
}

/// Opens the project in `dir` as its server.
pub async fn open(dir: &Path) -> Project {
    let open = OpenProject {
        studies: dir.join("studies").into(),
        data: dir.join("data"),
        labels: LabelSchema::from_list("liver,spleen").unwrap(),
        clock: Arc::new(SystemClock),
        seed: 1,
        settle: std::time::Duration::ZERO,
    };
    Project::open(open).await.unwrap()
}

/// One submit, from the bytes on.
pub async fn submit(
    project: &Project,
    image: &str,
    tag: &str,
    bytes: &[u8],
    key: &str,
) -> Result<LabelRow, fewlabel::project::ProjectError> {
    let mut writer = project.staging().create().await?;
    writer.write(bytes).await?;
    let staged = writer.finish().await?;
    let (image, tag) = (ImageId::parse(image)?, Tag::parse(tag)?);
    let submit = SubmitLabel {
        idempotency_key: Some(key.to_owned()),
        ..SubmitLabel::new(image, tag, staged, "label.nii.gz", "ann")
    };
    project.submit_label(submit).await
}

/// The revisions of a label with their bytes, oldest first.
pub async fn revisions(project: &Project, image: &str, tag: &str) -> Vec<(i64, Vec<u8>)> {
    let (image, tag) = (ImageId::parse(image).unwrap(), Tag::parse(tag).unwrap());
    let history = project.history(&image, &tag).await.unwrap();
    let bytes = |row: LabelRow| {
        (
            row.revision,
            std::fs::read(project.label_path(&row)).unwrap(),
        )
    };
    history.into_iter().map(bytes).collect()
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            // With its time: a study whose time is another one is looked at anew.
            std::fs::copy(&path, &target).unwrap();
            let modified = path.metadata().unwrap().modified().unwrap();
            let file = std::fs::File::options().append(true).open(&target).unwrap();
            file.set_modified(modified).unwrap();
        }
    }
}
