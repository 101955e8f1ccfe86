//! Proposals for many images, kept as labels.

use serde_json::json;

use super::models::Window;
use super::{Failure, Outcome, Reporter, Worker};
use crate::imaging::components::{self, Connectivity};
use crate::imaging::{Budget, LabelFormat, write_label};
use crate::project::requests::{BatchImages, BatchInferRequest};
use crate::project::{Map, Tag};

impl Worker {
    pub(super) fn batch_infer(
        &mut self,
        request: BatchInferRequest,
        reporter: &Reporter,
    ) -> Outcome {
        let version = self.version(&request.model, request.version)?;
        let images = self.runtime.block_on(self.chosen(&request))?;
        let limit = request
            .max_batch_size
            .map_or(images.len(), |limit| limit as usize);
        let total = images.len().min(limit);
        let names = self.project.schema().values();
        let scratch = self.project.scratch_dir();
        std::fs::create_dir_all(&scratch)?;
        let mut done = Map::new();
        for image in images.into_iter().take(limit) {
            if self.yield_to_urgent(reporter).is_break() {
                return Err(Failure::Stopped);
            }
            let file = match self.runtime.block_on(self.project.image_file(&image)) {
                Ok(file) => file,
                Err(error) => {
                    reporter.line(format!("{}: left out: {error}", image.id));
                    continue;
                }
            };
            let mut proposal = match self.propose(
                &version,
                file.path(),
                &Budget::default(),
                Window::Whole,
                reporter,
            ) {
                Ok(proposal) => proposal,
                Err(Failure::Image(error)) => {
                    reporter.line(format!("{}: left out: {error}", image.id));
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            if request.largest_cc {
                components::keep_largest(&mut proposal.labels, Connectivity::Corners26);
            }
            let file = scratch.join(format!(
                "batch-{}{}",
                uuid::Uuid::now_v7(),
                LabelFormat::NiftiGz.suffix()
            ));
            write_label(&file, &proposal.labels, &names, LabelFormat::NiftiGz)?;
            let label_names: Map = names
                .iter()
                .map(|(value, name)| (name.clone(), json!(value)))
                .collect();
            let params = json!({
                "label_names": label_names, "model": version.name, "model_version": version.version,
                "model_sha256": version.weights_sha256,
            });
            let kept = self.keep(&image.id, &request.label_tag, &file, &version, &params);
            std::fs::remove_file(&file)?;
            kept?;
            done.insert(
                image.id.to_string(),
                json!({"label": image.id.to_string(), "tag": request.label_tag, "params": params}),
            );
            reporter.line(format!("{} of {total}: {}", done.len(), image.id));
            reporter.progress(json!({"done": done.len(), "total": total}));
        }
        Ok(done.into())
    }

    async fn chosen(
        &self,
        request: &BatchInferRequest,
    ) -> Result<Vec<crate::project::ImageRow>, crate::project::ProjectError> {
        let mut chosen = Vec::new();
        for image in self.project.images().await? {
            let labelled = self
                .project
                .label(&image.id, &Tag::accepted())
                .await?
                .is_some();
            let wanted = match request.images {
                BatchImages::All => true,
                BatchImages::Labeled => labelled,
                BatchImages::Unlabeled => !labelled,
            };
            if wanted {
                chosen.push(image);
            }
        }
        Ok(chosen)
    }
}
