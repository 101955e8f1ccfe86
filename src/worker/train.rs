//! A fine-tuning round: it learns, is compared with the live version, and goes live or is kept.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::{Failure, Outcome, Reporter, Worker};
use crate::model::{EndedEarly, ModelError, TrainEvent, TrainReport};
use crate::project::Claimed;
use crate::project::requests::TrainRequest;
use crate::rounds::conclude;
use crate::rounds::fine_tune::{self, Begun, Plan};

impl Worker {
    pub(super) fn train(
        &mut self,
        claimed: &Claimed,
        request: TrainRequest,
        reporter: &Reporter,
    ) -> Outcome {
        let begun = self
            .runtime
            .block_on(fine_tune::begin(&self.project, claimed, &request))?;
        let mut plan = match begun {
            Begun::Train(plan) => *plan,
            Begun::Over(version) => return Ok(json!({"model": request.model, "version": version})),
        };
        plan.request.options.device = self.device;
        let _held = self.runtime.block_on(self.project.labelled_image_files())?;
        reporter.line(format!(
            "learning from {} cases, validating on {}, {} steps, from version {}",
            plan.frozen.cases.len(),
            plan.frozen.validation.len(),
            plan.request.options.steps,
            plan.parent.version
        ));
        // A worker that was killed after the last step left it.
        if plan.request.out.exists() {
            std::fs::remove_dir_all(&plan.request.out)?;
        }
        let (report, shown) = self.learn(&plan, reporter)?;
        if reporter.flow().is_break() || self.ending.load(Ordering::Relaxed) {
            // A stopped round publishes nothing: who stopped it did not want it.
            return Err(Failure::Stopped);
        }
        reporter.progress(stage(&shown, "comparing"));
        let out = plan.request.out.clone();
        let (judged, verdict, segmenter) = self.judge(&plan, &out, reporter)?;
        let concluded = self.runtime.block_on(conclude::conclude(
            &self.project,
            claimed,
            &plan,
            &report,
            &judged,
            &verdict,
        ));
        let version = match concluded {
            Err(conclude::Refused::Lost) => return Err(Failure::Stopped),
            Err(conclude::Refused::Project(error)) => return Err(error.into()),
            Ok(version) => version,
        };
        let what = if version.live {
            "published"
        } else {
            "kept as a candidate, not published:"
        };
        reporter.line(format!(
            "{what} version {} of {}: {}",
            version.version, version.name, verdict.reason
        ));
        if version.live {
            self.models.put(&version, segmenter);
        }
        Ok(json!({
            "model": version.name,
            "version": version.version,
            "published": version.live,
            "reason": verdict.reason,
            "metrics": version.metrics,
            "steps": report.steps,
        }))
    }

    /// The training itself; with the report comes the last progress.
    fn learn(&mut self, plan: &Plan, reporter: &Reporter) -> Result<(TrainReport, Value), Failure> {
        let steps = plan.request.options.steps;
        let total_epochs = steps.div_ceil(plan.frozen.steps_per_epoch).max(1);
        let names = self.project.schema().names().to_vec();
        let (mut epoch, mut best) = (0, 0.0f64);
        let (mut eval, mut shown) = (json!({}), json!({"stage": "preparing", "steps": steps}));
        reporter.progress(shown.clone());
        let result = crate::model::train(&plan.request, &mut |event| {
            match event {
                TrainEvent::Step {
                    step,
                    loss,
                    rate_hz,
                    ..
                } => {
                    let eta_s = (steps - step) as f64 / rate_hz.max(1e-9);
                    if step * total_epochs / steps > epoch || step == 1 || step == steps {
                        epoch = (step * total_epochs / steps).max(1);
                        reporter.line(format!("step {step} of {steps}: loss {loss:.4}, {rate_hz:.2} it/s, {eta_s:.0} s left"));
                    }
                    shown = json!({
                        "stage": "training", "epoch": epoch, "total_epochs": total_epochs, "best_metric": best,
                        "step": step, "steps": steps, "loss": loss, "rate_hz": rate_hz, "eta_s": eta_s,
                        "train": {"metrics": {"loss": loss}, "key_metric_name": "loss"},
                        "eval": eval,
                    });
                    reporter.progress(shown.clone());
                }
                TrainEvent::Validated {
                    step,
                    dice,
                    mean,
                    best: is_best,
                } => {
                    let per_class: serde_json::Map<_, _> = names
                        .iter()
                        .cloned()
                        .zip(dice.iter().map(|dice| json!(dice)))
                        .collect();
                    reporter.line(format!(
                        "step {step}: validation Dice {mean:.4}{}",
                        if is_best { ", the best so far" } else { "" }
                    ));
                    best = best.max(mean);
                    eval = json!({"metrics": {"val_mean_dice": mean, "dice": per_class}, "key_metric_name": "val_mean_dice", "best_metric": best});
                }
                TrainEvent::Case(note) => reporter.line(note.to_string()),
                TrainEvent::RolledBack {
                    step,
                    back_to,
                    reason,
                    ..
                } => reporter.line(format!(
                    "step {step}: {reason}; back to step {back_to} with half the learning rate"
                )),
                TrainEvent::Resumed(step) => {
                    reporter.line(format!("going on after step {step}, which was saved"));
                }
                TrainEvent::Between => {}
            }
            self.yield_to_urgent(reporter)
        });
        let report = match result {
            Err(ModelError::Stopped) => return Err(Failure::Stopped),
            result => result?,
        };
        if report.ended_early == Some(EndedEarly::Patience) {
            reporter.line("no better for as long as asked; it ended early".to_owned());
        }
        Ok((report, shown))
    }
}

/// The progress at another stage of the round; nothing of it is left to be learned.
fn stage(shown: &Value, stage: &str) -> Value {
    let mut shown = shown.clone();
    shown["stage"] = stage.into();
    shown["eta_s"] = Value::Null;
    shown
}
