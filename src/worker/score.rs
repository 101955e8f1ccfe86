//! Scores of images for selection and statistics.

use serde_json::json;

use super::{Failure, Outcome, Reporter, Worker};
use crate::imaging::metrics;
use crate::imaging::{Budget, read_label};
use crate::project::requests::ScoreRequest;
use crate::project::{ImageId, LabelRow, Map, ProjectError, Tag};

impl Worker {
    /// Runs one method over all images: `dice`, `sum` or `epistemic`.
    pub(super) fn score(&mut self, request: ScoreRequest, reporter: &Reporter) -> Outcome {
        match request.method.as_str() {
            "dice" => self.score_dice(reporter),
            "sum" => self.score_sum(reporter),
            "epistemic" => self.score_epistemic(&request, reporter),
            other => Err(Failure::Error(format!(
                "there is no scoring method {other:?}; there are: dice, sum, epistemic"
            ))),
        }
    }

    /// Agreement of the accepted label with the model's proposal (tags final and original), mean over the structures that
    /// either has, written into the image's info as `dice`.
    fn score_dice(&mut self, reporter: &Reporter) -> Outcome {
        let classes = self.project.schema().class_count();
        let mut scores = Map::new();
        for image in self.runtime.block_on(self.project.images())? {
            self.between(reporter)?;
            let accepted = self.label_of(&image.id, &Tag::accepted())?;
            let original = self.label_of(&image.id, &Tag::original())?;
            let Some((accepted, original)) = accepted.zip(original) else {
                continue;
            };
            let (accepted, original) = (self.voxels(&accepted)?, self.voxels(&original)?);
            let dice = metrics::dice_per_class(&accepted[0], &original[0], classes);
            let Some(mean) = metrics::mean(dice.into_iter().skip(1)) else {
                continue;
            };
            let info = Map::from_iter([("dice".to_owned(), json!(mean))]);
            self.runtime
                .block_on(self.project.set_image_info(&image.id, info))?;
            reporter.line(format!("{}: dice {mean:.3}", image.id));
            scores.insert(image.id.to_string(), json!(mean));
        }
        Ok(json!({"dice": scores}))
    }

    /// Sum of the voxel values of each accepted label and proposal, and its axial slices (of the file's last axis) that are
    /// not empty, written into the label's info as `sum` and `slices`.
    fn score_sum(&mut self, reporter: &Reporter) -> Outcome {
        let mut sums = Map::new();
        for image in self.runtime.block_on(self.project.images())? {
            for tag in [Tag::accepted(), Tag::original()] {
                self.between(reporter)?;
                let Some(label) = self.label_of(&image.id, &tag)? else {
                    continue;
                };
                let path = self.project.training_label_path(&label);
                let file = read_label(&path, &Budget::default())?;
                let [_, height, width] = file.geometry.shape();
                let voxels = &file.layers[0];
                let sum: u64 = voxels.iter().map(|v| u64::from(*v)).sum();
                let filled = |slice: &&[u16]| slice.iter().any(|v| *v > 0);
                let slices = voxels.chunks_exact(height * width).filter(filled).count();
                let info = json!({"sum": sum, "slices": slices});
                let merged = info.as_object().cloned().unwrap_or_default();
                self.runtime
                    .block_on(self.project.merge_label_info(&image.id, &tag, merged))?;
                reporter.line(format!("{}, {tag}: sum {sum}, {slices} slices", image.id));
                sums.entry(image.id.to_string())
                    .or_insert_with(|| json!({}))[tag.as_str()] = info;
            }
        }
        Ok(json!({ "sum": sums }))
    }

    /// A pause of a long job: urgent work goes first.
    ///
    /// # Errors
    /// The job was stopped.
    pub(super) fn between(&mut self, reporter: &Reporter) -> Result<(), Failure> {
        if self.yield_to_urgent(reporter).is_break() {
            return Err(Failure::Stopped);
        }
        Ok(())
    }

    fn label_of(&self, image: &ImageId, tag: &Tag) -> Result<Option<LabelRow>, ProjectError> {
        self.runtime.block_on(self.project.label(image, tag))
    }

    fn voxels(&self, label: &LabelRow) -> Result<Vec<Vec<u16>>, Failure> {
        let path = self.project.training_label_path(label);
        Ok(read_label(&path, &Budget::default())?.layers)
    }
}
