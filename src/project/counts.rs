//! How far the project is, cheap enough to be asked for all the time.

use super::labels::Counts;
use super::{Project, ProjectError, Tag};

/// Counts of labels, and the number of changes at which they were made.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    at: Option<i64>,
    label_tags: Vec<(String, usize)>,
}

impl Project {
    /// How many images there are and how many are labelled, by tag.
    ///
    /// The number of images is kept by triggers; labels are counted again only after they changed,
    /// which the triggers count too, in whatever process it was.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn counts(&self) -> Result<Counts, ProjectError> {
        let database = &self.store().database;
        let total = database.counter("images_present").await?;
        let now = database.counter("label_changes").await?;
        let mut kept = self.inner.counts.lock().await;
        if kept.at != Some(now) {
            let counts = database.label_counts().await?.into_iter();
            kept.label_tags = counts
                .map(|(tag, count)| (tag, usize::try_from(count).unwrap_or_default()))
                .collect();
            kept.at = Some(now);
        }
        let accepted = Tag::accepted();
        let of_accepted = kept
            .label_tags
            .iter()
            .find(|(tag, _)| tag == accepted.as_str());
        Ok(Counts {
            total: usize::try_from(total).unwrap_or_default(),
            completed: of_accepted.map_or(0, |(_, count)| *count),
            label_tags: kept.label_tags.clone(),
        })
    }
}
