//! `fewlabel backup`: a consistent copy of a data folder, also while it is in use.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::project;

/// Arguments of `fewlabel backup`.
#[derive(Args, Clone, Debug)]
pub struct BackupArgs {
    /// Data folder of a server, which may be running
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// New folder, or new file when its name ends with .tar
    #[arg(long, value_name = "FILE|DIR")]
    out: PathBuf,
    /// Copy every file, also where the same disk would allow to link it
    #[arg(long)]
    copy: bool,
}

/// Writes the copy and says what is in it.
///
/// # Errors
/// When the target is there already or something is damaged; nothing is left then.
pub fn run(args: BackupArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let saved = runtime
        .block_on(project::backup(&args.data, &args.out, !args.copy))
        .with_context(|| format!("no backup of {} was made", args.data.display()))?;
    println!(
        "{}: {} blobs, {} model versions, {} bytes, all verified; images of the studies folder are not part of it",
        args.out.display(),
        saved.blobs,
        saved.models,
        saved.size_bytes
    );
    Ok(())
}
