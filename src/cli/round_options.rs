//! Options of `fewlabel serve` about rounds. They are kept in the project, as is what `PUT /rounds/settings` changes: an
//! option that is not given leaves what is kept.

use clap::Args;
use serde_json::{Value, json};

use super::Usage;
use crate::project::{Map, Project, ProjectError};
use crate::rounds::settings::Settings;

/// The word that switches something off.
const NEVER: &str = "never";

/// How rounds start and are judged.
#[derive(Args, Clone, Debug, Default)]
pub struct RoundOptions {
    /// Start a round when so many images were labelled since the last one; 'never' switches that off [kept; at first never]
    #[arg(long, value_name = "N|never")]
    pub round_after_labels: Option<String>,
    /// Start a round every day at this time (HH:MM) when there are new labels; 'never' switches that off [kept; at first
    /// never]
    #[arg(long, value_name = "HH:MM|never")]
    pub round_at: Option<String>,
    /// Optimiser steps of rounds that start by themselves; 'never' goes by their epochs again [kept; at first 50 epochs]
    #[arg(long, value_name = "N|never")]
    pub round_steps: Option<String>,
    /// Rounds continue the live version (true), or start again from the version that the first round started from (false)
    /// [kept; at first false]
    #[arg(long, value_name = "BOOL")]
    pub warm_start: Option<bool>,
    /// How much lower the Dice of any structure may be than the live version's for a new version to go live [kept; at first
    /// 0.05]
    #[arg(long, value_name = "DICE")]
    pub gate_epsilon: Option<f64>,
    /// How much lower the mean Dice over all structures may be [kept; at first 0.01]
    #[arg(long, value_name = "DICE")]
    pub gate_epsilon_mean: Option<f64>,
    /// How long the next sample is leased to who got it, in seconds [kept; at first 14400]
    #[arg(long, value_name = "SECONDS")]
    pub lease_s: Option<u32>,
    /// Proposals that are made ahead while nothing else is to do [kept; at first 2]
    #[arg(long, value_name = "N")]
    pub ahead: Option<u32>,
}

impl RoundOptions {
    /// Keeps what was given in the project.
    ///
    /// # Errors
    /// [`Usage`] for values that cannot be.
    pub async fn keep(&self, project: &Project) -> anyhow::Result<()> {
        let number = |option: &str, text: &String| match text.as_str() {
            NEVER => Ok(Value::Null),
            text => match text.parse::<u32>() {
                Ok(number) => Ok(json!(number)),
                Err(_) => Err(Usage(format!(
                    "--{option} {text:?} is neither a number nor '{NEVER}'"
                ))),
            },
        };
        let mut changes = Map::new();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                changes.insert(key.to_owned(), value);
            }
        };
        for (key, option, given) in [
            (
                "after_labels",
                "round-after-labels",
                &self.round_after_labels,
            ),
            ("steps", "round-steps", &self.round_steps),
        ] {
            set(
                key,
                given
                    .as_ref()
                    .map(|text| number(option, text))
                    .transpose()?,
            );
        }
        let at = self.round_at.as_deref();
        set(
            "daily_at",
            at.map(|at| if at == NEVER { Value::Null } else { json!(at) }),
        );
        set("warm_start", self.warm_start.map(Value::from));
        set("epsilon", self.gate_epsilon.map(Value::from));
        set("epsilon_mean", self.gate_epsilon_mean.map(Value::from));
        set("lease_s", self.lease_s.map(Value::from));
        set("ahead", self.ahead.map(Value::from));
        if changes.is_empty() {
            return Ok(());
        }
        match Settings::change(project, changes).await {
            Err(ProjectError::Invalid(reason)) => Err(Usage(reason).into()),
            outcome => outcome.map(drop).map_err(Into::into),
        }
    }
}
