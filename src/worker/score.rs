//! Scores of images for selection and statistics.

use serde_json::json;

use super::{Failure, Outcome, Reporter, Worker};
use crate::imaging::metrics;
use crate::imaging::{Budget, read_label};
use crate::project::requests::ScoreRequest;
use crate::project::{Map, Tag};

impl Worker {
    /// `dice`: agreement of the accepted label with the model's proposal (tags final and original), mean over the
    /// structures that either has, written into the image's info as `dice`.
    pub(super) fn score(&mut self, request: ScoreRequest, reporter: &Reporter) -> Outcome {
        if request.method != "dice" {
            return Err(Failure::Error(format!(
                "there is no scoring method {:?}; there is: dice",
                request.method
            )));
        }
        let classes = self.project.schema().class_count();
        let mut scores = Map::new();
        for image in self.runtime.block_on(self.project.images())? {
            if self.yield_to_urgent(reporter).is_break() {
                return Err(Failure::Stopped);
            }
            let pair = self.runtime.block_on(async {
                let accepted = self.project.label(&image.id, &Tag::accepted()).await?;
                let original = self.project.label(&image.id, &Tag::original()).await?;
                Ok::<_, crate::project::ProjectError>(accepted.zip(original))
            })?;
            let Some((accepted, original)) = pair else {
                continue;
            };
            let budget = Budget::default();
            let accepted = read_label(&self.project.training_label_path(&accepted), &budget)?;
            let original = read_label(&self.project.training_label_path(&original), &budget)?;
            let dice = metrics::dice_per_class(&accepted.layers[0], &original.layers[0], classes);
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
}
