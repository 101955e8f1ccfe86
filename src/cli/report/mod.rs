//! Report pages: one HTML file that needs nothing else, and its figure as PNG beside it.

mod chart;
mod comparison;
mod courses;
mod figure;
mod judged;
mod page;
mod picture;
mod simulation;
mod training;
mod worst;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::Usage;
use super::curve::Curve;
use crate::imaging::whole_file;
use crate::rounds::simulate::{self, RoundRecord, Settings};
use figure::Figure;
use page::Page;

pub use courses::Course;
pub use judged::Judged;
pub use simulation::with_interval;

/// Writes the page of a training run; answers with the path of the PNG.
///
/// # Errors
/// A path that is no HTML file or cannot be written.
pub fn write_training(
    path: &Path,
    name: &str,
    structures: &[String],
    curve: &Curve,
    judged: Option<&Judged>,
) -> anyhow::Result<PathBuf> {
    let (page, figure) = training::page(name, structures, curve, judged);
    write(path, page, &figure)
}

/// Writes the page of an evaluation, with the courses of the training runs behind it, if any; answers with the path of the
/// PNG.
///
/// # Errors
/// A path that is no HTML file or cannot be written.
pub fn write_comparison(
    path: &Path,
    judged: &Judged,
    courses: &[Course],
) -> anyhow::Result<PathBuf> {
    let (page, figure) = comparison::page(judged, courses);
    write(path, page, &figure)
}

/// Writes the page of a simulation; answers with the path of the PNG.
///
/// # Errors
/// A path that is no HTML file or cannot be written.
pub fn write_simulation(
    path: &Path,
    settings: &Settings,
    structures: &[String],
    records: &[RoundRecord],
    summary: &simulate::Summary,
) -> anyhow::Result<PathBuf> {
    let (page, figure) = simulation::page(settings, structures, records, summary);
    write(path, page, &figure)
}

/// Whether a report can have this path.
///
/// # Errors
/// A name that does not end in .html.
pub fn check(path: &Path) -> anyhow::Result<()> {
    if path.extension().is_none_or(|extension| extension != "html") {
        bail!(Usage(format!(
            "--report {}: the name must end in .html",
            path.display()
        )));
    }
    Ok(())
}

fn write(path: &Path, page: Page, figure: &Figure) -> anyhow::Result<PathBuf> {
    check(path)?;
    let png = path.with_extension("png");
    let picture = picture::png(figure)?;
    for (path, bytes) in [
        (&png, picture.as_slice()),
        (&path.to_owned(), page.into_html().as_bytes()),
    ] {
        whole_file::write(path, |out| out.write_all(bytes))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(png)
}
