//! Labelled scans in a folder: Medical Segmentation Decathlon layout or a MONAI Label studies folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::Usage;
use crate::model::{LabelSchema, TrainCase};
use crate::project::mapping::listed_structures;
use crate::project::monai::INDEX as STUDIES_INDEX;

/// What `dataset.json` says of one case.
#[derive(Deserialize)]
struct Entry {
    label: PathBuf,
    annotated_labels: Option<Vec<u16>>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    training: Vec<Entry>,
}

/// Labelled cases and what their values mean.
#[derive(Debug)]
pub struct Dataset {
    /// From `dataset.json`.
    pub labels: LabelSchema,
    /// Sorted by name.
    pub cases: Vec<TrainCase>,
}

impl Dataset {
    /// Reads a folder with `dataset.json` and either `imagesTr` and `labelsTr`, or images beside `labels/final`.
    ///
    /// # Errors
    /// No usable `dataset.json`, no pair of image and label.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let json = dir.join("dataset.json");
        if !json.is_file() {
            bail!(Usage(format!(
                "{} has no dataset.json; it must say {{\"labels\": {{\"0\": \"background\", \"1\": \"liver\", ...}}}}",
                dir.display()
            )));
        }
        let labels = LabelSchema::from_dataset_json(&json)?;
        let mut annotated = annotated_labels(&json)?;
        let (images, masks) = match dir.join("labelsTr") {
            labels if labels.is_dir() => (dir.join("imagesTr"), labels),
            _ => {
                let declared = declared(&dir.join(STUDIES_INDEX), &labels)?;
                annotated = declared.into_iter().chain(annotated).collect();
                (dir.to_owned(), dir.join("labels/final"))
            }
        };
        let masks = files(&masks)?;
        let all: Vec<u16> = labels
            .values()
            .into_iter()
            .map(|(value, _)| value)
            .collect();
        let mut cases: Vec<TrainCase> = files(&images)?
            .into_iter()
            .filter_map(|(name, image)| {
                let label = masks.get(&name)?.clone();
                let annotated = annotated.get(&name).unwrap_or(&all).clone();
                Some(TrainCase {
                    name,
                    image,
                    label,
                    annotated,
                })
            })
            .collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        if cases.is_empty() {
            bail!(
                "{}: no image has a label of the same name (looked for imagesTr with labelsTr, and for labels/final)",
                dir.display()
            );
        }
        Ok(Self { labels, cases })
    }
}

/// The label values that were annotated, for the cases of which a `dataset.json` says so (`training`, by the name of the
/// label file). In other cases all were.
///
/// # Errors
/// A file that cannot be read or a list of another form.
pub(super) fn annotated_labels(dataset_json: &Path) -> anyhow::Result<HashMap<String, Vec<u16>>> {
    let text = std::fs::read(dataset_json)
        .with_context(|| format!("cannot read {}", dataset_json.display()))?;
    let index: Index = serde_json::from_slice(&text)
        .with_context(|| format!("{}: the list \"training\"", dataset_json.display()))?;
    let known = index.training.into_iter();
    Ok(known
        .filter_map(|entry| Some((name_of(&entry.label)?, entry.annotated_labels?)))
        .collect())
}

/// The label values that accepted labels of a studies folder declare, for those that do (`label_info`). 3D Slicer lists the
/// structures that it wrote, and value k is the k-th of them.
///
/// # Errors
/// A label whose values mean something else than in `dataset.json`: its voxels would be learned as other structures.
fn declared(index: &Path, labels: &LabelSchema) -> anyhow::Result<HashMap<String, Vec<u16>>> {
    let Ok(text) = std::fs::read(index) else {
        return Ok(HashMap::new());
    };
    let json: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", index.display()))?;
    let mut found = HashMap::new();
    for (id, object) in json["objects"].as_object().into_iter().flatten() {
        let Some(info) = object["labels"]["final"]["info"].as_object() else {
            continue;
        };
        let listed = listed_structures(info).with_context(|| format!("the label of {id}"))?;
        let mut values = Vec::new();
        for (value, name) in (1..).zip(listed) {
            if labels.value_of(&name) != Some(value) {
                bail!(
                    "the label of {id} says that its value {value} is {name:?}, and dataset.json does not. Nothing was trained. \
                     Start a server on the folder (fewlabel serve --studies), which goes by names, and export its labels \
                     with fewlabel export --format msd"
                );
            }
            values.push(value);
        }
        if !values.is_empty() {
            found.insert(id.clone(), values);
        }
    }
    Ok(found)
}

fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with('.') {
        return None;
    }
    [".nii.gz", ".nii", ".nrrd"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .map(str::to_owned)
}

/// Images of a folder by name without suffix; hidden files are left out.
pub(super) fn files(dir: &Path) -> anyhow::Result<HashMap<String, PathBuf>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut found = HashMap::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(name) = name_of(&path) {
            found.insert(name, path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts() {
        for (images, labels) in [("imagesTr", "labelsTr"), (".", "labels/final")] {
            let dir = tempfile::tempdir().unwrap();
            for folder in [images, labels] {
                std::fs::create_dir_all(dir.path().join(folder)).unwrap();
                std::fs::write(dir.path().join(folder).join("b.nii.gz"), b"").unwrap();
                std::fs::write(dir.path().join(folder).join("a.nrrd"), b"").unwrap();
            }
            std::fs::write(dir.path().join(images).join("unlabelled.nii.gz"), b"").unwrap();
            let json = r#"{"labels": {"0": "background", "1": "liver", "2": "spleen"},
                "training": [{"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz", "annotated_labels": [2]}]}"#;
            std::fs::write(dir.path().join("dataset.json"), json).unwrap();
            let dataset = Dataset::open(dir.path()).unwrap();
            let names: Vec<_> = dataset
                .cases
                .iter()
                .map(|case| case.name.as_str())
                .collect();
            assert_eq!(names, ["a", "b"]);
            assert_eq!(dataset.cases[0].annotated, [1, 2]);
            assert_eq!(dataset.cases[1].annotated, [2]);
            if images == "." {
                let index = |listed: &str| {
                    let text = format!(
                        r#"{{"objects": {{"a": {{"labels": {{"final": {{"info": {{"label_info": {listed}}}}}}}}}}}}}"#
                    );
                    std::fs::write(dir.path().join(STUDIES_INDEX), text).unwrap();
                };
                index(r#"[{"name": "liver"}]"#);
                let dataset = Dataset::open(dir.path()).unwrap();
                assert_eq!(dataset.cases[0].annotated, [1]);
                assert_eq!(dataset.cases[1].annotated, [2]);
                index(r#"[{"name": "background", "idx": 0}, {"name": "spleen", "idx": 1}]"#);
                let error = Dataset::open(dir.path()).unwrap_err().to_string();
                assert!(
                    error.contains("label of a") && error.contains("spleen"),
                    "{error}"
                );
            }
        }
    }
}
