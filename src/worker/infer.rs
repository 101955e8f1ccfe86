//! One proposal for one image.

use std::time::Instant;

use serde_json::{Value, json};

use super::models::{Window, shrinking};
use super::{Failure, Outcome, Reporter, Worker};
use crate::imaging::components::{self, Connectivity};
use crate::imaging::dicom::{self, Algorithm, Drawn, ResultKind, SegmentationKind};
use crate::imaging::{Budget, LabelFormat, Sample, Volume, read_scan, write_label, write_label_as};
use crate::model::{ModelError, Segmentation};
use crate::project::requests::{
    ImageSource, InferRequest, InferResult, Interaction, NO_FILE, ResultType,
};
use crate::project::{ImageFile, ImageId, Job, MadeBy, Map, Origin, SubmitLabel, Tag};
use crate::rounds::registry::{ModelVersion, Registry};

/// Suffix of a DICOM Segmentation object.
const DICOM: &str = ".dcm";

/// A segmented image of the project or of a client.
pub(super) struct Proposal {
    pub labels: Volume<u16>,
    /// What there is to tell: `windows`, `windows_skipped`, `window`, seconds by stage under `stages`.
    pub about: Value,
    /// Seconds to read the image.
    pub read_s: f64,
}

impl Proposal {
    /// `window` is that of the network, when it was asked.
    pub fn new(made: Segmentation, window: Option<[usize; 3]>, read_s: f64) -> Self {
        let stages: Map = made
            .timings
            .iter()
            .map(|(name, seconds)| ((*name).to_owned(), json!(seconds)))
            .collect();
        let about = json!({
            "windows": made.windows,
            "windows_skipped": made.windows_skipped,
            "window": window,
            "stages": stages,
        });
        Self {
            labels: made.labels,
            about,
            read_s,
        }
    }
}

impl Worker {
    pub(super) fn infer(
        &mut self,
        job: &Job,
        mut request: InferRequest,
        reporter: &Reporter,
    ) -> Outcome {
        let started = Instant::now();
        let version = self.version_of(&request)?;
        let mut copy = None;
        let (path, budget) = match &request.image {
            ImageSource::WarmUp => {
                let version = version.ok_or_else(|| no_version(&request.model))?;
                return self.warm_up(&version);
            }
            ImageSource::Study { id } => {
                let file = copy.insert(self.image_file(id)?);
                (file.path().to_owned(), Budget::default())
            }
            // What a client sent must not make the server read other files.
            ImageSource::File { path } => (
                path.clone(),
                Budget {
                    follow_files: false,
                    ..Budget::default()
                },
            ),
        };
        if request.result_extension == DICOM && !dicom::is_series(&path) {
            return refused(
                "a DICOM Segmentation refers to a DICOM series, and this image is none; ask for another result_extension"
                    .to_owned(),
            );
        }
        let kept = match (&request.image, &version) {
            (ImageSource::Study { id }, Some(version))
                if !request.largest_cc && request.interaction.is_none() =>
            {
                self.runtime
                    .block_on(self.ahead.find(&self.project, version, id))?
            }
            _ => None,
        };
        let ahead = kept.is_some();
        // The worker that had it before was lost with it, perhaps because there was too little memory.
        let window = Window::of_attempt(job.attempts);
        if let (
            Some(Interaction::Unnamed {
                foreground,
                background,
            }),
            Some(version),
        ) = (&request.interaction, &version)
        {
            let points = [&foreground[..], background];
            match self.named((version, window), &path, &budget, points, reporter) {
                Ok(named) => request.interaction = Some(named),
                Err(failure) => return told(failure),
            }
        }
        let proposal = match (kept, &request.interaction, &version) {
            (Some((labels, about)), _, _) => Ok(Proposal {
                labels,
                about,
                read_s: 0.0,
            }),
            (None, Some(Interaction::Scribbles(scribbles)), prior) => {
                let prior = prior.as_ref().map(|version| (version, window));
                self.refine(scribbles, prior, &path, &budget, reporter)
            }
            (None, Some(Interaction::Clicks { clicks, .. }), Some(version)) => {
                self.propose_with_clicks((version, window), &path, &budget, clicks, reporter)
            }
            (None, None, Some(version)) => self.propose(version, &path, &budget, window, reporter),
            (None, Some(Interaction::Unnamed { .. }), _) | (None, _, None) => {
                Err(no_version(&request.model))
            }
        };
        let Proposal {
            mut labels,
            about,
            read_s,
        } = match proposal {
            Ok(proposal) => proposal,
            Err(failure) => return told(failure),
        };
        let post = Instant::now();
        let names = self.shown(&request, &mut labels);
        if request.largest_cc {
            components::keep_largest(&mut labels, Connectivity::Corners26);
        }
        let labels = &labels;
        let suffix = request.result_extension.as_str();
        // Without a file for the client there may still be one to keep.
        let wants_file = suffix != NO_FILE;
        let suffix = if wants_file { suffix } else { ".nii.gz" };
        let format = match suffix {
            DICOM => None,
            _ => Some(LabelFormat::from_suffix(suffix)
                .ok_or_else(|| Failure::Error(format!("result_extension {suffix:?} cannot be written; use .nii.gz, .nii, .nrrd, .seg.nrrd or .dcm")))?),
        };
        let format = match format {
            Some(format @ (LabelFormat::Nrrd | LabelFormat::SegNrrd)) => {
                Some(format.with_compression(request.result_compress))
            }
            other => other,
        };
        let scratch = self.project.scratch_dir();
        std::fs::create_dir_all(&scratch)?;
        let file = scratch.join(format!(
            "{}{}",
            job.id,
            format.map_or(DICOM, LabelFormat::suffix)
        ));
        let centroids = centroids(labels, &names);
        let post_s = post.elapsed().as_secs_f64();
        let write = Instant::now();
        let writes = wants_file || request.save_label.is_some();
        match (format, request.result_dtype.map(sample)) {
            _ if !writes => {}
            (Some(format), Some(sample)) => write_label_as(&file, labels, &names, format, sample)?,
            (Some(format), None) => write_label(&file, labels, &names, format)?,
            (None, _) => {
                let by = self.algorithm(&request, version.as_ref());
                let written = dicom::open(&path, &budget).and_then(|mut scans| {
                    let only = scans.only()?;
                    let kind = ResultKind::Segmentation(SegmentationKind::Binary);
                    dicom::write_labels(&file, (&scans, only), labels, &names, &by, kind)
                });
                if let Err(error) = written {
                    return refused(format!("the image gets no DICOM result: {error}"));
                }
            }
        }
        let write_s = write.elapsed().as_secs_f64();
        // What was made before took no time now.
        let seconds = |stage: &str| match ahead {
            true => 0.0,
            false => about["stages"][stage].as_f64().unwrap_or_default(),
        };
        let label_names: Map = names
            .iter()
            .map(|(value, name)| (name.clone(), json!(value)))
            .collect();
        let mut params = json!({
            "label_names": label_names,
            "latencies": {
                "pre": read_s + seconds("prepare"),
                "infer": seconds("network"),
                "invert": seconds("finish"),
                "post": post_s,
                "write": write_s,
                "total": started.elapsed().as_secs_f64(),
                "transform": {"pre": {"read": read_s, "prepare": seconds("prepare")}, "post": {"finish": seconds("finish")}},
            },
            "centroids": centroids,
            "model": request.model,
            "windows": about["windows"],
            "windows_skipped": about["windows_skipped"],
            "window": about["window"],
            "computed_ahead": ahead,
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

    /// What a DICOM object says about how it was made; without a version strokes alone made it.
    fn algorithm(&self, request: &InferRequest, version: Option<&ModelVersion>) -> Algorithm {
        let name = request.model.as_str();
        let program = format!("Fewlabel {}", env!("CARGO_PKG_VERSION"));
        Algorithm {
            name: version.map_or(name, |version| &version.name).to_owned(),
            version: match version {
                Some(version) => format!("{} ({program})", version.version),
                None => program,
            },
            sha256: version.map_or_else(String::new, |version| version.weights_sha256.clone()),
            made_ms: self.project.clock().now_ms(),
            drawn: match request.interaction {
                Some(_) => Drawn::FromProposal,
                None => Drawn::Automatically,
            },
        }
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

    fn image_file(&self, id: &ImageId) -> Result<ImageFile, Failure> {
        let row = self.runtime.block_on(self.project.image(id))?;
        let row = row
            .ok_or_else(|| Failure::Error(format!("image {id} is not in the project any more")))?;
        Ok(self.runtime.block_on(self.project.image_file(&row))?)
    }

    /// Whether a version answers at all; it stays on the device.
    fn warm_up(&mut self, version: &ModelVersion) -> Outcome {
        let segmenter = self
            .models
            .get(version, Window::Whole, self.device, self.precision)?;
        segmenter.warm_up()?;
        Ok(serde_json::to_value(InferResult {
            file: None,
            params: json!({"model": version.name, "model_version": version.version, "model_sha256": version.weights_sha256}),
            refused: None,
        })?)
    }

    /// Segments an image. When memory runs out, once more with a smaller window.
    pub(super) fn propose(
        &mut self,
        version: &ModelVersion,
        image: &std::path::Path,
        budget: &Budget,
        window: Window,
        reporter: &Reporter,
    ) -> Result<Proposal, Failure> {
        let read = Instant::now();
        let scan = read_scan(image, budget).map_err(Failure::Image)?;
        let read_s = read.elapsed().as_secs_f64();
        let (segmentation, window) = shrinking(window, |window| {
            let segmenter = self
                .models
                .get(version, window, self.device, self.precision)?;
            let found = segmenter.segment(&scan.volume, &[], &mut |_, _| reporter.flow());
            match found {
                Err(ModelError::Stopped) => Err(Failure::Stopped),
                result => Ok((result?, segmenter.manifest().patch)),
            }
        })?;
        Ok(Proposal::new(segmentation, Some(window), read_s))
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

/// What a failure is to the client: an answer when it is the sender's matter.
fn told(failure: Failure) -> Outcome {
    match failure {
        Failure::Image(error) => refused(format!("the image is refused: {error}")),
        Failure::Refused(reason) => refused(reason),
        failure => Err(failure),
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
