//! A model directory: `manifest.json` (what the network is and what it needs) beside `weights.safetensors`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::clicks::ClickGuidance;
use super::error::ModelError;
use super::pct_net::PctNetConfig;
use super::schema::LabelSchema;
use super::weights::{self, State};

/// The only manifest format so far.
const FORMAT: u32 = 1;
/// File names of a model directory.
const MANIFEST: &str = "manifest.json";
const WEIGHTS: &str = "weights.safetensors";

/// What a model is: everything of a manifest but the hash of its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelDescription {
    /// Name of the model, without version.
    pub name: String,
    /// Architecture.
    pub network: PctNetConfig,
    /// Structures that the model segments, in class order.
    pub labels: LabelSchema,
    /// How an image becomes network input.
    pub preprocessing: Preprocessing,
    /// Side lengths `[depth, height, width]` of the sliding window, in voxels after resampling.
    pub patch: [usize; 3],
    /// How it takes clicks; absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clicks: Option<ClickGuidance>,
    /// Whether the weights have learned anything; an untrained model only starts a project.
    pub trained: bool,
    /// Where the weights come from.
    pub lineage: Lineage,
}

impl ModelDescription {
    /// Whether a network can be built from it and an image be prepared for it.
    pub(in crate::model) fn check(&self, path: &Path) -> Result<(), ModelError> {
        self.network.validate()?;
        self.network.check_patch(self.patch)?;
        if self.network.class_num != self.labels.class_count() {
            let reason = format!(
                "the network has {} classes, but background and {} labels make {}",
                self.network.class_num,
                self.labels.names().len(),
                self.labels.class_count()
            );
            return Err(ModelError::bad(path, reason));
        }
        if let Some(clicks) = self.clicks {
            let (found, needed) = (
                self.network.in_chns,
                ClickGuidance::channels(self.network.class_num),
            );
            if found != needed {
                let reason = format!(
                    "a network that takes clicks needs {needed} input channels (the scan and one per class), this one has {found}"
                );
                return Err(ModelError::bad(path, reason));
            }
            if !(0.1..=100.0).contains(&clicks.sigma_mm) {
                return Err(ModelError::bad(
                    path,
                    "sigma_mm of clicks must be between 0.1 and 100",
                ));
            }
        }
        let [low, high] = self.preprocessing.hu_window;
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(ModelError::bad(
                path,
                "hu_window must be two increasing numbers",
            ));
        }
        let bad_spacing = |s: &f64| !(s.is_finite() && *s > 0.01 && *s < 100.0);
        if self
            .preprocessing
            .spacing_mm
            .iter()
            .flatten()
            .any(bad_spacing)
        {
            return Err(ModelError::bad(
                path,
                "spacing_mm must be between 0.01 and 100",
            ));
        }
        Ok(())
    }
}

/// How an image becomes network input. Axes are `[z, y, x]` after turning the image to LPS order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Voxel spacing to resample to, `[z, y, x]`; absent: the image's own.
    pub spacing_mm: Option<[f64; 3]>,
    /// HU range that is mapped to [-1, 1]; values outside are clipped.
    pub hu_window: [f32; 2],
}

impl Default for Preprocessing {
    /// The window that the published pretraining used: [-1000, 1000] HU, no resampling.
    fn default() -> Self {
        Self {
            spacing_mm: None,
            hu_window: [-1000.0, 1000.0],
        }
    }
}

/// Where weights come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// SHA-256 of the weights that training started from.
    pub parent_sha256: Option<String>,
    /// What made these weights: "initialised", "converted", "pretrained", "trained".
    pub made_by: String,
    /// Version of Fewlabel that made them.
    pub code_version: String,
    /// Seed of initialisation and training.
    pub seed: Option<u64>,
    /// Training steps behind these weights.
    pub steps: Option<usize>,
    /// Mean foreground Dice on the validation cases.
    pub validation_dice: Option<f64>,
    /// SHA-256 of the label files learned from.
    #[serde(default)]
    pub label_sha256: Vec<String>,
    /// What was learned from, and why spacing, window and patch are what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSummary>,
}

/// How often a structure is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassFrequency {
    /// Name of the structure.
    pub name: String,
    /// Cases in which it was annotated.
    pub annotated: usize,
    /// Cases in which it is there.
    pub cases: usize,
    /// Voxels in all cases, as the files have them.
    pub voxels: u64,
}

/// What was found in the data, and what follows from it; goes into the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSummary {
    /// Cases that can be used.
    pub cases: usize,
    /// Per structure, in order.
    pub classes: Vec<ClassFrequency>,
    /// Why spacing, window and patch are what they are, in words.
    pub reasons: Vec<String>,
}

impl Lineage {
    /// A lineage made by this version of the program.
    pub fn made_by(what: &str) -> Self {
        Self {
            made_by: what.to_owned(),
            code_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Self::default()
        }
    }
}

/// A model directory's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of this file.
    pub format: u32,
    /// What the model is.
    #[serde(flatten)]
    pub model: ModelDescription,
    /// SHA-256 of the weights file, hexadecimal.
    pub weights_sha256: String,
}

impl std::ops::Deref for Manifest {
    type Target = ModelDescription;

    fn deref(&self) -> &ModelDescription {
        &self.model
    }
}

impl Manifest {
    /// Reads and checks the manifest of a model directory.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(MANIFEST);
        let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|e| ModelError::bad(&path, e))?;
        manifest.check(&path)?;
        Ok(manifest)
    }

    fn check(&self, path: &Path) -> Result<(), ModelError> {
        if self.format != FORMAT {
            let reason = format!(
                "format {} is not known here; this version reads {FORMAT}",
                self.format
            );
            return Err(ModelError::bad(path, reason));
        }
        self.model.check(path)
    }

    /// The weights file of a model directory.
    pub fn weights_path(dir: &Path) -> PathBuf {
        dir.join(WEIGHTS)
    }

    /// Reads the weights and compares them with the manifest's hash. Subnormal numbers, as training elsewhere leaves them where
    /// nothing but weight decay moved a weight, become zero: with them a processor multiplies many times slower.
    pub fn read_weights(&self, dir: &Path) -> Result<State, ModelError> {
        let path = Self::weights_path(dir);
        let bytes = std::fs::read(&path).map_err(ModelError::io(&path))?;
        if weights::sha256_hex(&bytes) != self.weights_sha256 {
            let reason =
                "the weights are not those of the manifest (SHA-256 differs); copy the model again";
            return Err(ModelError::bad(path, reason));
        }
        let mut state = weights::parse(&bytes).map_err(|reason| ModelError::bad(path, reason))?;
        let values = state.values_mut().flat_map(|tensor| &mut tensor.values);
        for value in values.filter(|value| value.is_subnormal()) {
            *value = 0.0;
        }
        Ok(state)
    }

    /// Whether every weight is a finite number.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn has_finite_weights(&self, dir: &Path) -> Result<bool, ModelError> {
        let state = self.read_weights(dir)?;
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        Ok(state.values().all(|tensor| finite(&tensor.values)))
    }
}

/// Writes a model directory. `dir` appears whole or not at all; it must not exist yet.
pub fn write_model(
    dir: &Path,
    description: &ModelDescription,
    state: &State,
) -> Result<Manifest, ModelError> {
    if dir.exists() {
        let reason = "it is there already; models are never overwritten. Name another directory";
        return Err(ModelError::bad(dir, reason));
    }
    let bytes = weights::serialise(state).map_err(|reason| ModelError::bad(dir, reason))?;
    let manifest = Manifest {
        format: FORMAT,
        model: description.clone(),
        weights_sha256: weights::sha256_hex(&bytes),
    };
    manifest.check(dir)?;
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(ModelError::io(parent))?;
    let staged = tempfile::Builder::new()
        .prefix(".model-")
        .tempdir_in(parent)
        .map_err(ModelError::io(parent))?;
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| ModelError::bad(dir, e))?;
    for (name, content) in [(WEIGHTS, &bytes), (MANIFEST, &text)] {
        let path = staged.path().join(name);
        write_synced(&path, content).map_err(ModelError::io(&path))?;
    }
    let staged = staged.keep();
    std::fs::rename(&staged, dir).map_err(|source| {
        let _ = std::fs::remove_dir_all(&staged); // the error that matters is the rename's
        ModelError::Io {
            path: dir.to_owned(),
            source,
        }
    })?;
    Ok(manifest)
}

/// Replaces a file in its folder; after a crash it is the old one or the new one, whole.
pub(in crate::model) fn replace_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    write_synced(Path::new(&partial), content)?;
    std::fs::rename(&partial, path)?;
    // The new name itself must reach the disk too.
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => std::fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::convert::create_untrained;
    use crate::model::pct_net::PctNetConfig;

    #[test]
    fn subnormal_weights_are_read_as_zero_and_all_others_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let config = PctNetConfig {
            feature_chns: [4, 8, 16, 16, 16],
            num_heads: [2, 2, 2],
            ..PctNetConfig::pct_net_s(2, [16, 32, 32], 1)
        };
        let labels = LabelSchema::from_list("a").unwrap();
        let raw = dir.path().join("raw");
        let manifest = create_untrained(&raw, "test", &config, &labels, 1).unwrap();
        let mut state = manifest.read_weights(&raw).unwrap();
        let name = state.keys().find(|name| name.ends_with("weight")).unwrap();
        let name = name.clone();
        let small = [f32::MIN_POSITIVE, -f32::MIN_POSITIVE / 2.0, 1e-45];
        state.get_mut(&name).unwrap().values[..3].copy_from_slice(&small);
        let made = dir.path().join("made");
        let manifest = write_model(&made, &manifest.model, &state).unwrap();
        let found = manifest.read_weights(&made).unwrap();
        let small = [f32::MIN_POSITIVE, 0.0, 0.0];
        state.get_mut(&name).unwrap().values[..3].copy_from_slice(&small);
        assert_eq!(found, state);
    }
}
