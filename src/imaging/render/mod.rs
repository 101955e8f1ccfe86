//! Pictures of a scan with its labels: three orthogonal slices through the labelled organs.
//!
//! The patient stands upright and is seen as radiologists are used to: axial from the feet, coronal
//! from the front (both with the patient's right on the left of the picture), sagittal with the face
//! to the left. Pixels are square in millimetres whatever the voxel size. Each row shows one label
//! map over the same slices, so that before, after and reference can be compared.

mod canvas;
mod font;
mod legend;
mod slice;

use super::orientation;
use super::volume::Volume;
pub use canvas::Canvas;
use legend::Legend;
use slice::{mid_organ, planes};

const GAP: usize = 8;
const TEXT_SCALE: usize = 2;
const LINE: usize = (font::HEIGHT + 4) * TEXT_SCALE;
const BACKGROUND: [u8; 3] = [16, 18, 22];
const TEXT: [u8; 3] = [230, 232, 236];
const FAINT_TEXT: [u8; 3] = [150, 156, 166];

/// Why no picture was made.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A label map on another grid than the scan.
    #[error("the label map of row {0:?} is not on the grid of the scan; resample it first")]
    Grid(String),
    /// Nothing to show.
    #[error("no label map was given; give at least one row")]
    NoRows,
    /// The encoder failed.
    #[error("the picture could not be encoded: {0}")]
    Encode(#[from] png::EncodingError),
}

/// Grey values shown: from `level - width / 2` (black) to `level + width / 2` (white).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Middle in HU.
    pub level: f32,
    /// Width in HU.
    pub width: f32,
}

impl Window {
    /// Soft tissue of the abdomen.
    pub const ABDOMEN: Self = Self {
        level: 50.0,
        width: 400.0,
    };
}

/// One row of the picture.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Written above the row, such as "before" or "reference".
    pub title: &'a str,
    /// Label map on the grid of the scan.
    pub label: &'a Volume<u16>,
}

/// A PNG of the scan with one row per label map, all at the slices that show the most of the last
/// row (the reference, where there is one). `names` (value, name) make the legend; the position of
/// each slice is written under it.
///
/// # Errors
/// No rows, or a label map on another grid.
pub fn overlay_png(
    scan: &Volume<f32>,
    rows: &[Row<'_>],
    names: &[(u16, String)],
    window: Window,
) -> Result<Vec<u8>, RenderError> {
    let last = rows.last().ok_or(RenderError::NoRows)?;
    overlay_png_at(scan, rows, last.label, names, window)
}

/// As [`overlay_png`], at the slices that show the most of `focus`, which is on the grid of the scan.
///
/// # Errors
/// As [`overlay_png`].
pub fn overlay_png_at(
    scan: &Volume<f32>,
    rows: &[Row<'_>],
    focus: &Volume<u16>,
    names: &[(u16, String)],
    window: Window,
) -> Result<Vec<u8>, RenderError> {
    if rows.is_empty() {
        return Err(RenderError::NoRows);
    }
    let focus = Row {
        title: "focus",
        label: focus,
    };
    if let Some(row) = rows
        .iter()
        .chain([&focus])
        .find(|row| !row.label.geometry.same_grid(&scan.geometry, 1e-2))
    {
        return Err(RenderError::Grid(row.title.to_owned()));
    }
    let turn = orientation::to_lps(&scan.geometry);
    let upright = turn.apply(scan);
    let centre = mid_organ(&turn.apply(focus.label));
    let planes = planes(turn.target());
    let panel_height = planes.iter().map(|plane| plane.height).max().unwrap_or(1);
    let width = GAP + planes.iter().map(|plane| plane.width + GAP).sum::<usize>();
    let row_height = LINE + panel_height + LINE + GAP;
    let legend = Legend::new(names, width - 2 * GAP);
    let mut canvas = Canvas::new(
        width,
        rows.len() * row_height + legend.height() + 2 * GAP,
        BACKGROUND,
    );

    for (n, row) in rows.iter().enumerate() {
        let label = turn.apply(row.label);
        let top = GAP + n * row_height;
        canvas.text(GAP, top, TEXT_SCALE, TEXT, row.title);
        let mut left = GAP;
        for plane in &planes {
            let panel = plane.draw(&upright, &label, centre, window);
            // Panels stand in the middle of the row's height.
            canvas.paste(left, top + LINE + (panel_height - plane.height) / 2, &panel);
            canvas.text(
                left,
                top + LINE + panel_height + 4,
                TEXT_SCALE,
                FAINT_TEXT,
                &plane.caption(turn.target(), centre),
            );
            left += plane.width + GAP;
        }
    }
    legend.draw(&mut canvas, GAP, GAP + rows.len() * row_height);
    Ok(canvas.into_png()?)
}

#[cfg(test)]
mod tests;
