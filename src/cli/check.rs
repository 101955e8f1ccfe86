//! `fewlabel check`: is everything that was acknowledged still there, byte for byte?

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::project;

/// Arguments of `fewlabel check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Data folder of a server, which may be running
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// Remove files that no row names; refused while a server works on the data or anything is damaged
    #[arg(long)]
    repair_orphans: bool,
}

/// Prints each problem as one line; exit code 1 when there is any.
///
/// # Errors
/// When it is no data folder, or one of a later release.
pub fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    let checked = runtime
        .block_on(project::check(&args.data, args.repair_orphans))
        .with_context(|| format!("--data {}", args.data.display()))?;
    let report = &checked.report;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checked)?);
    } else {
        for problem in &report.problems {
            println!("{problem}");
        }
        for orphan in &report.orphans {
            println!("{orphan}");
        }
        let (schema, ours) = report.schema;
        if schema < ours {
            println!(
                "schema {schema} is older than that of this release ({ours}): its rows have no hashes yet; the next start of the server brings it up to date"
            );
        }
        println!(
            "{} problems, {} files without a row, {} removed; {} blobs, {} model versions and {} rows of the audit log looked at",
            report.problems.len(),
            report.orphans.len(),
            checked.removed,
            report.blobs,
            report.models,
            report.audit_rows,
        );
    }
    let clean = report.problems.is_empty() && report.orphans.is_empty();
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
