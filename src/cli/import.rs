//! `fewlabel import`: a MONAI Label studies folder into an existing project.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::project::Project;

/// Arguments of `fewlabel import`.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// Data folder of a server, which may be running
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder with images, labels/TAG and datastore_v2.json; it is not changed
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Takes every file by itself; exit code 1 when one was refused.
///
/// # Errors
/// When the folder holds nothing of the kind, or the store fails.
pub fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let user = std::env::var("USER").unwrap_or_else(|_| "command line".to_owned());
        let project = Project::open_worker(&args.data)
            .await
            .with_context(|| format!("--data {}", args.data.display()))?
            .acting_as(&user);
        let imported = project.import(&args.folder).await;
        project.close().await;
        let imported = imported.with_context(|| args.folder.display().to_string())?;
        for (file, reason) in &imported.refused {
            eprintln!("{file} was not imported: {reason}");
        }
        println!(
            "{} new images, {} new revisions of labels, {} unchanged, {} refused",
            imported.images,
            imported.labels,
            imported.unchanged,
            imported.refused.len()
        );
        Ok(if imported.refused.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}
