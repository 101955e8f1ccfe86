//! What is kept of a round.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::imaging::whole_file;
use crate::model::ModelError;

/// One round of one strategy with one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The strategy; `initial` for the cases that all strategies begin with, `full` for all cases of the pool.
    pub strategy: String,
    /// The seed.
    pub seed: u64,
    /// 0 for the initial cases.
    pub round: usize,
    /// The cases that were chosen for this round, in order.
    pub chosen: Vec<String>,
    /// Cases learned from.
    pub cases: usize,
    /// Their voxels.
    pub voxels: u64,
    /// Their voxels of any structure.
    pub foreground_voxels: u64,
    /// The test cases.
    pub test: Vec<TestCase>,
    /// Dice per structure, mean over the test cases; none where no case defines it.
    pub dice: Vec<Option<f64>>,
    /// Mean of `dice`.
    pub mean_dice: f64,
    /// Seconds to score the pool and choose.
    pub choose_s: f64,
    /// Seconds to train.
    pub train_s: f64,
    /// Seconds to segment and compare the test cases.
    pub test_s: f64,
}

/// One test case of a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestCase {
    /// Its name.
    pub case: String,
    /// Dice per structure; none where it is in neither map, or was not annotated.
    pub dice: Vec<Option<f64>>,
}

/// The folder of a strategy and seed.
pub fn folder(out: &Path, strategy: &str, seed: u64) -> PathBuf {
    out.join("runs").join(strategy).join(format!("seed-{seed}"))
}

/// The file of a round.
pub fn file(out: &Path, strategy: &str, seed: u64, round: usize) -> PathBuf {
    folder(out, strategy, seed).join(format!("round-{round}.json"))
}

/// The model of a round.
pub fn model(out: &Path, strategy: &str, seed: u64, round: usize) -> PathBuf {
    folder(out, strategy, seed).join(format!("model-{round}"))
}

/// A round that is done; none when it is not.
pub fn read(path: &Path) -> Result<Option<RoundRecord>, ModelError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            ModelError::bad(
                path,
                format!("not a round: {error}; remove the file, and it is made again"),
            )
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ModelError::io(path)(error)),
    }
}

/// Writes a file as a whole or not at all.
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), ModelError> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| ModelError::bad(path, error))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    }
    whole_file::write(path, |out| out.write_all(&text)).map_err(ModelError::io(path))
}
