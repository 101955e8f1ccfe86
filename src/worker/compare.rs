//! The version that a round made, beside the live one, on the same validation cases.

use std::collections::HashMap;
use std::path::Path;

use super::{Failure, Reporter, Worker};
use crate::imaging::{Budget, metrics, read_label, read_scan};
use crate::model::{Manifest, ModelError, Segmenter, TrainCase};
use crate::project::{ImageId, ProjectError};
use crate::rounds::conclude::comparable;
use crate::rounds::fine_tune::Plan;
use crate::rounds::gate::{self, CasePair, Verdict};
use crate::rounds::registry::ModelVersion;
use crate::rounds::round::{self, Judged};
use crate::rounds::settings::Settings;

/// Rounds that are looked at for what is known of the live version.
const REMEMBERED: u32 = 20;

/// What is known of a version: the Dice per structure by image, hash of the image and hash of the label.
type Known = HashMap<(String, String, String), Vec<Option<f64>>>;

impl Worker {
    /// Decides about the model in `dir`. With the decision comes the model, which has answered a warm-up.
    pub(super) fn judge(
        &mut self,
        plan: &Plan,
        dir: &Path,
        reporter: &Reporter,
    ) -> Result<(Judged, Verdict, Segmenter), Failure> {
        let live = self.version(&plan.parent.name, None)?;
        let finite = Manifest::read(dir)?.has_finite_weights(dir)?;
        let new = Segmenter::load(dir, self.device, self.precision)?;
        new.warm_up()?;
        let comparison = match finite {
            true => self.compare(plan, &live, &new, reporter)?,
            false => None,
        };
        // The lead may have moved the pointer meanwhile; what was compared is what counts.
        let pinned = self.version(&plan.parent.name, None)?;
        let pinned = pinned.pinned.then_some(pinned.version);
        let trained = live.manifest()?.trained;
        let verdict = gate::judge(finite, trained, pinned, comparison.as_ref());
        let judged = Judged {
            live_version: live.version,
            comparison,
        };
        Ok((judged, verdict, new))
    }

    fn compare(
        &mut self,
        plan: &Plan,
        live: &ModelVersion,
        new: &Segmenter,
        reporter: &Reporter,
    ) -> Result<Option<gate::Comparison>, Failure> {
        let (compared, left_out) = comparable(&plan.frozen, live);
        if compared.is_empty() {
            return Ok(None);
        }
        let known = self.runtime.block_on(self.known_of(live))?;
        let mut old = None;
        let mut pairs = Vec::new();
        for index in compared {
            let case = &plan.frozen.validation[index];
            let id = ImageId::parse(&case.name)?;
            let image_sha256 = self.runtime.block_on(self.project.image_sha256(&id))?;
            let label_sha256 = plan.frozen.validation_sha256[index].clone();
            let key = (case.name.clone(), image_sha256, label_sha256);
            let old_dice = match known.get(&key) {
                Some(dice) => dice.clone(),
                None => {
                    let segmenter = match old.take() {
                        Some(segmenter) => segmenter,
                        None => Segmenter::load(&live.dir, self.device, self.precision)?,
                    };
                    let dice = self.dice_of(old.insert(segmenter), case, reporter)?;
                    if dice.is_empty() {
                        continue;
                    }
                    dice
                }
            };
            let new_dice = self.dice_of(new, case, reporter)?;
            if new_dice.is_empty() {
                continue;
            }
            let (image, image_sha256, label_sha256) = key;
            pairs.push(CasePair {
                image,
                image_sha256,
                label_sha256,
                old_dice,
                new_dice,
            });
            reporter.line(format!(
                "compared with version {} on {}",
                live.version, case.name
            ));
        }
        let settings = self.runtime.block_on(Settings::of(&self.project))?;
        let names = self.project.schema().names();
        Ok((!pairs.is_empty()).then(|| gate::compare(names, pairs, left_out, &settings)))
    }

    /// Dice per structure of a proposal for a case; empty when the case cannot be read.
    fn dice_of(
        &mut self,
        segmenter: &Segmenter,
        case: &TrainCase,
        reporter: &Reporter,
    ) -> Result<Vec<Option<f64>>, Failure> {
        let budget = Budget::default();
        let read = read_scan(&case.image, &budget)
            .and_then(|scan| Ok((scan, read_label(&case.label, &budget)?)));
        let (scan, label) = match read {
            Ok(read) => read,
            Err(error) => {
                reporter.line(format!("{} is left out: {error}", case.name));
                return Ok(Vec::new());
            }
        };
        let found = segmenter.segment(&scan.volume, &[], &mut |_, _| {
            self.yield_to_urgent(reporter)
        });
        let found = match found {
            Err(ModelError::Stopped) => return Err(Failure::Stopped),
            found => found?,
        };
        let classes = self.project.schema().class_count();
        let truth = label.layers.first().map(Vec::as_slice).unwrap_or_default();
        let dice = metrics::dice_per_class(&found.labels.voxels, truth, classes);
        let known =
            |(value, dice): (u16, Option<f64>)| dice.filter(|_| case.annotated.contains(&value));
        Ok((0..).zip(dice).skip(1).map(known).collect())
    }

    /// What earlier rounds found out about a version.
    async fn known_of(&self, version: &ModelVersion) -> Result<Known, ProjectError> {
        let mut known = Known::new();
        for round in round::list(&self.project, REMEMBERED).await? {
            let Some(judged) = round.judged.filter(|_| round.model == version.name) else {
                continue;
            };
            let was_new = round.version == Some(version.version);
            let was_live = judged.live_version == version.version;
            for pair in judged
                .comparison
                .into_iter()
                .flat_map(|found| found.per_case)
            {
                let dice = match (was_new, was_live) {
                    (true, _) => pair.new_dice,
                    (false, true) => pair.old_dice,
                    (false, false) => continue,
                };
                known.insert((pair.image, pair.image_sha256, pair.label_sha256), dice);
            }
        }
        // Another device or precision gives almost the same numbers, which is all that epsilon needs.
        Ok(known)
    }
}
