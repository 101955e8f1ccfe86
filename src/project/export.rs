//! Writing the project as a folder that others read: a MONAI Label studies folder, or the layout of
//! the Medical Segmentation Decathlon.
//!
//! The folder is filled under a temporary name and gets its own when it is complete.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ids::{ImageId, Tag};
use super::monai::INDEX;
use super::{ImageRow, LabelRow, Map, Part, Project, ProjectError};
use crate::imaging::{self, LabelFormat};
use crate::store::{Partial, StoreError};

/// Which layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `<id><ext>`, `labels/<tag>/<id><ext>` as they were sent, `datastore_v2.json`.
    Monai,
    /// `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs`, all `.nii.gz`, and `dataset.json`.
    Msd,
}

/// What is done with image files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFiles {
    /// Copied.
    Copy,
    /// Symbolic links; whoever writes through one changes the original.
    Link,
    /// Left out.
    None,
}

/// What an export wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// Images in the index.
    pub images: usize,
    /// Label files.
    pub labels: usize,
    /// Labels that were left out because their image was changed since.
    pub stale: usize,
}

/// Files of a case, ready to be written.
struct Case {
    image: ImageRow,
    labels: Vec<(LabelRow, PathBuf)>,
}

impl Project {
    /// The document that MONAI Label keeps as `datastore_v2.json`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn document(&self) -> Result<Value, ProjectError> {
        let mut objects = Map::new();
        for image in self.images().await? {
            let entry = json!({ "image": { "ext": image.ext, "info": image.info }, "labels": {} });
            objects.insert(image.id.to_string(), entry);
        }
        for label in self.all_labels().await? {
            if let Some(object) = objects.get_mut(label.image.as_str()) {
                let entry = json!({ "ext": label.ext, "info": label.info });
                object["labels"][label.tag.as_str()] = entry;
            }
        }
        let (title, about) = self.title().await?;
        Ok(json!({
            "name": title,
            "description": about,
            "images_dir": ".",
            "labels_dir": "labels",
            "objects": objects,
        }))
    }

    /// Name and description, those of an earlier server where there was one.
    async fn title(&self) -> Result<(String, String), ProjectError> {
        let database = &self.store().database;
        let title = database.setting("title").await?;
        let about = database.setting("about").await?;
        Ok((
            title.unwrap_or_else(|| self.name()),
            about.unwrap_or_else(|| "Labels kept by Fewlabel".to_owned()),
        ))
    }

    /// Writes the current labels, with their images, to a new folder.
    ///
    /// # Errors
    /// [`ProjectError::Conflict`] when `out` is there and not empty; when a file cannot be written.
    /// `out` is not made then.
    pub async fn export(
        &self,
        out: &Path,
        format: Format,
        images: ImageFiles,
    ) -> Result<Exported, ProjectError> {
        let mut labels: std::collections::HashMap<ImageId, Vec<_>> = Default::default();
        for label in self.all_labels().await? {
            let path = match format {
                Format::Monai => self.label_path(&label),
                Format::Msd => self.training_label_path(&label),
            };
            labels
                .entry(label.image.clone())
                .or_default()
                .push((label, path));
        }
        let cases: Vec<Case> = self
            .images()
            .await?
            .into_iter()
            .map(|image| Case {
                labels: labels.remove(&image.id).unwrap_or_default(),
                image,
            })
            .collect();
        let budget = self.limits.budget;
        let (out, fetch) = (out.to_owned(), Fetch::of(self));
        match format {
            Format::Monai => {
                let document = self.document().await?;
                write(move || monai(&out, &cases, images, &document, &(fetch, budget))).await
            }
            Format::Msd => {
                let dataset = Dataset {
                    stale: self.stale_labels().await?,
                    test: self.parts_for_test().await?,
                    title: self.title().await?,
                    names: self.schema().names().to_vec(),
                    reading: (fetch, budget),
                };
                write(move || dataset.write(&out, cases, images)).await
            }
        }
    }

    /// Test images, without deciding for those that have no part yet.
    async fn parts_for_test(&self) -> Result<HashSet<ImageId>, ProjectError> {
        if self.read_only().is_none() {
            let rows = self.split().await?.into_iter();
            return Ok(rows
                .filter(|row| row.part == Part::Test)
                .map(|row| row.image)
                .collect());
        }
        let images = self.store().database.test_images().await?;
        Ok(images
            .iter()
            .filter_map(|id| ImageId::parse(id).ok())
            .collect())
    }
}

async fn write(
    work: impl FnOnce() -> Result<Exported, ProjectError> + Send + 'static,
) -> Result<Exported, ProjectError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(StoreError::from)?
}

fn monai(
    out: &Path,
    cases: &[Case],
    images: ImageFiles,
    document: &Value,
    reading: &Reading,
) -> Result<Exported, ProjectError> {
    let partial = Partial::beside(out)?;
    let mut exported = Exported::default();
    for tag in ["final", "original"] {
        std::fs::create_dir_all(partial.path().join("labels").join(tag))?;
    }
    for case in cases {
        exported.images += 1;
        let to = partial.path().join(&case.image.name);
        if case.image.is_series && images != ImageFiles::None {
            rewrite(&case.image, &to, reading)?;
        } else {
            place(&case.image.path, &to, images)?;
        }
        for (label, path) in &case.labels {
            let dir = partial.path().join("labels").join(label.tag.as_str());
            std::fs::create_dir_all(&dir)?;
            place(path, &dir.join(label.file_name()), ImageFiles::Copy)?;
            exported.labels += 1;
        }
    }
    write_json(&partial.path().join(INDEX), document)?;
    partial.finish(out)?;
    Ok(exported)
}

/// What an MSD folder says besides its files.
struct Dataset {
    stale: HashSet<(ImageId, Tag)>,
    test: HashSet<ImageId>,
    title: (String, String),
    names: Vec<String>,
    reading: Reading,
}

impl Dataset {
    fn write(
        &self,
        out: &Path,
        cases: Vec<Case>,
        images: ImageFiles,
    ) -> Result<Exported, ProjectError> {
        let partial = Partial::beside(out)?;
        let root = partial.path();
        for dir in ["imagesTr", "labelsTr", "imagesTs"] {
            std::fs::create_dir(root.join(dir))?;
        }
        let (mut training, mut test, mut cases_v2) = (Vec::new(), Vec::new(), Map::new());
        let mut exported = Exported::default();
        for case in cases {
            exported.images += 1;
            let id = &case.image.id;
            let file = format!("{id}.nii.gz");
            let held_out = self.test.contains(id);
            let accepted = case
                .labels
                .iter()
                .find(|(label, _)| label.tag == Tag::accepted());
            let fresh = accepted.filter(|_| !self.stale.contains(&(id.clone(), Tag::accepted())));
            exported.stale += usize::from(accepted.is_some() && fresh.is_none());
            let part = if held_out || fresh.is_none() {
                "Ts"
            } else {
                "Tr"
            };
            let image = format!("images{part}/{file}");
            self.image(&case.image, &root.join(&image), images)?;
            if let Some((label, path)) = fresh {
                exported.labels += 1;
                let dir = root.join(format!("labels{part}"));
                std::fs::create_dir_all(&dir)?;
                place(path, &dir.join(&file), ImageFiles::Copy)?;
                if !held_out {
                    let file = format!("labelsTr/{file}");
                    training.push(json!({
                        "image": format!("./{image}"), "label": format!("./{file}"),
                        "annotated_labels": self.values(&label.annotated),
                    }));
                    cases_v2.insert(id.to_string(), json!({ "images": [image], "label": file }));
                    continue;
                }
            }
            test.push(format!("./{image}"));
        }
        let (name, description) = &self.title;
        let channels = json!({ "0": "CT" });
        let by_value: Map = std::iter::once(("0".to_owned(), json!("background")))
            .chain(
                (1..)
                    .zip(&self.names)
                    .map(|(value, name): (usize, _)| (value.to_string(), json!(name))),
            )
            .collect();
        let by_name: Map = std::iter::once(("background".to_owned(), json!(0)))
            .chain(self.names.iter().cloned().zip((1..).map(Value::from)))
            .collect();
        let mut msd = json!({
            "name": name, "description": description, "tensorImageSize": "3D",
            "modality": channels, "channel_names": channels, "file_ending": ".nii.gz",
            "labels": by_value, "numTraining": training.len(), "numTest": test.len(),
            "training": training, "test": test,
        });
        write_json(&root.join("dataset.json"), &msd)?;
        // The one key of which the two want different values.
        msd["labels"] = Value::Object(by_name);
        msd["dataset"] = Value::Object(cases_v2);
        write_json(&root.join("dataset_nnunet_v2.json"), &msd)?;
        partial.finish(out)?;
        Ok(exported)
    }

    fn values(&self, names: &[String]) -> Vec<usize> {
        (1..)
            .zip(&self.names)
            .filter(|(_, name)| names.contains(name))
            .map(|(value, _)| value)
            .collect()
    }

    /// The layout knows `.nii.gz` alone; others are rewritten.
    fn image(&self, image: &ImageRow, to: &Path, images: ImageFiles) -> Result<(), ProjectError> {
        let as_it_is = image.ext == ".nii.gz" && !image.is_series;
        if as_it_is || images == ImageFiles::None {
            return place(&image.path, to, images);
        }
        rewrite(image, to, &self.reading)
    }
}

/// Brings images to this machine, for threads that block.
struct Fetch {
    project: Project,
    runtime: tokio::runtime::Handle,
}

/// How images are read.
type Reading = (Fetch, imaging::Budget);

impl Fetch {
    fn of(project: &Project) -> Self {
        Self {
            project: project.clone(),
            runtime: tokio::runtime::Handle::current(),
        }
    }
}

/// Writes an image as `.nii.gz`.
fn rewrite(image: &ImageRow, to: &Path, (fetch, budget): &Reading) -> Result<(), ProjectError> {
    let refused = |error: imaging::ImagingError| {
        ProjectError::Invalid(format!("image {}: {error}", image.id))
    };
    let file = fetch.runtime.block_on(fetch.project.image_file(image))?;
    let scan = imaging::read_scan(file.path(), budget).map_err(refused)?;
    imaging::write_scan(to, &scan.volume, LabelFormat::NiftiGz).map_err(refused)?;
    Ok(File::open(to)?.sync_all()?)
}

/// Brings a file to the folder, with the time of its last change.
fn place(from: &Path, to: &Path, how: ImageFiles) -> Result<(), ProjectError> {
    match how {
        ImageFiles::None => {}
        ImageFiles::Link => link(from, to)?,
        ImageFiles::Copy => {
            std::fs::copy(from, to)?;
            let file = File::options().append(true).open(to)?;
            file.set_modified(std::fs::metadata(from)?.modified()?)?;
            file.sync_all()?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(from, to)
}

#[cfg(not(unix))]
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::hard_link(from, to)
}

/// As MONAI Label writes it: two spaces, no end of line.
fn write_json(path: &Path, value: &Value) -> Result<(), ProjectError> {
    std::fs::write(path, format!("{value:#}"))?;
    Ok(File::open(path)?.sync_all()?)
}
