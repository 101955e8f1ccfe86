//! How rounds start and are judged, and how long images are leased; kept in the store, so that server and worker agree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::project::{Map, Project, ProjectError, StoreError};
use crate::store::rows;

/// The key in the store.
const KEY: &str = "rounds";

/// What can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A round starts when so many images were labelled since the last one began; none: never.
    pub after_labels: Option<u32>,
    /// A round starts every day at this time of the server's zone (`HH:MM`), when there are new labels; none: never.
    pub daily_at: Option<String>,
    /// Passes over the training cases of a round that started by itself.
    pub max_epochs: u32,
    /// Its optimiser steps instead; none: from `max_epochs`.
    pub steps: Option<u32>,
    /// Rounds continue the live version, instead of starting again from the version that the first round started from.
    pub warm_start: bool,
    /// How much lower the Dice of a structure may be than that of the live version, mean over the same cases.
    pub epsilon: f64,
    /// How much lower the mean over the structures may be.
    pub epsilon_mean: f64,
    /// Instead of `epsilon`, by name of the structure.
    pub epsilon_of: BTreeMap<String, f64>,
    /// How long an image is leased to the annotator who got it, in seconds.
    pub lease_s: u32,
    /// Proposals that are computed ahead for the images that will probably be asked for next.
    pub ahead: u32,
}

impl Default for Settings {
    /// A structure may lose 0.05: with the two or three validation cases of a small project, retraining alone moves a
    /// small structure by that much. The mean over all moves less.
    fn default() -> Self {
        Self {
            after_labels: None,
            daily_at: None,
            max_epochs: 50,
            steps: None,
            warm_start: false,
            epsilon: 0.05,
            epsilon_mean: 0.01,
            epsilon_of: BTreeMap::new(),
            lease_s: 4 * 3600,
            ahead: 2,
        }
    }
}

impl Settings {
    /// The settings of a project.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn of(project: &Project) -> Result<Self, ProjectError> {
        match project.store().database.setting(KEY).await? {
            Some(text) => Ok(serde_json::from_str(&text).map_err(StoreError::from)?),
            None => Ok(Self::default()),
        }
    }

    /// Changes the given keys; what changed goes into the audit log.
    ///
    /// # Errors
    /// [`ProjectError::Invalid`] for an unknown key or a value that cannot be; nothing is changed then.
    pub async fn change(project: &Project, changes: Map) -> Result<Self, ProjectError> {
        let mut tx = project.store().database.begin().await?;
        let before = Self::of(project).await?;
        let mut merged = match serde_json::to_value(&before).map_err(StoreError::from)? {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        merged.extend(changes);
        let after: Self = serde_json::from_value(Value::Object(merged))
            .map_err(|error| ProjectError::Invalid(format!("the settings of rounds: {error}")))?;
        after.check(project)?;
        if after != before {
            let text = serde_json::to_string(&after).map_err(StoreError::from)?;
            rows::put_setting(&mut tx, KEY, &text).await?;
            let detail = json!({"from": before, "to": after});
            rows::append_audit(&mut tx, project.audit_entry("change-setting", KEY, detail)).await?;
            tx.commit().await.map_err(StoreError::from)?;
        }
        Ok(after)
    }

    fn check(&self, project: &Project) -> Result<(), ProjectError> {
        let wrong = |what: String| Err(ProjectError::Invalid(format!("{what}; nothing was set")));
        let share = |value: &f64| (0.0..=1.0).contains(value);
        if self.after_labels == Some(0) || self.steps == Some(0) || self.max_epochs == 0 {
            return wrong("after_labels, steps and max_epochs have to be 1 or more".to_owned());
        }
        if let Some(at) = &self.daily_at
            && at.parse::<jiff::civil::Time>().is_err()
        {
            return wrong(format!("daily_at {at:?} is no time of the day as 02:30"));
        }
        if !share(&self.epsilon)
            || !share(&self.epsilon_mean)
            || !self.epsilon_of.values().all(share)
        {
            return wrong("epsilon, epsilon_mean and epsilon_of have to be from 0 to 1".to_owned());
        }
        let known = project.schema().names();
        if let Some(name) = self.epsilon_of.keys().find(|name| !known.contains(name)) {
            return wrong(format!("epsilon_of: there is no structure {name:?}"));
        }
        if !(60..=30 * 24 * 3600).contains(&self.lease_s) {
            return wrong("lease_s has to be from a minute to 30 days".to_owned());
        }
        if self.ahead > super::ahead::MOST {
            return wrong(format!("ahead can be {} at most", super::ahead::MOST));
        }
        Ok(())
    }

    /// How much lower the Dice of a structure may be.
    pub fn epsilon_for(&self, structure: &str) -> f64 {
        self.epsilon_of
            .get(structure)
            .copied()
            .unwrap_or(self.epsilon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tests::Bench;

    #[tokio::test]
    async fn a_change_is_kept_and_audited_and_nonsense_is_refused() {
        let bench = Bench::with(&[]).await;
        let project = &bench.project;
        assert_eq!(Settings::of(project).await.unwrap(), Settings::default());
        let change = async |changes: Value| {
            Settings::change(project, changes.as_object().unwrap().clone()).await
        };
        let set = change(json!({"after_labels": 5, "epsilon_of": {"liver": 0.2}}))
            .await
            .unwrap();
        assert_eq!(Settings::of(project).await.unwrap(), set);
        assert_eq!(
            (set.epsilon_for("liver"), set.epsilon_for("spleen")),
            (0.2, 0.05)
        );
        let audited = async || {
            let rows = project
                .store()
                .database
                .audit_page(0, i64::MIN)
                .await
                .unwrap();
            rows.iter().filter(|row| row.subject == KEY).count()
        };
        assert_eq!(audited().await, 1);
        for bad in [
            json!({"after_labels": 0}),
            json!({"daily_at": "26:00"}),
            json!({"epsilon": -0.1}),
            json!({"epsilon_of": {"heart": 0.1}}),
            json!({"lease_s": 5}),
            json!({"ahead": 1000}),
            json!({"afterlabels": 3}),
        ] {
            let refused = change(bad.clone()).await;
            assert!(matches!(refused, Err(ProjectError::Invalid(_))), "{bad}");
        }
        assert_eq!(change(json!({"after_labels": 5})).await.unwrap(), set);
        assert_eq!(audited().await, 1, "what does not change is not noted");
        let back = change(json!({"after_labels": null})).await.unwrap();
        assert_eq!(back.after_labels, None);
    }
}
