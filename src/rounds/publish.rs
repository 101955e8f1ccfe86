//! Which version serves: publishing, keeping, pinning, the way back. Each is one transaction with its audit row.
//!
//! The caller has made sure that the version answers ([`crate::project::requests::ImageSource::WarmUp`]); the one before
//! serves until the commit.

use serde_json::json;

use super::registry::{ModelVersion, Registry, VersionState};
use crate::project::{ProjectError, StoreError};
use crate::store::rows::{self, Publication};

impl Registry {
    /// The same models for one user: this name goes into the audit log.
    #[must_use]
    pub fn acting_as(&self, actor: &str) -> Self {
        Self::new(&self.project.acting_as(actor))
    }

    /// Makes a version the one that serves; with `pinned` rounds do not replace it.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such version.
    pub async fn publish(
        &self,
        name: &str,
        version: i64,
        pinned: bool,
    ) -> Result<ModelVersion, ProjectError> {
        let model = self.expect(name, version).await?;
        let reason = match (pinned, model.state) {
            (true, _) => "pinned by hand",
            (false, VersionState::Published) => model.reason.as_str(),
            (false, _) => "published by hand",
        };
        let action = if pinned { "pin-model" } else { "publish-model" };
        self.set_live(action, &model, pinned, false, reason).await
    }

    /// Makes the version serve that the live one replaced, and ends its being pinned.
    ///
    /// # Errors
    /// [`ProjectError::Conflict`] when the live version replaced none, or is gone.
    pub async fn roll_back(&self, name: &str) -> Result<ModelVersion, ProjectError> {
        let live = self.expect_live(name).await?;
        let before = self.rollback_version(&live).await?.ok_or_else(|| {
            ProjectError::Conflict(format!(
                "version {} of {name} replaced no other version, so there is nothing to go back to; publish the one that you want",
                live.version
            ))
        })?;
        let model = self.expect(name, before).await?;
        self.set_live("roll-back-model", &model, false, true, &model.reason)
            .await
    }

    /// The version that the live one replaced.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn rollback_version(&self, live: &ModelVersion) -> Result<Option<i64>, ProjectError> {
        let database = &self.project.store().database;
        let replaced = database.replaced_by(&live.name, live.version).await?;
        let Some(version) = replaced else {
            return Ok(None);
        };
        let there = self.version(&live.name, version).await?.is_some();
        Ok(there.then_some(version))
    }

    /// Decides that a version is not published.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such version, [`ProjectError::Conflict`] when it is the live one.
    pub async fn keep(&self, name: &str, version: i64) -> Result<ModelVersion, ProjectError> {
        let model = self.expect(name, version).await?;
        if model.live {
            return Err(ProjectError::Conflict(format!(
                "version {version} of {name} is the live one; publish another one first, or roll back"
            )));
        }
        let reason = format!("not published, decided by hand ({})", model.reason);
        let mut tx = self.project.store().database.begin().await?;
        let state = VersionState::Kept;
        rows::set_model_state(&mut tx, name, version, state.as_str(), &reason).await?;
        let entry = self
            .project
            .audit_entry("keep-model", name, json!({"version": version}));
        rows::append_audit(&mut tx, entry).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(ModelVersion {
            state,
            reason,
            ..model
        })
    }

    /// Lets rounds replace the live version again.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such model.
    pub async fn unpin(&self, name: &str) -> Result<ModelVersion, ProjectError> {
        let live = self.expect_live(name).await?;
        let reason = live.reason.clone();
        self.set_live("unpin-model", &live, false, false, &reason)
            .await
    }

    async fn expect(&self, name: &str, version: i64) -> Result<ModelVersion, ProjectError> {
        self.version(name, version).await?.ok_or_else(|| {
            ProjectError::NotFound(format!("there is no version {version} of model {name:?}"))
        })
    }

    async fn expect_live(&self, name: &str) -> Result<ModelVersion, ProjectError> {
        self.live(name)
            .await?
            .ok_or_else(|| ProjectError::NotFound(format!("there is no model {name:?}")))
    }

    async fn set_live(
        &self,
        action: &str,
        model: &ModelVersion,
        pinned: bool,
        rollback: bool,
        reason: &str,
    ) -> Result<ModelVersion, ProjectError> {
        let (name, version) = (model.name.as_str(), model.version);
        let mut tx = self.project.store().database.begin().await?;
        let detail = json!({"version": version, "pinned": pinned});
        let entry = self.project.audit_entry(action, name, detail);
        let publication = Publication {
            name,
            version,
            pinned,
            rollback,
            actor: entry.actor,
            now_ms: entry.now_ms,
        };
        rows::set_live_model(&mut tx, &publication).await?;
        let state = VersionState::Published;
        rows::set_model_state(&mut tx, name, version, state.as_str(), reason).await?;
        rows::append_audit(&mut tx, entry).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(ModelVersion {
            state,
            reason: reason.to_owned(),
            live: true,
            pinned,
            ..model.clone()
        })
    }
}
