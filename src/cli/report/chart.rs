//! Axes, curves and box plots.

use super::figure::{Anchor, Figure, Ink};

/// Font size of axes and legends.
pub const SMALL: f64 = 11.0;
/// Width of a character at a font size of 1, on the wide side.
pub const CHARACTER: f64 = 0.62;

/// A rectangle of the figure with the range of values that it shows.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Left, top.
    pub from: [f64; 2],
    /// Width, height.
    pub size: [f64; 2],
    /// Values at the left and right edge.
    pub x: [f64; 2],
    /// Values at the lower and upper edge.
    pub y: [f64; 2],
}

impl Frame {
    /// Where a value lies from left to right.
    pub fn across(&self, x: f64) -> f64 {
        self.from[0] + self.size[0] * (x - self.x[0]) / (self.x[1] - self.x[0])
    }

    /// Where a value lies from top to bottom.
    pub fn down(&self, y: f64) -> f64 {
        self.from[1] + self.size[1] * (self.y[1] - y) / (self.y[1] - self.y[0])
    }

    /// Draws the title above the frame.
    pub fn title(&self, figure: &mut Figure, text: &str) {
        let at = [self.from[0], self.from[1] - 10.0];
        figure.text(at, Anchor::Start, 13.0, Ink::Text, text);
    }

    /// Lines and numbers for values from left to right.
    pub fn x_axis(&self, figure: &mut Figure) {
        let bottom = self.from[1] + self.size[1];
        for (value, text) in ticks(self.x, (self.size[0] / 60.0) as usize) {
            let x = self.across(value);
            figure.line([x, self.from[1]], [x, bottom], 1.0, Ink::Grid);
            figure.text([x, bottom + 15.0], Anchor::Middle, SMALL, Ink::Faint, text);
        }
    }

    /// Lines and numbers for values from bottom to top.
    pub fn y_axis(&self, figure: &mut Figure) {
        let [left, right] = [self.from[0], self.from[0] + self.size[0]];
        for (value, text) in ticks(self.y, (self.size[1] / 34.0) as usize) {
            let y = self.down(value);
            figure.line([left, y], [right, y], 1.0, Ink::Grid);
            figure.text([left - 6.0, y + 4.0], Anchor::End, SMALL, Ink::Faint, text);
        }
    }

    /// Draws a curve.
    pub fn curve(&self, figure: &mut Figure, points: &[[f64; 2]], style: Style) {
        let points: Vec<_> = points
            .iter()
            .map(|[x, y]| [self.across(*x), self.down(*y)])
            .collect();
        if let [alone] = points[..] {
            figure.dot(alone, style.width + 1.0, style.ink, style.opacity);
        }
        figure.path(points, style.width, style.ink, style.opacity, style.dash);
    }

    /// Draws a horizontal box plot around `y` (in the figure): whiskers from the smallest to the largest value, a box from
    /// the first to the third quartile, the median, and every value as a dot.
    pub fn box_plot(
        &self,
        figure: &mut Figure,
        y: f64,
        height: f64,
        ink: Ink,
        five: [f64; 5],
        values: &[f64],
    ) {
        let [low, first, median, third, high] = five.map(|value| self.across(value));
        figure.line([low, y], [high, y], 1.2, ink);
        figure.bar(
            [first, y - height / 2.0],
            [(third - first).max(0.5), height],
            ink,
            0.28,
        );
        let half = height / 2.0 + 1.0;
        figure.line([median, y - half], [median, y + half], 2.2, ink);
        for value in values {
            figure.dot([self.across(*value), y], 2.2, ink, 0.85);
        }
    }
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Colour.
    pub ink: Ink,
    /// Width of the line.
    pub width: f64,
    /// From 0 to 1.
    pub opacity: f64,
    /// Length of a dash, 0 for none.
    pub dash: f64,
}

/// Round numbers in a range, about `count` of them, as (value, text).
pub fn ticks([low, high]: [f64; 2], count: usize) -> Vec<(f64, String)> {
    let rough = (high - low) / count.max(1) as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return Vec::new();
    }
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    let step = steps
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    // A hair more, so that a power of ten is not taken for less.
    let digits = (-(step.log10() + 1e-9).floor()).clamp(0.0, 9.0) as usize;
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    let text = |value: f64| {
        if digits > 4 {
            format!("{value:.0e}")
        } else {
            format!("{value:.digits$}")
        }
    };
    (first..=last)
        .map(|n| n as f64 * step)
        .map(|value| (value, text(value)))
        .collect()
}

/// A range from 0 to a little above the largest value; to 1 where there is none.
pub fn from_zero(values: impl IntoIterator<Item = f64>) -> [f64; 2] {
    let largest = values
        .into_iter()
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max);
    [0.0, if largest > 0.0 { largest * 1.05 } else { 1.0 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let texts = |range, count| -> Vec<String> {
            ticks(range, count)
                .into_iter()
                .map(|(_, text)| text)
                .collect()
        };
        assert_eq!(
            texts([0.0, 1.0], 5),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(texts([0.0, 210.0], 4), ["0", "100", "200"]);
        assert_eq!(
            texts([0.0, 0.004], 4),
            ["0.000", "0.001", "0.002", "0.003", "0.004"]
        );
        assert_eq!(texts([1.0, 1.0], 4), [""; 0]);
        assert_eq!(texts([0.0, f64::NAN], 4), [""; 0]);
        for (range, count) in [([0.0, 1e-7], 3), ([-3.0, 7.0], 1), ([0.0, 1e6], 9)] {
            let found = ticks(range, count);
            assert!((1..=12).contains(&found.len()), "{found:?}");
            assert!(
                found.iter().all(|(v, _)| (range[0]..=range[1]).contains(v)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn values_become_places() {
        let frame = Frame {
            from: [10.0, 20.0],
            size: [100.0, 50.0],
            x: [0.0, 2.0],
            y: [-1.0, 1.0],
        };
        assert_eq!(
            (frame.across(0.5), frame.down(-1.0), frame.down(1.0)),
            (35.0, 70.0, 20.0)
        );
        assert_eq!(from_zero([2.0, f64::NAN]), [0.0, 2.1]);
        assert_eq!(from_zero([]), [0.0, 1.0]);
    }
}
