//! Curves over the steps of training, and the courses of several runs over one another.

use super::chart::{Frame, SMALL, Style, from_zero};
use super::figure::{Anchor, Figure, Ink};
use crate::cli::curve::Curve;

/// Most points of a curve.
pub const POINTS: usize = 800;
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

/// The loss as a mean over a fiftieth of the run.
pub fn smoothed(curve: &Curve) -> Vec<[f64; 2]> {
    let window = (curve.steps.len() / 50).max(1);
    curve
        .steps
        .windows(window)
        .map(|steps| {
            let sum: f64 = steps.iter().map(|step| f64::from(step.loss)).sum();
            [steps[window - 1].step as f64, sum / window as f64]
        })
        .collect()
}

/// Every n-th point, so that no more than [`POINTS`] are left; the last stays.
pub fn thinned(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let every = points.len().div_ceil(POINTS).max(1);
    let kept = points.iter().rev().step_by(every).rev();
    kept.copied().collect()
}

/// A panel over steps, without its curves.
pub fn axes(figure: &mut Figure, frame: &Frame, title: &str) {
    frame.title(figure, title);
    frame.x_axis(figure);
    frame.y_axis(figure);
    let end = [
        frame.from[0] + frame.size[0],
        frame.from[1] + frame.size[1] + 32.0,
    ];
    figure.text(end, Anchor::End, SMALL, Ink::Faint, "step");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_last_point() {
        let points: Vec<_> = (0..1001).map(|n| [f64::from(n), 0.0]).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS && thin.last() == points.last());
        assert!(thin.is_sorted_by(|a, b| a[0] < b[0]));
        assert!(thinned(&[]).is_empty());
    }
}
