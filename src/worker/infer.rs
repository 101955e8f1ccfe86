//! One proposal for one image.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Failure, Outcome, Reporter, Worker};
use crate::imaging::components::{self, Connectivity};
use crate::imaging::{Budget, LabelFormat, Sample, Volume, read_scan, write_label, write_label_as};
use crate::model::{DeviceChoice, PrecisionChoice, Segmentation, Segmenter};
use crate::project::requests::{
    ImageSource, InferRequest, InferResult, Interaction, NO_FILE, ResultType,
};
use crate::project::{ImageId, MadeBy, Map, Origin, SubmitLabel, Tag};
use crate::rounds::registry::{ModelVersion, Registry};

/// Models on the device; the newest version of each name stays.
#[derive(Default)]
pub struct Models {
    loaded: HashMap<String, (i64, Segmenter)>,
}

impl Models {
    pub(super) fn get(
        &mut self,
        version: &ModelVersion,
        device: DeviceChoice,
        precision: PrecisionChoice,
    ) -> Result<&Segmenter, Failure> {
        let loaded = match self.loaded.remove(&version.name) {
            Some((number, segmenter)) if number == version.version => segmenter,
            _ => Segmenter::load(&version.dir, device, precision)?,
        };
        let (_, segmenter) = self
            .loaded
            .entry(version.name.clone())
            .insert_entry((version.version, loaded))
            .into_mut();
        Ok(segmenter)
    }
}

/// A segmented image of the project or of a client.
pub(super) struct Proposal {
    pub segmentation: Segmentation,
    /// Seconds to read the image.
    pub read_s: f64,
}

impl Worker {
    pub(super) fn infer(
        &mut self,
        job: &str,
        request: InferRequest,
        reporter: &Reporter,
    ) -> Outcome {
        let started = Instant::now();
        let version = self.version_of(&request)?;
        let (path, budget) = match &request.image {
            ImageSource::Study { id } => (self.image_path(id)?, Budget::default()),
            // What a client sent must not make the server read other files.
            ImageSource::File { path } => (
                path.clone(),
                Budget {
                    follow_files: false,
                    ..Budget::default()
                },
            ),
        };
        if path.is_dir() {
            return refused(
                "a series of several files cannot be read yet; send one NIfTI or NRRD file"
                    .to_owned(),
            );
        }
        let proposal = match (&request.interaction, &version) {
            (Some(Interaction::Scribbles(scribbles)), prior) => {
                self.refine(scribbles, prior.as_ref(), &path, &budget, reporter)
            }
            (Some(Interaction::Clicks { clicks, .. }), Some(version)) => {
                self.propose_with_clicks(version, &path, &budget, clicks, reporter)
            }
            (None, Some(version)) => self.propose(version, &path, &budget, reporter),
            (_, None) => Err(no_version(&request.model)),
        };
        let mut proposal = match proposal {
            Err(Failure::Image(error)) => {
                return refused(format!("the image is refused: {error}"));
            }
            Err(Failure::Refused(reason)) => return refused(reason),
            proposal => proposal?,
        };
        let post = Instant::now();
        let labels = &mut proposal.segmentation.labels;
        let names = self.shown(&request, labels);
        if request.largest_cc {
            components::keep_largest(labels, Connectivity::Corners26);
        }
        let suffix = request.result_extension.as_str();
        // Without a file for the client there may still be one to keep.
        let wants_file = suffix != NO_FILE;
        let suffix = if wants_file { suffix } else { ".nii.gz" };
        let format = LabelFormat::from_suffix(suffix)
            .ok_or_else(|| Failure::Error(format!("result_extension {suffix:?} cannot be written; use .nii.gz, .nii, .nrrd or .seg.nrrd")))?;
        let format = match format {
            LabelFormat::Nrrd | LabelFormat::SegNrrd => {
                format.with_compression(request.result_compress)
            }
            other => other,
        };
        let scratch = self.project.scratch_dir();
        std::fs::create_dir_all(&scratch)?;
        let file = scratch.join(format!("{job}{}", format.suffix()));
        let centroids = centroids(labels, &names);
        let post_s = post.elapsed().as_secs_f64();
        let write = Instant::now();
        let writes = wants_file || request.save_label.is_some();
        if writes {
            match request.result_dtype.map(sample) {
                Some(sample) => write_label_as(&file, labels, &names, format, sample)?,
                None => write_label(&file, labels, &names, format)?,
            }
        }
        let write_s = write.elapsed().as_secs_f64();
        let seconds = |stage: &str| {
            let found = proposal
                .segmentation
                .timings
                .iter()
                .find(|(name, _)| *name == stage);
            found.map_or(0.0, |(_, seconds)| *seconds)
        };
        let label_names: Map = names
            .iter()
            .map(|(value, name)| (name.clone(), json!(value)))
            .collect();
        let mut params = json!({
            "label_names": label_names,
            "latencies": {
                "pre": proposal.read_s + seconds("prepare"),
                "infer": seconds("network"),
                "invert": seconds("finish"),
                "post": post_s,
                "write": write_s,
                "total": started.elapsed().as_secs_f64(),
                "transform": {"pre": {"read": proposal.read_s, "prepare": seconds("prepare")}, "post": {"finish": seconds("finish")}},
            },
            "centroids": centroids,
            "model": request.model,
            "windows": proposal.segmentation.windows,
            "windows_skipped": proposal.segmentation.windows_skipped,
        });
        if let Some(version) = &version {
            params["model"] = json!(version.name);
            params["model_version"] = json!(version.version);
            params["model_sha256"] = json!(version.weights_sha256);
            if let (Some(tag), ImageSource::Study { id }) = (&request.save_label, &request.image) {
                self.keep(id, tag, &file, version, &params)?;
            }
        }
        if writes && !wants_file {
            std::fs::remove_file(&file)?;
        }
        Ok(serde_json::to_value(InferResult {
            file: wants_file.then_some(file),
            params,
            refused: None,
        })?)
    }

    /// The version that a request needs; none for strokes without a model.
    fn version_of(&self, request: &InferRequest) -> Result<Option<ModelVersion>, Failure> {
        match &request.interaction {
            Some(Interaction::Scribbles(scribbles)) => {
                let prior = scribbles.prior.as_ref();
                prior.map(|model| self.version(model, None)).transpose()
            }
            _ => self.version(&request.model, request.version).map(Some),
        }
    }

    /// What the values of the result mean. Where one structure is asked for, it gets the value 1 and the others go.
    fn shown(&self, request: &InferRequest, labels: &mut Volume<u16>) -> Vec<(u16, String)> {
        let Some(only) = request.interaction.as_ref().and_then(Interaction::only) else {
            return self.project.schema().values();
        };
        if let Some(Interaction::Clicks { .. }) = request.interaction {
            let value = self.project.schema().value_of(only);
            for label in &mut labels.voxels {
                *label = u16::from(Some(*label) == value);
            }
        }
        vec![(1, only.to_owned())]
    }

    /// The version asked for, or the live one.
    pub(super) fn version(
        &self,
        name: &str,
        version: Option<i64>,
    ) -> Result<ModelVersion, Failure> {
        let registry = Registry::new(&self.project);
        let found = self.runtime.block_on(async {
            match version {
                Some(number) => registry.version(name, number).await,
                None => registry.live(name).await,
            }
        })?;
        found.ok_or_else(|| no_version(name))
    }

    fn image_path(&self, id: &ImageId) -> Result<PathBuf, Failure> {
        let row = self.runtime.block_on(self.project.image(id))?;
        let row = row
            .ok_or_else(|| Failure::Error(format!("image {id} is not in the project any more")))?;
        Ok(row.path)
    }

    pub(super) fn propose(
        &mut self,
        version: &ModelVersion,
        image: &std::path::Path,
        budget: &Budget,
        reporter: &Reporter,
    ) -> Result<Proposal, Failure> {
        let read = Instant::now();
        let scan = read_scan(image, budget).map_err(Failure::Image)?;
        let read_s = read.elapsed().as_secs_f64();
        let segmenter = self.models.get(version, self.device, self.precision)?;
        let segmentation = segmenter.segment(&scan.volume, &[], &mut |_, _| reporter.flow());
        let segmentation = match segmentation {
            Err(crate::model::ModelError::Stopped) => return Err(Failure::Stopped),
            result => result?,
        };
        Ok(Proposal {
            segmentation,
            read_s,
        })
    }

    /// Keeps a proposal as a label of the project.
    pub(super) fn keep(
        &self,
        id: &ImageId,
        tag: &str,
        file: &std::path::Path,
        version: &ModelVersion,
        params: &Value,
    ) -> Result<(), Failure> {
        let name = file
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let tag = Tag::parse(tag)?;
        self.runtime.block_on(async {
            let staged = self.project.staging().copy_of(file).await?;
            let mut submit = SubmitLabel::new(id.clone(), tag, staged, &name, &version.name);
            submit.origin = Origin::Auto(MadeBy {
                model: version.name.clone(),
                version: Some(version.version),
                sha256: Some(version.weights_sha256.clone()),
            });
            submit.params = Map::from_iter([
                ("model".to_owned(), json!(version.name)),
                ("params".to_owned(), params.clone()),
            ]);
            self.project
                .submit_label(submit)
                .await
                .map_err(Failure::from)
        })?;
        Ok(())
    }
}

fn no_version(model: &str) -> Failure {
    Failure::Error(format!("there is no such version of model {model:?}"))
}

fn sample(asked: ResultType) -> Sample {
    match asked {
        ResultType::Uint8 => Sample::U8,
        ResultType::Uint16 => Sample::U16,
        ResultType::Int16 => Sample::I16,
        ResultType::Int32 => Sample::I32,
        ResultType::Float32 => Sample::F32,
    }
}

/// The answer to an image that cannot be used: the sender's matter, not a failure of the work.
fn refused(reason: String) -> Outcome {
    Ok(serde_json::to_value(InferResult {
        file: None,
        params: Value::Null,
        refused: Some(reason),
    })?)
}

/// Centre voxel of each structure that is there, `{"label_1": ["1", "x", "y", "z"]}` with file indices as text, which is
/// the shape that clients know.
fn centroids(labels: &Volume<u16>, names: &[(u16, String)]) -> Value {
    let [_, height, width] = labels.geometry.shape();
    let mut sums = vec![[0u64; 4]; names.len() + 1];
    for (i, &label) in labels.voxels.iter().enumerate() {
        if label > 0
            && let Some(sum) = sums.get_mut(usize::from(label))
        {
            for (total, part) in
                sum.iter_mut()
                    .zip([1, i % width, i / width % height, i / (width * height)])
            {
                *total += part as u64;
            }
        }
    }
    let entry = |(value, [count, x, y, z]): (usize, [u64; 4])| {
        let text = [value as u64, x / count, y / count, z / count].map(|v| json!(v.to_string()));
        (format!("label_{value}"), json!(text))
    };
    let found = sums
        .into_iter()
        .enumerate()
        .skip(1)
        .filter(|(_, sum)| sum[0] > 0);
    Value::Object(found.map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::Geometry;

    #[test]
    fn centroids_are_file_indices() {
        let geometry = Geometry::new(
            [2, 3, 4],
            [0.0; 3],
            [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
        )
        .unwrap();
        let mut voxels = vec![0; 24];
        voxels[(3 + 2) * 4 + 3] = 2;
        let labels = Volume::new(geometry, voxels).unwrap();
        let names = [(1, "a".to_owned()), (2, "b".to_owned())];
        assert_eq!(
            centroids(&labels, &names),
            json!({"label_2": ["2", "3", "2", "1"]})
        );
    }
}
