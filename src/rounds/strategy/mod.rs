//! Which image to annotate next. Each strategy is one file with its formula and where it is from.
//!
//! | file | what it is about |
//! |---|---|
//! | `pool` | what there is to choose from |
//! | `random`, `first`, `last`, `foreground` | without asking how sure the model is |
//! | `entropy`, `margin`, `bald`, `power`, `stochastic`, `clasp` | by how sure the model is |
//! | `features`, `k_center`, `typicality` | by what the images look like to the network |
//! | `cold_start`, `auto` | what to use when |
//! | `table` | all of them, and how a batch is chosen |
//! | `serve`, `record` | for a client of the server, and who got what |
//!
//! A strategy whose scores are not there yet draws at random and says so: nobody waits for the model.

mod auto;
pub mod bald;
pub mod clasp;
mod cold_start;
pub mod entropy;
mod features;
mod first;
mod foreground;
mod k_center;
mod last;
pub mod margin;
mod pool;
mod power;
mod random;
mod record;
mod serve;
mod stochastic;
mod table;
mod typicality;

use crate::project::{Map, ProjectError};
use crate::rng::Rng;
use crate::store::StoreError;

pub use pool::{Candidate, Labelled, Pool};
pub(in crate::rounds) use serve::where_to_look;
pub use serve::{Choice, next, upcoming};
pub use table::{ALL, Strategy, choose, find};

/// Why there is no choice.
#[derive(Debug, thiserror::Error)]
pub enum StrategyError {
    /// No such strategy.
    #[error("there is no strategy {name:?}; use one of: {}", names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The project failed.
    #[error(transparent)]
    Project(#[from] ProjectError),
}

impl From<StoreError> for StrategyError {
    fn from(error: StoreError) -> Self {
        Self::Project(error.into())
    }
}

fn names() -> String {
    let names: Vec<&str> = ALL.iter().map(|strategy| strategy.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
