//! How far the project is, by part, annotator and structure. Counted anew each time, for people who look now and then.

use std::collections::{BTreeMap, HashMap};

use super::{ImageId, Part, Project, ProjectError, Provenance, Tag};
use crate::store::StoreError;

/// Images of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartCount {
    /// Which.
    pub part: Part,
    /// Images.
    pub total: usize,
    /// Of them with an accepted label.
    pub labelled: usize,
}

/// What one annotator did.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotator {
    /// Who.
    pub author: String,
    /// Images whose accepted label is theirs.
    pub images: usize,
    /// Accepted labels that they ever submitted.
    pub revisions: usize,
    /// Seconds from getting an image to the submit; none where no submit says it.
    pub seconds_median: Option<f64>,
    /// Their last submit, seconds since 1970-01-01 UTC.
    pub last_ts: i64,
}

/// How far the project is.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Images that are there.
    pub total: usize,
    /// Of them with an accepted label.
    pub labelled: usize,
    /// Training, validation, test.
    pub parts: Vec<PartCount>,
    /// By what they did, most first.
    pub annotators: Vec<Annotator>,
    /// In how many images each structure was annotated, in label order.
    pub structures: Vec<(String, usize)>,
}

impl Project {
    /// Counts images, labels and annotators.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn statistics(&self) -> Result<Statistics, ProjectError> {
        let accepted = Tag::accepted();
        let images: Vec<ImageId> = self.images().await?.into_iter().map(|row| row.id).collect();
        let labels = self.all_labels().await?;
        let current: HashMap<&ImageId, _> = labels
            .iter()
            .filter(|label| label.tag == accepted)
            .map(|label| (&label.image, label))
            .collect();
        let part_of: HashMap<ImageId, Part> = match self.read_only() {
            // What can only be read gets no new parts.
            Some(_) => HashMap::new(),
            None => self
                .split()
                .await?
                .into_iter()
                .map(|row| (row.image, row.part))
                .collect(),
        };
        let parts = [Part::Train, Part::Validation, Part::Test].map(|part| {
            let of_part = images.iter().filter(|id| part_of.get(*id) == Some(&part));
            let of_part: Vec<_> = of_part.collect();
            PartCount {
                part,
                total: of_part.len(),
                labelled: of_part
                    .iter()
                    .filter(|id| current.contains_key(*id))
                    .count(),
            }
        });
        let mut annotators: BTreeMap<String, (Annotator, Vec<f64>)> = BTreeMap::new();
        let submits = self.store().database.submits_of(accepted.as_str()).await?;
        for submit in submits {
            let provenance: Provenance =
                serde_json::from_str(&submit.provenance).map_err(StoreError::from)?;
            let (annotator, seconds) =
                annotators.entry(submit.author.clone()).or_insert_with(|| {
                    let nothing = Annotator {
                        author: submit.author.clone(),
                        images: 0,
                        revisions: 0,
                        seconds_median: None,
                        last_ts: 0,
                    };
                    (nothing, Vec::new())
                });
            annotator.revisions += 1;
            annotator.last_ts = annotator.last_ts.max(submit.created_ms.div_euclid(1000));
            seconds.extend(provenance.seconds_open);
        }
        for label in current.values() {
            if let Some((annotator, _)) = annotators.get_mut(&label.author) {
                annotator.images += 1;
            }
        }
        let mut annotators: Vec<Annotator> = annotators
            .into_values()
            .map(|(annotator, seconds)| Annotator {
                seconds_median: median(seconds),
                ..annotator
            })
            .collect();
        annotators.sort_by_key(|annotator| std::cmp::Reverse(annotator.revisions));
        let names = self.schema().names().iter();
        let structures = names.map(|name| {
            let annotated = current
                .values()
                .filter(|label| label.annotated.contains(name));
            (name.clone(), annotated.count())
        });
        Ok(Statistics {
            total: images.len(),
            labelled: images.iter().filter(|id| current.contains_key(id)).count(),
            parts: parts.to_vec(),
            annotators,
            structures: structures.collect(),
        })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values[low] + values[high]) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tests::Bench;

    #[tokio::test]
    async fn images_are_counted_by_part_and_structure_and_labels_by_author() {
        let bench = Bench::with(&["a.nii.gz", "b.nii.gz", "c.nii.gz"]).await;
        bench.submit("a", "final", &[1]).await.unwrap();
        bench.submit("a", "final", &[1, 2]).await.unwrap();
        bench.submit("b", "original", &[1]).await.unwrap();
        let found = bench.project.statistics().await.unwrap();
        assert_eq!((found.total, found.labelled), (3, 1));
        let (total, labelled) = found.parts.iter().fold((0, 0), |(total, labelled), part| {
            (total + part.total, labelled + part.labelled)
        });
        assert_eq!((total, labelled), (3, 1));
        let [annotator] = found.annotators.as_slice() else {
            panic!("{:?}", found.annotators);
        };
        assert_eq!((annotator.images, annotator.revisions), (1, 2));
        assert!(found.structures.iter().all(|(_, images)| *images <= 1));
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
