//! The command line, one file per subcommand.

pub mod audit;
pub mod backup;
pub mod bench;
pub mod check;
pub mod convert;
mod curve;
mod dataset;
pub mod demo;
pub mod evaluate;
pub mod export;
pub mod import;
pub mod infer;
pub mod inspect;
pub mod pretrain;
mod progress;
mod report;
pub mod restore;
pub mod serve;
pub mod split;
mod statistics;
pub mod train;
pub mod worker;

/// The user asked for something that cannot be; the process exits with code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Three values separated by commas, such as `32,64,64`.
fn parse_triple<T: std::str::FromStr>(text: &str) -> Result<[T; 3], String> {
    let sides: Result<Vec<T>, _> = text.split(',').map(|side| side.trim().parse()).collect();
    sides
        .ok()
        .and_then(|sides| sides.try_into().ok())
        .ok_or_else(|| "expected three values such as 32,64,64".to_owned())
}
