//! The rows: SQLite in WAL mode with full synchronisation, shared by the server and its worker
//! process.
//!
//! All SQL lies in `store/sql` and `store/migrations`. Writes go through one connection per
//! process, in transactions that take the write lock at once and hold it for milliseconds; reads
//! have their own connections and never wait for writers.

mod audit;
mod database;
mod images;
mod labels;
mod leases;
mod models;
mod rounds;
mod schema;
mod scores;
mod seal;
mod sessions;
mod settings;
mod splits;

pub use audit::{AuditEntry, AuditRow, append_audit};
use database::BUSY_TIMEOUT;
pub use database::Database;
pub use images::{
    ImageFacts, ImageRecord, SeenImage, StaleLabel, add_serving, add_study_images, confirm_label,
    image, put_image, set_image_info, set_image_state,
};
pub use labels::{
    LabelRecord, NewLabel, add_label, current_label, current_labels_of, is_blob_referenced,
    label_by_key, label_revision, point_label, set_label_extra,
};
pub use leases::{LeaseRecord, end_lease, lease, put_lease};
pub use models::{ModelRecord, Publication, add_model, set_live_model, set_model_state};
pub use rounds::{RoundEnd, RoundRecord, add_round, finish_round, start_round};
pub use scores::{ScoreRecord, put_score};
pub use seal::{BrokenSeal, WriteTransaction};
pub use sessions::SessionRecord;
pub use settings::put_setting;
pub use splits::{SplitRecord, add_split, mark_used, splits, use_of};

use super::StoreError;

/// The SQL text of `store/sql/<name>.sql`.
macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/store/sql/",
            $name,
            ".sql"
        ))
    };
}
pub(in crate::store) use sql;

#[cfg(test)]
mod tests;
