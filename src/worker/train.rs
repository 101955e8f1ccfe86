//! A fine-tuning round.

use serde_json::json;

use super::{Failure, Outcome, Reporter, Worker};
use crate::model::{EndedEarly, ModelError, TrainEvent};
use crate::project::requests::TrainRequest;
use crate::rounds::fine_tune;

impl Worker {
    pub(super) fn train(&mut self, request: TrainRequest, reporter: &Reporter) -> Outcome {
        let mut plan = self
            .runtime
            .block_on(fine_tune::plan(&self.project, &request))?;
        plan.request.options.device = self.device;
        let steps = plan.request.options.steps;
        reporter.line(format!(
            "learning from {} cases, validating on {}, {steps} steps, from version {}",
            plan.request.cases.len(),
            plan.request.validation.len(),
            plan.parent.version
        ));
        let total_epochs = steps.div_ceil(plan.steps_per_epoch).max(1);
        let names = self.project.schema().names().to_vec();
        let (mut epoch, mut best) = (0, 0.0f64);
        let mut eval = json!({});
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
                    reporter.progress(json!({
                        "epoch": epoch, "total_epochs": total_epochs, "best_metric": best,
                        "step": step, "steps": steps, "loss": loss, "rate_hz": rate_hz, "eta_s": eta_s,
                        "train": {"metrics": {"loss": loss}, "key_metric_name": "loss"},
                        "eval": eval,
                    }));
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
                TrainEvent::Resumed(_) | TrainEvent::Between => {}
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
        if reporter.flow().is_break() || self.ending.load(std::sync::atomic::Ordering::Relaxed) {
            // A stopped round publishes nothing: who stopped it did not want it.
            std::fs::remove_dir_all(&plan.request.out)?;
            return Err(Failure::Stopped);
        }
        let published = self
            .runtime
            .block_on(fine_tune::publish(&self.project, &plan, &report))?;
        reporter.line(format!(
            "published version {} of {}",
            published.version, published.name
        ));
        Ok(json!({
            "model": published.name,
            "version": published.version,
            "metrics": published.metrics,
            "steps": report.steps,
        }))
    }
}
