//! What is noted often: reads and inferences.
//!
//! A submit writes its row of the audit log in its own transaction. Reads are too many for a
//! synchronised transaction each, so they are noted in memory and written together, at most
//! [`WRITE_AFTER`] later and when the project is closed: no request waits for it, and a clean stop
//! loses none. Only a crash or a power cut can lose the notes of the last second. Notes that cannot
//! be written are kept; when there are [`MAX_NOTES`] of them, reading is refused rather than
//! forgotten.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::{AuditRow, Project, ProjectError};
use crate::store::StoreError;
use crate::store::rows::{self, AuditEntry};

/// Longest time between a read and its row.
const WRITE_AFTER: Duration = Duration::from_secs(1);
/// Notes that wait at most.
const MAX_NOTES: usize = 65_536;

/// The notes that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<Vec<Note>>);

#[derive(Debug)]
struct Note {
    now_ms: i64,
    actor: String,
    action: &'static str,
    subject: String,
    detail: Value,
}

impl Journal {
    fn notes(&self) -> std::sync::MutexGuard<'_, Vec<Note>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Project {
    /// Notes that this user read something; it is written to the audit log within a second.
    ///
    /// # Errors
    /// [`ProjectError::Unavailable`] when the log could not be written for so long that no more can be
    /// noted.
    pub fn note(
        &self,
        action: &'static str,
        subject: &str,
        detail: Value,
    ) -> Result<(), ProjectError> {
        // What is read from a damaged store is in the server's own log alone.
        if self.read_only().is_some() {
            return Ok(());
        }
        let mut notes = self.inner.journal.notes();
        if notes.len() >= MAX_NOTES {
            return Err(ProjectError::Unavailable(
                "the audit log cannot be written, so nothing may be read now; repeat later"
                    .to_owned(),
            ));
        }
        let first = notes.is_empty();
        notes.push(Note {
            now_ms: self.clock().now_ms(),
            actor: self.actor.to_string(),
            action,
            subject: subject.to_owned(),
            detail,
        });
        drop(notes);
        if first && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Weak: waiting notes must not keep a closed project, and its lock, open.
            let inner = Arc::downgrade(&self.inner);
            let (limits, actor) = (self.limits, self.actor.clone());
            runtime.spawn(async move {
                loop {
                    tokio::time::sleep(WRITE_AFTER).await;
                    let Some(inner) = inner.upgrade() else {
                        return;
                    };
                    let project = Project {
                        inner,
                        limits,
                        actor: actor.clone(),
                    };
                    match project.write_notes().await {
                        Ok(()) => return,
                        Err(error) => tracing::warn!("the audit log waits: {error}"),
                    }
                }
            });
        }
        Ok(())
    }

    /// Writes all notes now, in one transaction.
    ///
    /// # Errors
    /// When the store does not answer; the notes are kept.
    pub async fn write_notes(&self) -> Result<(), ProjectError> {
        let notes = std::mem::take(&mut *self.inner.journal.notes());
        if notes.is_empty() {
            return Ok(());
        }
        let written = self.write(&notes).await;
        if written.is_err() {
            let mut waiting = self.inner.journal.notes();
            let newer = std::mem::replace(&mut *waiting, notes);
            waiting.extend(newer);
        }
        written
    }

    async fn write(&self, notes: &[Note]) -> Result<(), ProjectError> {
        let mut tx = self.store().database.begin().await?;
        for note in notes {
            let entry = AuditEntry {
                now_ms: note.now_ms,
                actor: &note.actor,
                action: note.action,
                subject: &note.subject,
                detail: note.detail.clone(),
            };
            rows::append_audit(&mut tx, entry).await?;
        }
        Ok(tx.commit().await.map_err(StoreError::from)?)
    }

    /// A page of the audit log: rows after row `after` (0 for the start) written since `since_ms`
    /// (milliseconds since 1970-01-01 UTC); empty at the end.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn audit_page(
        &self,
        after: i64,
        since_ms: i64,
    ) -> Result<Vec<AuditRow>, ProjectError> {
        Ok(self.store().database.audit_page(after, since_ms).await?)
    }
}
