//! The command line, one file per subcommand.

pub mod bench;
pub mod convert;
mod curve;
mod dataset;
pub mod demo;
pub mod evaluate;
pub mod infer;
pub mod inspect;
mod progress;
mod report;
pub mod serve;
mod statistics;
pub mod train;
pub mod worker;

/// The user asked for something that cannot be; the process exits with code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
