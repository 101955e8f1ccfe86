//! `fewlabel restore`: a data folder from a backup.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::project;

/// Arguments of `fewlabel restore`.
#[derive(Args, Clone, Debug)]
pub struct RestoreArgs {
    /// What `fewlabel backup` wrote
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
    /// New or empty folder, for `fewlabel serve --data`
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

/// Copies and verifies everything.
///
/// # Errors
/// When the target is not empty or the backup is damaged; nothing is left then.
pub fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let restored = runtime
        .block_on(project::restore(&args.backup, &args.data))
        .with_context(|| format!("{} was not restored", args.backup.display()))?;
    println!(
        "{}: {} blobs, {} model versions, {} bytes, all verified",
        args.data.display(),
        restored.blobs,
        restored.models,
        restored.size_bytes
    );
    Ok(())
}
