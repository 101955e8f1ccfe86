//! Names and colours of the labels.

use super::canvas::Canvas;
use super::{LINE, TEXT, TEXT_SCALE, font};
use crate::imaging::color;

/// Names in lines that fit the width.
pub(super) struct Legend {
    lines: Vec<Vec<(u16, String)>>,
}

impl Legend {
    pub fn new(names: &[(u16, String)], width: usize) -> Self {
        let mut lines: Vec<Vec<(u16, String)>> = Vec::new();
        let mut used = usize::MAX;
        for entry in names {
            let need = Self::width(&entry.1);
            match lines.last_mut() {
                Some(line) if used.saturating_add(need) <= width => line.push(entry.clone()),
                _ => {
                    lines.push(vec![entry.clone()]);
                    used = 0;
                }
            }
            used = used.saturating_add(need);
        }
        Self { lines }
    }

    fn width(name: &str) -> usize {
        (10 + name.chars().count() * (font::WIDTH + 1) + 8) * TEXT_SCALE
    }

    pub fn height(&self) -> usize {
        self.lines.len() * LINE
    }

    /// Draws a square of its colour before each name.
    pub fn draw(&self, canvas: &mut Canvas, left: usize, top: usize) {
        for (n, line) in self.lines.iter().enumerate() {
            let (mut left, top) = (left, top + n * LINE);
            for (value, name) in line {
                canvas.square(
                    left,
                    top,
                    font::HEIGHT * TEXT_SCALE,
                    color::of_value(*value),
                );
                canvas.text(left + 10 * TEXT_SCALE, top, TEXT_SCALE, TEXT, name);
                left += Self::width(name);
            }
        }
    }
}
