//! Rows of images and of their servings.

use sqlx::SqliteConnection;

use super::{Database, StoreError, sql};

/// One image as stored; `info` and `geometry` are JSON.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ImageRecord {
    /// Id, unique.
    pub id: String,
    /// Suffix with its dot.
    pub ext: String,
    /// `study` or `blob`.
    pub source: String,
    /// Name in the studies folder, or hash of the blob.
    pub file: String,
    /// `present`, `missing` or `deleted`.
    pub state: String,
    /// Size of the file.
    pub size_bytes: i64,
    /// Time of its last change.
    pub mtime_ms: i64,
    /// Hash of the file with this size and time, once known.
    pub sha256: Option<String>,
    /// Its grid, once known.
    pub geometry: Option<String>,
    /// What clients see.
    pub info: String,
}

/// What was found out by reading an image of a certain size and time.
#[derive(Debug, Clone)]
pub struct ImageFacts<'a> {
    /// Hash of the bytes.
    pub sha256: &'a str,
    /// JSON of the grid.
    pub geometry: &'a str,
}

/// What tells whether a file is that of an image.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SeenImage {
    /// As in [`ImageRecord`], likewise below.
    pub id: String,
    /// `study` or `blob`.
    pub source: String,
    /// Name in the studies folder, or hash of the blob.
    pub file: String,
    /// `present`, `missing` or `deleted`.
    pub state: String,
    /// Size of the file.
    pub size_bytes: i64,
    /// Time of its last change.
    pub mtime_ms: i64,
}

/// A current label that was drawn on another content of its image than there is now.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct StaleLabel {
    /// Image id.
    pub image: String,
    /// Tag.
    pub tag: String,
    /// Hash of the image it was drawn on.
    pub drawn_on: String,
    /// Hash of the image now; none when it could not be read since.
    pub image_now: Option<String>,
}

impl Database {
    /// All images, whatever their state, in no order.
    pub async fn images_seen(&self) -> Result<Vec<SeenImage>, StoreError> {
        Ok(sqlx::query_as(sql!("images_seen"))
            .fetch_all(self.readers())
            .await?)
    }

    /// Present images in order of first sight: id, time of the last change in milliseconds, and size in bytes.
    pub async fn image_marks(&self) -> Result<Vec<(String, i64, i64)>, StoreError> {
        self.list(sqlx::query_scalar(sql!("images_marks"))).await
    }

    /// A number that is kept by triggers: `images_present`, `label_changes`.
    pub async fn counter(&self, name: &str) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(sql!("counter_get"))
            .bind(name)
            .fetch_one(self.readers())
            .await?)
    }

    /// How many images were read since they are as they are.
    pub async fn images_read(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(sql!("images_read"))
            .fetch_one(self.readers())
            .await?)
    }

    /// How many revisions of labels were ever added.
    pub async fn labels_written(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(sql!("labels_written"))
            .fetch_one(self.readers())
            .await?)
    }

    /// Every blob that a row needs, with its size where a row tells it.
    pub async fn blob_sizes(&self) -> Result<Vec<(String, Option<i64>)>, StoreError> {
        Ok(sqlx::query_as(sql!("blob_sizes"))
            .fetch_all(self.readers())
            .await?)
    }

    /// Present images with a current label, by tag in order of first use.
    pub async fn label_counts(&self) -> Result<Vec<(String, i64)>, StoreError> {
        Ok(sqlx::query_as(sql!("label_counts"))
            .fetch_all(self.readers())
            .await?)
    }

    /// Current labels of present images that were drawn on another content, unless confirmed.
    pub async fn stale_labels(&self) -> Result<Vec<StaleLabel>, StoreError> {
        Ok(sqlx::query_as(sql!("labels_stale"))
            .fetch_all(self.readers())
            .await?)
    }

    /// Whether any label was ever drawn on the image.
    pub async fn has_labels(&self, image: &str) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(sql!("image_has_labels"))
            .bind(image)
            .fetch_one(self.readers())
            .await?)
    }

    /// The image, whatever its state.
    pub async fn image(&self, id: &str) -> Result<Option<ImageRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("image_get"))
            .bind(id)
            .fetch_optional(self.readers())
            .await?)
    }

    /// All images in order of first sight, whatever their state.
    pub async fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        Ok(sqlx::query_as(sql!("images_all"))
            .fetch_all(self.readers())
            .await?)
    }

    /// Keeps the facts, unless the image was replaced since `of` was read.
    pub async fn set_image_facts(
        &self,
        of: &ImageRecord,
        facts: ImageFacts<'_>,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query(sql!("image_set_facts"))
            .bind(facts.sha256)
            .bind(facts.geometry)
            .bind(&of.id)
            .bind(of.size_bytes)
            .bind(of.mtime_ms)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    /// When a strategy last served each image: id and milliseconds.
    pub async fn last_servings(&self, strategy: &str) -> Result<Vec<(String, i64)>, StoreError> {
        self.list(sqlx::query_scalar(sql!("serving_last")).bind(strategy))
            .await
    }

    /// When the image was last served to the client, milliseconds since 1970-01-01 UTC.
    pub async fn last_serving(&self, image: &str, client: &str) -> Result<Option<i64>, StoreError> {
        Ok(sqlx::query_scalar(sql!("serving_of"))
            .bind(image)
            .bind(client)
            .fetch_one(self.readers())
            .await?)
    }

    /// The strategy that served last.
    pub async fn last_strategy(&self) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(sql!("serving_strategy"))
            .fetch_optional(self.readers())
            .await?)
    }

    /// How many servings there were in all.
    pub async fn serving_count(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(sql!("serving_count"))
            .fetch_one(self.readers())
            .await?)
    }
}

/// The image as the transaction sees it.
pub async fn image(tx: &mut SqliteConnection, id: &str) -> Result<Option<ImageRecord>, StoreError> {
    Ok(sqlx::query_as(sql!("image_get"))
        .bind(id)
        .fetch_optional(tx)
        .await?)
}

/// Adds an image, or replaces the one of the same id, as present.
pub async fn put_image(tx: &mut SqliteConnection, row: &ImageRecord) -> Result<(), StoreError> {
    sqlx::query(sql!("image_upsert"))
        .bind(&row.id)
        .bind(&row.ext)
        .bind(&row.source)
        .bind(&row.file)
        .bind(row.size_bytes)
        .bind(row.mtime_ms)
        .bind(&row.sha256)
        .bind(&row.geometry)
        .bind(&row.info)
        .execute(tx)
        .await?;
    Ok(())
}

/// Adds images of the studies folder whose ids are new: a JSON array of id, suffix, file name, size
/// in bytes, time of the last change in milliseconds, and info (JSON as text). An id that is known by now stays as it is.
pub async fn add_study_images(tx: &mut SqliteConnection, rows: &str) -> Result<(), StoreError> {
    sqlx::query(sql!("images_add_many"))
        .bind(rows)
        .execute(tx)
        .await?;
    Ok(())
}

/// Notes that somebody says that a label revision fits the image of this hash.
pub async fn confirm_label(
    tx: &mut SqliteConnection,
    label_seq: i64,
    image_sha256: &str,
    author: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(sql!("label_confirm"))
        .bind(label_seq)
        .bind(image_sha256)
        .bind(author)
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(())
}

/// Sets `present`, `missing` or `deleted`.
pub async fn set_image_state(
    tx: &mut SqliteConnection,
    id: &str,
    state: &str,
) -> Result<(), StoreError> {
    sqlx::query(sql!("image_set_state"))
        .bind(state)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// Replaces the info (JSON).
pub async fn set_image_info(
    tx: &mut SqliteConnection,
    id: &str,
    info: &str,
) -> Result<(), StoreError> {
    sqlx::query(sql!("image_set_info"))
        .bind(info)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// Notes that a strategy gave an image to a client.
pub async fn add_serving(
    tx: &mut SqliteConnection,
    strategy: &str,
    image: &str,
    client: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(sql!("serving_insert"))
        .bind(strategy)
        .bind(image)
        .bind(client)
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(())
}
