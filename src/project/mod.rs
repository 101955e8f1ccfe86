//! One labelling project: its images, its labels as append-only revisions, who did what.
//!
//! Images stay where they are, in the studies folder, and are never changed; uploads become blobs.
//! Everything the project writes goes into its data directory, see [`crate::store`].

mod adopt;
mod counts;
mod error;
mod export;
mod ids;
mod images;
mod import;
mod journal;
mod label_map;
mod labels;
pub(crate) mod mapping;
pub(crate) mod monai;
mod open;
mod pacs;
mod provenance;
pub mod requests;
mod rescan;
mod results;
mod review;
mod revisions;
mod split;
mod stale;
mod statistics;
mod structures;
mod submit;
mod upkeep;
mod vitals;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};

pub use crate::store::jobs::{
    Beat, Claimed, Finish, Job, JobId, JobKind, JobState, Jobs, NewJob, Pulse,
};
pub use crate::store::rows::AuditRow;
pub use crate::store::{Staged, StagedWriter, Staging, StoreError};
pub use error::ProjectError;
pub use export::{Exported, Format, ImageFiles};
pub use ids::{
    FileName, IMAGE_SUFFIXES, IdError, ImageId, LABEL_SUFFIXES, ModelName, Tag, split_suffix,
};
pub use images::{ImageMark, ImageRow};
pub use import::Imported;
pub use labels::{Counts, LabelRow, Origin};
pub use pacs::{ImageFile, Studies};
pub use provenance::{MadeBy, Provenance};
pub use rescan::{Rescan, Skipped};
pub use results::StoreResults;
pub use review::{Review, Verdict};
pub use revisions::{ClassComparison, Comparison};
pub use split::{Part, SplitRow};
pub use stale::STALE;
pub use statistics::{Annotator, PartCount, Statistics};
pub use structures::Structure;
pub use submit::SubmitLabel;
pub(crate) use submit::on_grid;
pub use upkeep::{Backup, Checked, backup, check, restore};
pub use vitals::{Queue, Space, Vitals};

use crate::clock::Clock;
use crate::imaging::Budget;
use crate::model::LabelSchema;
use crate::store::Store;

/// A JSON object, in the order in which the client sent it.
pub type Map = serde_json::Map<String, Value>;

/// Files decoded at the same time, because each needs memory for a whole volume.
const DECODERS: usize = 2;

/// Default of [`OpenProject::settle`]: a copy over a slow network pauses for less.
pub const SETTLE: Duration = Duration::from_secs(2);

/// How to open a project as its server.
#[derive(Debug, Clone)]
pub struct OpenProject {
    /// Where the images are; read only.
    pub studies: Studies,
    /// Directory for everything the project writes; created when missing.
    pub data: PathBuf,
    /// The classes; fixed when the project is opened for the first time.
    pub labels: LabelSchema,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Seed of everything random in the project.
    pub seed: u64,
    /// A file of the studies folder is taken when nobody wrote to it for so long.
    pub settle: Duration,
}

/// What clients may send.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest upload.
    pub max_upload_bytes: u64,
    /// Uploads are refused when the disk has less free space than this.
    pub min_free_bytes: u64,
    /// What decoding one file may cost.
    pub budget: Budget,
}

impl Default for Limits {
    fn default() -> Self {
        // A file from outside may not make us open others.
        let budget = Budget {
            follow_files: false,
            ..Budget::default()
        };
        Self {
            max_upload_bytes: 4 << 30,
            min_free_bytes: 256 << 20,
            budget,
        }
    }
}

/// An open project. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Project {
    inner: Arc<Inner>,
    limits: Limits,
    actor: Arc<str>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    place: pacs::Place,
    schema: LabelSchema,
    clock: Arc<dyn Clock>,
    seed: u64,
    settle: Duration,
    decoders: Arc<Semaphore>,
    /// Held while the studies folder is looked through, and while an image is chosen for an annotator.
    scanning: Mutex<()>,
    choosing: Mutex<()>,
    counts: Mutex<counts::Kept>,
    journal: journal::Journal,
}

#[cfg(test)]
pub(crate) mod tests;
