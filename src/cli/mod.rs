//! The command line, one file per subcommand.

mod agreement;
pub mod audit;
pub mod backup;
pub mod bench;
pub mod check;
pub mod convert;
mod curve;
mod dataset;
pub mod demo;
mod dicomweb_options;
mod environment;
pub mod evaluate;
pub mod export;
mod gpu;
pub mod import;
pub mod infer;
pub mod inspect;
pub mod pretrain;
mod progress;
mod report;
pub mod restore;
mod round_options;
pub mod serve;
pub mod simulate;
pub mod split;
mod statistics;
pub mod train;
pub mod worker;

use crate::model::Spacing;

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

/// Voxel spacing: `plan`, `own`, or three lengths in mm `z,y,x`.
fn parse_spacing(text: &str) -> Result<Spacing, String> {
    match text {
        "plan" => Ok(Spacing::Plan),
        "own" => Ok(Spacing::Own),
        _ => parse_triple(text)
            .map(Spacing::Millimetres)
            .map_err(|_| "expected plan, own or three lengths such as 2.5,1,1".to_owned()),
    }
}

/// The ends of an HU window, `low,high`.
fn parse_window(text: &str) -> Result<[f32; 2], String> {
    let ends: Result<Vec<f32>, _> = text.split(',').map(|end| end.trim().parse()).collect();
    ends.ok()
        .and_then(|ends| <[f32; 2]>::try_from(ends).ok())
        .filter(|[low, high]| low < high && [low, high].iter().all(|v| v.abs() <= 32_000.0))
        .ok_or_else(|| "expected two increasing numbers such as -300,700".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_understood() {
        assert_eq!(parse_spacing("plan"), Ok(Spacing::Plan));
        assert_eq!(
            parse_spacing("2.5, 1,1"),
            Ok(Spacing::Millimetres([2.5, 1.0, 1.0]))
        );
        assert!(parse_spacing("2.5").is_err());
        assert_eq!(parse_window("-1000,1000"), Ok([-1000.0, 1000.0]));
        assert!(
            ["1", "5,5", "9,1", "a,b"]
                .map(parse_window)
                .iter()
                .all(Result::is_err)
        );
    }
}
