//! How sure the live model is of every image, image by image.

use serde_json::json;

use super::{Failure, Outcome, Reporter, Worker};
use crate::imaging::{Budget, read_scan};
use crate::model::{Explorer, ModelError};
use crate::project::requests::ScoreRequest;
use crate::project::{JobKind, Map, ProjectError};
use crate::rounds::registry::{ModelVersion, Registry};
use crate::rounds::scoring::{self, How};

/// How a walk over the pool ended.
enum Asked {
    /// Every image has scores of this version.
    All(i64),
    /// Another version is live.
    NewVersion,
}

impl Worker {
    /// How sure the live model is of every image, kept image by image; those that it was asked about before are left out,
    /// so that an interrupted scoring goes on where it was. A training that waits goes first; then its version is asked.
    pub(super) fn score_epistemic(
        &mut self,
        request: &ScoreRequest,
        reporter: &Reporter,
    ) -> Outcome {
        let (mut scored, mut left_out) = (0usize, Map::new());
        loop {
            match self.score_pool(request, reporter, &mut scored, &mut left_out)? {
                Asked::All(version) => {
                    return Ok(json!({
                        "epistemic": {"version": version, "scored": scored, "left_out": left_out}
                    }));
                }
                Asked::NewVersion => {
                    reporter.line("there is a new version; it is asked now".to_owned())
                }
            }
        }
    }

    fn score_pool(
        &mut self,
        request: &ScoreRequest,
        reporter: &Reporter,
        scored: &mut usize,
        left_out: &mut Map,
    ) -> Result<Asked, Failure> {
        let version = self.asked(request)?;
        let how = How {
            passes: request.passes,
            versions: request.versions.unwrap_or(1).max(1),
        };
        let pending = scoring::pending(&self.project, &version, how);
        let pending = self.runtime.block_on(pending)?;
        if pending.is_empty() {
            return Ok(Asked::All(version.version));
        }
        let members = scoring::model_members(&self.project, &version, how);
        let members = self.runtime.block_on(members)?;
        let explorer = Explorer::load(&members, how.passes, self.device, self.precision)?;
        let total = pending.len();
        for (done, image) in pending.into_iter().enumerate() {
            self.between(reporter)?;
            // What somebody asked for goes before the rest of the pool; a round makes the scores old.
            let urgent = [JobKind::BatchInfer, JobKind::Train];
            if self.next(&urgent)? && self.asked(request)?.version != version.version {
                return Ok(Asked::NewVersion);
            }
            let file = self.runtime.block_on(self.project.image_file(&image));
            let scan = file.map_err(|error| error.to_string()).and_then(|file| {
                read_scan(file.path(), &Budget::default()).map_err(|error| error.to_string())
            });
            let scan = match scan {
                Ok(scan) => scan.volume,
                Err(error) => {
                    reporter.line(format!("{}: left out: {error}", image.id));
                    left_out.insert(image.id.to_string(), json!(error));
                    continue;
                }
            };
            let seed = self.project.seed();
            let found = scoring::measure(&explorer, &scan, seed, &mut |_, _| {
                self.yield_to_urgent(reporter)
            });
            let scores = match found {
                Err(ModelError::Stopped) => return Err(Failure::Stopped),
                found => found?,
            };
            let kept = scoring::keep(&self.project, &version, how, &image, &scores);
            match self.runtime.block_on(kept) {
                // It was deleted meanwhile.
                Err(ProjectError::NotFound(_)) => continue,
                kept => kept?,
            }
            *scored += 1;
            reporter.line(match &scores.uncertainty {
                Some(found) => format!("{}: entropy {:.4}", image.id, found.entropy),
                None => format!("{}: features only, as the model is not trained", image.id),
            });
            reporter.progress(json!({"done": done + 1, "total": total}));
        }
        Ok(Asked::All(version.version))
    }

    /// The live version of the model that the request names, or of the first.
    fn asked(&self, request: &ScoreRequest) -> Result<ModelVersion, Failure> {
        let named = |version: &ModelVersion| {
            version.live
                && request
                    .model
                    .as_ref()
                    .is_none_or(|name| *name == version.name)
        };
        let versions = self
            .runtime
            .block_on(Registry::new(&self.project).models())?;
        let found = versions.into_iter().find(named);
        found.ok_or_else(|| Failure::Error("there is no such model in this project".to_owned()))
    }
}
