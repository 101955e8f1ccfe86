//! Rows of label revisions.

use sqlx::SqliteConnection;

use super::{Database, StoreError, sql};

/// One revision as stored; `origin`, `params`, `extra` and `annotated` are JSON.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct LabelRecord {
    /// Order of all revisions.
    pub seq: i64,
    /// Image id.
    pub image: String,
    /// Tag.
    pub tag: String,
    /// 1, 2, ... per image and tag.
    pub revision: i64,
    /// The revision it replaced.
    pub parent: Option<i64>,
    /// Order of the tag among the tags of the image.
    pub position: i64,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// Suffix with its dot.
    pub ext: String,
    /// Blob with the bytes as sent.
    pub sha256: String,
    /// Blob with the values of the schema.
    pub normalised_sha256: String,
    /// Size of the file as sent.
    pub size_bytes: i64,
    /// Who.
    pub author: String,
    /// How it was made.
    pub origin: String,
    /// What the client sent with it.
    pub params: String,
    /// What was merged in afterwards.
    pub extra: String,
    /// Names of the annotated classes.
    pub annotated: String,
    /// Hash of the image it was drawn on.
    pub image_sha256: String,
    /// When.
    pub created_ms: i64,
    /// The client's key of the submit.
    pub idempotency_key: Option<String>,
    /// Client, tool, time and distance from the proposal (JSON).
    pub provenance: String,
    /// Hash of the grid that it lies on; empty for revisions of schema 1.
    pub geometry_sha256: String,
}

/// A revision to be added; number, parent and position follow from the revisions there are.
#[derive(Debug, Clone)]
pub struct NewLabel {
    /// As in [`LabelRecord`], likewise below.
    pub image: String,
    /// Tag.
    pub tag: String,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// Suffix with its dot.
    pub ext: String,
    /// Blob with the bytes as sent.
    pub sha256: String,
    /// Blob with the values of the schema.
    pub normalised_sha256: String,
    /// Size of the file as sent.
    pub size_bytes: i64,
    /// Who.
    pub author: String,
    /// How it was made.
    pub origin: String,
    /// What the client sent with it.
    pub params: String,
    /// Names of the annotated classes.
    pub annotated: String,
    /// Hash of the image it was drawn on.
    pub image_sha256: String,
    /// When.
    pub created_ms: i64,
    /// The client's key of the submit.
    pub idempotency_key: Option<String>,
    /// Client, tool, time and distance from the proposal (JSON).
    pub provenance: String,
    /// Hash of the grid that it lies on.
    pub geometry_sha256: String,
}

/// Who submitted a revision, and how.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SubmitRecord {
    /// Who.
    pub author: String,
    /// Client, tool, time and distance from the proposal (JSON).
    pub provenance: String,
    /// When.
    pub created_ms: i64,
}

impl Database {
    /// Every revision of a tag, tombstones left out, oldest first.
    pub async fn submits_of(&self, tag: &str) -> Result<Vec<SubmitRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("submits_of"))
            .bind(tag)
            .fetch_all(self.readers())
            .await?)
    }

    /// The current revision of an image and tag.
    pub async fn label(&self, image: &str, tag: &str) -> Result<Option<LabelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("label_current"))
            .bind(image)
            .bind(tag)
            .fetch_optional(self.readers())
            .await?)
    }

    /// The current revisions of an image, oldest tag first.
    pub async fn labels_of(&self, image: &str) -> Result<Vec<LabelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("labels_current_of"))
            .bind(image)
            .fetch_all(self.readers())
            .await?)
    }

    /// The current revisions of all present images.
    pub async fn labels(&self) -> Result<Vec<LabelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("labels_current"))
            .fetch_all(self.readers())
            .await?)
    }

    /// The current revisions of all present images under one tag, in order of first sight of the images.
    pub async fn labels_tagged(&self, tag: &str) -> Result<Vec<LabelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("labels_tagged"))
            .bind(tag)
            .fetch_all(self.readers())
            .await?)
    }

    /// Present images with a current label of that tag, and the structures that it declares to hold in full.
    pub async fn annotated(&self, tag: &str) -> Result<Vec<(String, Vec<String>)>, StoreError> {
        self.list(sqlx::query_scalar(sql!("labels_annotated")).bind(tag))
            .await
    }

    /// Every revision of an image and tag, tombstones included, oldest first.
    pub async fn label_history(
        &self,
        image: &str,
        tag: &str,
    ) -> Result<Vec<LabelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("labels_history"))
            .bind(image)
            .bind(tag)
            .fetch_all(self.readers())
            .await?)
    }

    /// One revision of an image and tag, tombstone or not.
    pub async fn label_revision(
        &self,
        image: &str,
        tag: &str,
        revision: i64,
    ) -> Result<Option<LabelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("label_revision"))
            .bind(image)
            .bind(tag)
            .bind(revision)
            .fetch_optional(self.readers())
            .await?)
    }

    /// The revision that a submit with this key made.
    pub async fn label_by_key(&self, key: &str) -> Result<Option<LabelRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("label_by_key"))
            .bind(key)
            .fetch_optional(self.readers())
            .await?)
    }

    /// Every blob that a row needs.
    pub async fn referenced_blobs(&self) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar(sql!("blobs_referenced"))
            .fetch_all(self.readers())
            .await?)
    }

    /// Whether any row needs the blob.
    pub async fn is_blob_referenced(&self, sha256: &str) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(sql!("blob_referenced"))
            .bind(sha256)
            .fetch_one(self.readers())
            .await?)
    }
}

/// The revision that a submit with this key made, as the transaction sees it.
pub async fn label_by_key(
    tx: &mut SqliteConnection,
    key: &str,
) -> Result<Option<LabelRecord>, StoreError> {
    Ok(sqlx::query_as(sql!("label_by_key"))
        .bind(key)
        .fetch_optional(tx)
        .await?)
}

/// The current revision as the transaction sees it.
pub async fn current_label(
    tx: &mut SqliteConnection,
    image: &str,
    tag: &str,
) -> Result<Option<LabelRecord>, StoreError> {
    Ok(sqlx::query_as(sql!("label_current"))
        .bind(image)
        .bind(tag)
        .fetch_optional(tx)
        .await?)
}

/// The current revisions of an image as the transaction sees them.
pub async fn current_labels_of(
    tx: &mut SqliteConnection,
    image: &str,
) -> Result<Vec<LabelRecord>, StoreError> {
    Ok(sqlx::query_as(sql!("labels_current_of"))
        .bind(image)
        .fetch_all(tx)
        .await?)
}

/// One revision as the transaction sees it.
pub async fn label_revision(
    tx: &mut SqliteConnection,
    image: &str,
    tag: &str,
    revision: i64,
) -> Result<Option<LabelRecord>, StoreError> {
    Ok(sqlx::query_as(sql!("label_revision"))
        .bind(image)
        .bind(tag)
        .bind(revision)
        .fetch_optional(tx)
        .await?)
}

/// Adds the next revision of its image and tag and makes it the current one. Its parent is the
/// current one before it. A tag that was deleted starts at the end again.
pub async fn add_label(
    tx: &mut SqliteConnection,
    new: &NewLabel,
) -> Result<LabelRecord, StoreError> {
    let last: Option<i64> = sqlx::query_scalar(sql!("label_last"))
        .bind(&new.image)
        .bind(&new.tag)
        .fetch_one(&mut *tx)
        .await?;
    let replaced = current_label(&mut *tx, &new.image, &new.tag).await?;
    let row: LabelRecord = sqlx::query_as(sql!("label_insert"))
        .bind(&new.image)
        .bind(&new.tag)
        .bind(last.unwrap_or_default() + 1)
        .bind(replaced.as_ref().map(|row| row.revision))
        .bind(replaced.as_ref().map(|row| row.position))
        .bind(new.deleted)
        .bind(&new.ext)
        .bind(&new.sha256)
        .bind(&new.normalised_sha256)
        .bind(new.size_bytes)
        .bind(&new.author)
        .bind(&new.origin)
        .bind(&new.params)
        .bind("{}")
        .bind(&new.annotated)
        .bind(&new.image_sha256)
        .bind(new.created_ms)
        .bind(&new.idempotency_key)
        .bind(&new.provenance)
        .bind(&new.geometry_sha256)
        .fetch_one(&mut *tx)
        .await?;
    point_label(tx, &new.image, &new.tag, row.revision).await?;
    Ok(row)
}

/// Makes an existing revision the current one.
pub async fn point_label(
    tx: &mut SqliteConnection,
    image: &str,
    tag: &str,
    revision: i64,
) -> Result<(), StoreError> {
    sqlx::query(sql!("label_point"))
        .bind(image)
        .bind(tag)
        .bind(revision)
        .execute(tx)
        .await?;
    Ok(())
}

/// Replaces what was merged into a revision (JSON).
pub async fn set_label_extra(
    tx: &mut SqliteConnection,
    seq: i64,
    extra: &str,
) -> Result<(), StoreError> {
    sqlx::query(sql!("label_set_extra"))
        .bind(extra)
        .bind(seq)
        .execute(tx)
        .await?;
    Ok(())
}

/// Whether any row needs the blob.
pub async fn is_blob_referenced(
    tx: &mut SqliteConnection,
    sha256: &str,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(sql!("blob_referenced"))
        .bind(sha256)
        .fetch_one(tx)
        .await?)
}
