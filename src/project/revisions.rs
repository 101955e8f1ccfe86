//! Earlier revisions: looked at, compared, made current again. Nothing is ever removed.

use serde::Serialize;
use serde_json::json;

use super::labels::LabelRow;
use super::{ImageId, Project, ProjectError, Tag};
use crate::imaging::metrics::dice_per_class;
use crate::imaging::{self, Budget};
use crate::store::StoreError;
use crate::store::rows;

/// Two revisions of a label, voxel by voxel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Voxels whose class differs.
    pub voxels_changed: u64,
    /// One entry per class of the project, in its order.
    pub classes: Vec<ClassComparison>,
}

/// One class in two revisions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassComparison {
    /// Its name.
    pub class: String,
    /// Whether it was annotated in each.
    pub annotated: [bool; 2],
    /// Voxels in each.
    pub voxels: [u64; 2],
    /// Dice coefficient; absent when the class is in neither, or was not annotated in both.
    pub dice: Option<f64>,
}

impl Project {
    /// One revision of an image and tag, tombstone or not.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn revision(
        &self,
        image: &ImageId,
        tag: &Tag,
        revision: i64,
    ) -> Result<Option<LabelRow>, ProjectError> {
        let database = &self.store().database;
        let row = database
            .label_revision(image.as_str(), tag.as_str(), revision)
            .await?;
        row.map(LabelRow::from_record).transpose()
    }

    /// Makes an earlier or later revision the current one, also after a deletion. Every revision stays;
    /// the move is a row of the audit log.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when there is no such revision, [`ProjectError::Invalid`] for a
    /// tombstone, [`ProjectError::Conflict`] when the current revision (0 for none) is not `expected`.
    pub async fn make_current(
        &self,
        image: &ImageId,
        tag: &Tag,
        revision: i64,
        expected: Option<i64>,
    ) -> Result<LabelRow, ProjectError> {
        let mut tx = self.store().database.begin().await?;
        let row = rows::label_revision(&mut tx, image.as_str(), tag.as_str(), revision).await?;
        let row = row.ok_or_else(|| no_revision(image, tag, revision))?;
        if row.deleted {
            return Err(ProjectError::Invalid(format!(
                "revision {revision} of label {tag} of image {image} is its deletion; nothing was changed, \
                 choose a revision with a label, or delete the label"
            )));
        }
        let present = rows::image(&mut tx, image.as_str()).await?;
        present
            .filter(|image| image.state != "deleted")
            .ok_or_else(|| super::images::unknown(image))?;
        let current = rows::current_label(&mut tx, image.as_str(), tag.as_str()).await?;
        let current = current.map_or(0, |row| row.revision);
        check_expected(expected, current, image, tag)?;
        rows::point_label(&mut tx, image.as_str(), tag.as_str(), revision).await?;
        let detail = json!({"tag": tag, "from": current, "to": revision, "sha256": row.sha256});
        let entry = self.audit_entry("make-label-current", image.as_str(), detail);
        rows::append_audit(&mut tx, entry).await?;
        tx.commit().await.map_err(StoreError::from)?;
        LabelRow::from_record(row)
    }

    /// Compares two revisions of a label in the classes of the project.
    ///
    /// # Errors
    /// [`ProjectError::NotFound`] when one of them does not exist, [`ProjectError::Conflict`] when the
    /// image got another size between them.
    pub async fn compare_revisions(
        &self,
        image: &ImageId,
        tag: &Tag,
        revisions: [i64; 2],
    ) -> Result<Comparison, ProjectError> {
        let mut found = Vec::new();
        for revision in revisions {
            let row = self.revision(image, tag, revision).await?;
            found.push(row.ok_or_else(|| no_revision(image, tag, revision))?);
        }
        let paths: Vec<_> = found
            .iter()
            .map(|row| self.training_label_path(row))
            .collect();
        let names = self.schema().names().to_vec();
        let annotated = names.iter().map(|name| {
            let has = |row: &LabelRow| row.annotated.contains(name);
            [has(&found[0]), has(&found[1])]
        });
        let annotated: Vec<[bool; 2]> = annotated.collect();
        self.decode(move || {
            // Written by this program: no file from outside is opened.
            let read = |path| {
                imaging::read_label(path, &Budget::default())
                    .map_err(|error| StoreError::foreign(&error))
            };
            let (a, b) = (read(&paths[0])?, read(&paths[1])?);
            if a.geometry.shape() != b.geometry.shape() {
                return Err(ProjectError::Conflict(
                    "the two revisions lie on grids of different sizes, because the image was replaced between them; \
                     they cannot be compared voxel by voxel"
                        .to_owned(),
                ));
            }
            Ok(compare([&a.layers[0], &b.layers[0]], &names, &annotated))
        })
        .await
    }
}

fn compare(maps: [&[u16]; 2], names: &[String], annotated: &[[bool; 2]]) -> Comparison {
    let classes = names.len() + 1;
    let dice = dice_per_class(maps[0], maps[1], classes);
    let sizes = maps.map(|map| {
        let mut sizes = vec![0u64; classes];
        for &value in map {
            if let Some(size) = sizes.get_mut(usize::from(value)) {
                *size += 1;
            }
        }
        sizes
    });
    let class = |(index, (name, &annotated)): (usize, (&String, &[bool; 2]))| ClassComparison {
        class: name.clone(),
        annotated,
        voxels: [sizes[0][index + 1], sizes[1][index + 1]],
        // What was not annotated is unknown, not background.
        dice: dice[index + 1].filter(|_| annotated == [true; 2]),
    };
    Comparison {
        voxels_changed: voxels_changed(maps[0], maps[1]),
        classes: names.iter().zip(annotated).enumerate().map(class).collect(),
    }
}

/// Voxels that differ between two label maps of one grid.
pub(super) fn voxels_changed(a: &[u16], b: &[u16]) -> u64 {
    a.iter().zip(b).filter(|(a, b)| a != b).count() as u64
}

/// Refuses when the current revision is not the one that the caller saw.
pub(super) fn check_expected(
    expected: Option<i64>,
    current: i64,
    image: &ImageId,
    tag: &Tag,
) -> Result<(), ProjectError> {
    match expected {
        Some(expected) if expected != current => Err(ProjectError::Conflict(format!(
            "label {tag} of image {image} is at revision {current}, not {expected}: somebody changed it meanwhile; nothing was stored, \
             look at the current label and submit again"
        ))),
        _ => Ok(()),
    }
}

fn no_revision(image: &ImageId, tag: &Tag, revision: i64) -> ProjectError {
    ProjectError::NotFound(format!(
        "label {tag} of image {image} has no revision {revision}; see /datastore/label/revisions"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_annotated_has_no_dice() {
        let names = ["liver".to_owned(), "spleen".to_owned()];
        let found = compare(
            [&[1, 1, 2, 0], &[1, 0, 2, 0]],
            &names,
            &[[true, true], [true, false]],
        );
        assert_eq!(found.voxels_changed, 1);
        assert_eq!(found.classes[0].voxels, [2, 1]);
        assert_eq!(found.classes[0].dice, Some(2.0 / 3.0));
        assert_eq!(found.classes[1].dice, None);
    }
}
