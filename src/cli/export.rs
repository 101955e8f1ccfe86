//! `fewlabel export`: the labels of a project as a folder that other programs read.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::project::{Format, ImageFiles, Project};

/// Arguments of `fewlabel export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Data folder of a server, which may be running
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// New or empty folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// monai: a studies folder for a MONAI Label server, all tags as they were sent. msd: imagesTr, labelsTr,
    /// imagesTs and dataset.json, accepted labels in the values of the project
    #[arg(long, value_enum, default_value = "monai")]
    format: FormatArg,
    /// What is done with images; links must only be read through
    #[arg(long, value_enum, default_value = "copy")]
    images: ImagesArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Monai,
    Msd,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ImagesArg {
    Copy,
    Link,
    None,
}

/// Writes the folder and says what is in it.
///
/// # Errors
/// When the target is not empty or a file cannot be written; nothing is left then.
pub fn run(args: ExportArgs) -> anyhow::Result<()> {
    let format = match args.format {
        FormatArg::Monai => Format::Monai,
        FormatArg::Msd => Format::Msd,
    };
    let images = match args.images {
        ImagesArg::Copy => ImageFiles::Copy,
        ImagesArg::Link => ImageFiles::Link,
        ImagesArg::None => ImageFiles::None,
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let project = Project::open_reader(&args.data)
            .await
            .with_context(|| format!("--data {}", args.data.display()))?;
        let exported = project.export(&args.out, format, images).await;
        project.close().await;
        let exported = exported?;
        println!(
            "{}: {} images, {} labels",
            args.out.display(),
            exported.images,
            exported.labels
        );
        if exported.stale > 0 {
            eprintln!(
                "{} labels were left out: their images were changed after they were drawn; confirm or submit them again",
                exported.stale
            );
        }
        Ok(())
    })
}
