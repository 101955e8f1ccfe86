//! A MONAI Label studies folder as it lies on the disk: images, `labels/<tag>/`, and
//! `datastore_v2.json` with what clients sent with them. It is read, never written.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::ids::{IMAGE_SUFFIXES, ImageId, LABEL_SUFFIXES, Tag, split_suffix};
use super::{Map, ProjectError};

/// The index of the folder.
pub const INDEX: &str = "datastore_v2.json";

/// A folder and its index.
pub(super) struct Folder {
    root: PathBuf,
    index: Value,
}

/// A label file.
pub(super) struct FolderLabel {
    pub tag: Tag,
    pub path: PathBuf,
    /// Ids that the file name may mean, the likeliest first: `x.seg.nrrd` is a label of `x`, or of an
    /// image `x.seg`.
    pub images: Vec<String>,
    /// Name of the file.
    pub file: String,
}

/// An image file.
pub(super) struct FolderImage {
    pub id: String,
    pub path: PathBuf,
}

impl Folder {
    /// Reads the index; without one, or with a damaged one, files are known by their names alone.
    pub fn open(root: &Path) -> Self {
        let index = match std::fs::read(root.join(INDEX)) {
            Err(_) => Value::Null,
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "{INDEX} cannot be read; labels are imported without what clients sent with them");
                Value::Null
            }),
        };
        Self {
            root: root.to_owned(),
            index,
        }
    }

    /// `name` or `description` of the index.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.index[key].as_str()
    }

    /// What the earlier server told about an image, its `ts` included.
    pub fn image_info(&self, id: &str) -> Map {
        let mut info = map(&self.index["objects"][id]["image"]["info"]);
        info.shift_remove("name");
        info
    }

    /// What clients sent with a label, and the `ts` and `name` of the earlier server.
    pub fn label_info(&self, id: &str, tag: &Tag) -> Map {
        map(&self.index["objects"][id]["labels"][tag.as_str()]["info"])
    }

    /// Images: those of the index in its order, then other files by name.
    pub fn images(&self) -> Result<Vec<FolderImage>, ProjectError> {
        let dir = self.dir("images_dir", "");
        let (mut images, mut taken) = (Vec::new(), HashSet::new());
        for (id, object) in self.index["objects"].as_object().into_iter().flatten() {
            let ext = object["image"]["ext"].as_str().unwrap_or_default();
            if let Some(path) = file_of(&dir, id, ext) {
                taken.insert(path.clone());
                let id = id.clone();
                images.push(FolderImage { id, path });
            }
        }
        for path in files_of(&dir)? {
            let name = name_of(&path);
            let hidden = name.starts_with('.') || name.to_ascii_lowercase().ends_with(".seg.nrrd");
            if let Some((stem, _)) = split_suffix(&name, &IMAGE_SUFFIXES)
                && !hidden
                && !taken.contains(&path)
            {
                let id = stem.to_owned();
                images.push(FolderImage { id, path });
            }
        }
        Ok(images)
    }

    /// Label files: those of the index in its order, then others: proposals first, then accepted
    /// labels, then other tags by name.
    pub fn labels(&self) -> Result<Vec<FolderLabel>, ProjectError> {
        let dir = self.dir("labels_dir", "labels");
        let (mut labels, mut taken) = (Vec::new(), HashSet::new());
        for (id, object) in self.index["objects"].as_object().into_iter().flatten() {
            for (tag, label) in object["labels"].as_object().into_iter().flatten() {
                let Ok(tag) = Tag::parse(tag) else { continue };
                let ext = label["ext"].as_str().unwrap_or_default();
                if let Some(path) = file_of(&dir.join(tag.as_str()), id, ext) {
                    taken.insert(path.clone());
                    labels.push(FolderLabel {
                        images: vec![id.clone()],
                        file: name_of(&path),
                        tag,
                        path,
                    });
                }
            }
        }
        let mut others = Vec::new();
        for folder in folders_of(&dir)? {
            let Ok(tag) = Tag::parse(&name_of(&folder)) else {
                continue;
            };
            for path in files_of(&folder)? {
                let file = name_of(&path);
                if taken.contains(&path) || file.starts_with('.') {
                    continue;
                }
                let stems = [&LABEL_SUFFIXES[..], &IMAGE_SUFFIXES[..]]
                    .map(|suffixes| split_suffix(&file, suffixes).map(|(stem, _)| stem.to_owned()));
                let mut images: Vec<String> = stems.into_iter().flatten().collect();
                images.dedup();
                others.push(FolderLabel {
                    tag: tag.clone(),
                    images,
                    path,
                    file,
                });
            }
        }
        let rank = |tag: &Tag| (*tag != Tag::original(), *tag != Tag::accepted());
        others
            .sort_by(|a, b| (rank(&a.tag), &a.tag, &a.path).cmp(&(rank(&b.tag), &b.tag, &b.path)));
        labels.extend(others);
        Ok(labels)
    }

    /// A folder that the index names, when it lies within the root.
    fn dir(&self, key: &str, default: &str) -> PathBuf {
        let named = self.index[key].as_str().map(Path::new);
        let inside = named.filter(|path| {
            path.components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        });
        self.root.join(inside.unwrap_or(Path::new(default)))
    }
}

fn map(value: &Value) -> Map {
    value.as_object().cloned().unwrap_or_default()
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The file of an id, which comes from a text and must be one plain name.
fn file_of(dir: &Path, id: &str, ext: &str) -> Option<PathBuf> {
    let name = format!("{id}{ext}");
    ImageId::parse(&name).ok()?;
    let path = dir.join(name);
    path.is_file().then_some(path)
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>, ProjectError> {
    entries_of(dir, Path::is_file)
}

fn folders_of(dir: &Path) -> Result<Vec<PathBuf>, ProjectError> {
    entries_of(dir, Path::is_dir)
}

/// By name; none when there is no such folder.
fn entries_of(dir: &Path, wanted: fn(&Path) -> bool) -> Result<Vec<PathBuf>, ProjectError> {
    let mut paths = Vec::new();
    if !dir.is_dir() {
        return Ok(paths);
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if wanted(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
