//! What a second reader said about a submitted label.
//!
//! A verdict belongs to one revision: a label that is submitted again is to be reviewed again. It is kept as
//! *MONAILabelReviewer* keeps its own (`segmentationMeta`), so that both see each other's.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ids::{ImageId, Tag};
use super::images::object;
use super::labels::LabelRow;
use super::{Project, ProjectError};
use crate::store::StoreError;
use crate::store::rows;

/// Where the Reviewer keeps its verdict.
const META: &str = "segmentationMeta";
/// Longest comment, in characters.
const MAX_COMMENT_CHARS: usize = 4000;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is good.
    Approved,
    /// Its author has to look at it again.
    SentBack,
}

/// A verdict with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Review {
    /// The decision.
    pub verdict: Verdict,
    /// Who decided.
    pub reviewer: String,
    /// Why; needed when it is sent back.
    pub comment: String,
    /// When, in seconds since 1970-01-01 UTC; 0 when the Reviewer did not say.
    pub ts: i64,
}

impl LabelRow {
    /// What was said about this revision, if it was reviewed.
    pub fn review(&self) -> Option<Review> {
        let meta = self.info.get(META)?;
        let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
        let verdict = match meta["status"].as_str()? {
            "approved" => Verdict::Approved,
            "flagged" => Verdict::SentBack,
            _ => return None,
        };
        Some(Review {
            verdict,
            reviewer: text("approvedBy"),
            comment: text("comment"),
            ts: meta["ts"].as_i64().unwrap_or_default(),
        })
    }

    /// Whether a second reader approved this revision.
    pub fn is_approved(&self) -> bool {
        self.review()
            .is_some_and(|review| review.verdict == Verdict::Approved)
    }

    /// Whether a second reader sent this revision back: nothing is learned from it then.
    pub fn sent_back(&self) -> bool {
        self.review()
            .is_some_and(|review| review.verdict == Verdict::SentBack)
    }
}

impl Project {
    /// Notes the verdict of the acting person on a revision of an image's accepted label, with its row in the audit log.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when the image has no such label, [`ProjectError::Conflict`] when another revision
    /// is the current one, [`ProjectError::Invalid`] when it is sent back without a comment, or the comment is too long.
    pub async fn review_label(
        &self,
        image: &ImageId,
        revision: i64,
        verdict: Verdict,
        comment: &str,
    ) -> Result<Review, ProjectError> {
        let comment = comment.trim();
        if verdict == Verdict::SentBack && comment.is_empty() {
            return Err(ProjectError::Invalid(
                "a label that is sent back needs a comment that says what to change; nothing was noted"
                    .to_owned(),
            ));
        }
        if comment.chars().count() > MAX_COMMENT_CHARS {
            return Err(ProjectError::Invalid(format!(
                "the comment is longer than {MAX_COMMENT_CHARS} characters; nothing was noted, shorten it"
            )));
        }
        let tag = Tag::accepted();
        let mut tx = self.store().database.begin().await?;
        let current = rows::current_label(&mut tx, image.as_str(), tag.as_str()).await?;
        let current = current.ok_or_else(|| {
            ProjectError::NotFound(format!("image {image} has no submitted label"))
        })?;
        if current.revision != revision {
            return Err(ProjectError::Conflict(format!(
                "the label of image {image} is at revision {} now, not {revision}; nothing was noted, look at the new one",
                current.revision
            )));
        }
        let review = Review {
            verdict,
            reviewer: self.actor.to_string(),
            comment: comment.to_owned(),
            ts: self.clock().now_s(),
        };
        let mut extra = object(&current.extra)?;
        let level = extra
            .get(META)
            .map_or(Value::Null, |meta| meta["level"].clone());
        let meta = json!({
            "status": match verdict { Verdict::Approved => "approved", Verdict::SentBack => "flagged" },
            "level": level.as_str().unwrap_or_default(),
            "approvedBy": review.reviewer, "comment": review.comment, "editTime": review.ts.to_string(), "ts": review.ts,
        });
        extra.insert(META.to_owned(), meta);
        rows::set_label_extra(&mut tx, current.seq, &json!(extra).to_string()).await?;
        let detail = json!({"revision": revision, "verdict": verdict, "comment": review.comment});
        let entry = self.audit_entry("review-label", image.as_str(), detail);
        rows::append_audit(&mut tx, entry).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(review)
    }
}
