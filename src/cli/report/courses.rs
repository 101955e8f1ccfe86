//! The courses of several training runs, over one another.

use super::chart::{Frame, SMALL, Style, from_zero};
use super::figure::{Anchor, Figure, Ink};
use super::training::{axes, smoothed, thinned};
use crate::cli::curve::Curve;

const TOP: f64 = 70.0;
const HEIGHT: f64 = 230.0;
/// Left ends of the panels.
const PANELS: [f64; 2] = [56.0, 560.0];
const WIDTH: f64 = 420.0;
/// Between the names of the legend.
const NAME: f64 = 200.0;

/// A training run and what it is called.
pub struct Course {
    /// As the caller calls it.
    pub name: String,
    /// Its steps and validations.
    pub curve: Curve,
}

/// Loss and mean validation Dice of every run, over steps.
pub fn figure(courses: &[Course]) -> Figure {
    let rows = courses.len().div_ceil(4) as f64;
    let top = TOP + 18.0 * (rows - 1.0).max(0.0);
    let mut figure = Figure::new(1000.0, top + HEIGHT + 48.0);
    for (n, course) in courses.iter().enumerate() {
        let at = [56.0 + (n % 4) as f64 * NAME, 10.0 + (n / 4) as f64 * 18.0];
        figure.bar(at, [12.0, 12.0], Ink::Series(n), 1.0);
        let at = [at[0] + 18.0, at[1] + 10.0];
        figure.text(at, Anchor::Start, SMALL, Ink::Text, &course.name);
    }
    let losses: Vec<_> = courses.iter().map(|c| smoothed(&c.curve)).collect();
    let dice: Vec<_> = courses.iter().map(|c| means(&c.curve)).collect();
    let all = || losses.iter().chain(&dice).flatten();
    let last = all().map(|point| point[0]).fold(1.0, f64::max);
    let loss = from_zero(losses.iter().flatten().map(|point| point[1]));
    let panels = [
        ("Loss", &losses, loss),
        ("Validation Dice, mean", &dice, [0.0, 1.0]),
    ];
    for (left, (title, curves, range)) in PANELS.into_iter().zip(panels) {
        let frame = Frame {
            from: [left, top],
            size: [WIDTH, HEIGHT],
            x: [0.0, last],
            y: range,
        };
        axes(&mut figure, &frame, title);
        for (n, points) in curves.iter().enumerate() {
            let style = Style {
                ink: Ink::Series(n),
                width: 2.0,
                opacity: 1.0,
                dash: 0.0,
            };
            frame.curve(&mut figure, &thinned(points), style);
        }
    }
    figure
}

fn means(curve: &Curve) -> Vec<[f64; 2]> {
    let validations = curve.validations.iter();
    validations.map(|v| [v.step as f64, v.mean]).collect()
}
