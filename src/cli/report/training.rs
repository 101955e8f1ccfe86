//! The page of a training run: loss, learning rate and validation Dice.

use super::chart::{Frame, SMALL, Style, from_zero};
use super::comparison;
use super::courses::{axes, smoothed, thinned};
use super::figure::{Anchor, Figure, Ink, SERIES};
use super::judged::Judged;
use super::page::Page;
use crate::cli::curve::{Curve, Validation};

/// Height of the first name of the legend, and from name to name.
const LEGEND_TOP: f64 = 356.0;
const LEGEND_LINE: f64 = 18.0;

/// The page and its figure; `structures` in order, `judged` the validation cases.
pub fn page(
    name: &str,
    structures: &[String],
    curve: &Curve,
    judged: Option<&Judged>,
) -> (Page, Figure) {
    let steps = curve.steps.last().map_or(0, |step| step.step);
    let best = best(curve);
    let mut page = Page::new(
        &format!("Training of {name}"),
        &format!("{steps} steps, {} validations", curve.validations.len()),
    );
    let mut numbers = Vec::new();
    if let Some(best) = best {
        numbers.push((
            format!("{:.3}", best.mean),
            format!("best validation Dice, step {}", best.step),
        ));
    }
    if let Some(loss) = smoothed(curve).last() {
        numbers.push((format!("{:.3}", loss[1]), "loss at the end".to_owned()));
    }
    if !curve.steps.is_empty() {
        let hours = curve.elapsed_s / 3600.0;
        let text = if hours < 1.0 {
            format!("{:.0} min", hours * 60.0)
        } else {
            format!("{hours:.1} h")
        };
        numbers.push((text, "time".to_owned()));
    }
    page.figures(&numbers);
    let figure = figure(structures, curve);
    page.heading("Course");
    page.svg(&figure.to_svg("Loss, learning rate and validation Dice over steps"));
    page.text("Loss: pale, each step; dark, mean over neighbouring steps. Dice: mean over the validation cases, which the network does not learn from; the ring marks the weights that were kept.");
    if !curve.validations.is_empty() {
        let shown = |validation: Option<&Validation>, structure: &str| {
            let dice = validation.and_then(|v| v.of(structure));
            dice.map_or_else(|| "-".to_owned(), |dice| format!("{dice:.3}"))
        };
        let head = ["Structure", "Dice of the weights kept", "Dice at the end"].map(str::to_owned);
        let last = curve.validations.last();
        let mut rows: Vec<_> = structures
            .iter()
            .map(|name| vec![name.clone(), shown(best, name), shown(last, name)])
            .collect();
        let mean =
            |v: Option<&Validation>| v.map_or_else(String::new, |v| format!("{:.3}", v.mean));
        rows.push(vec!["Mean".to_owned(), mean(best), mean(last)]);
        page.heading("Validation");
        page.table(None, &head, &rows);
        page.text("The weights were chosen on these cases, so their Dice is a little too good; measure on cases that were kept apart with fewlabel evaluate.");
    }
    if let Some(judged) = judged {
        comparison::agreement(&mut page, judged);
    }
    troubles(&mut page, curve);
    (page, figure)
}

/// Cases that were left out or only partly understood, and steps that were taken back.
fn troubles(page: &mut Page, curve: &Curve) {
    if !curve.cases.is_empty() {
        page.heading("Cases with something to say about");
        let head = ["Case", "Used", "Why"].map(str::to_owned);
        let used = |skipped| if skipped { "no" } else { "yes" };
        let rows: Vec<_> = curve
            .cases
            .iter()
            .map(|note| {
                let used = used(note.skipped).to_owned();
                vec![note.case.clone(), used, note.reason.clone()]
            })
            .collect();
        page.table(None, &head, &rows);
    }
    if !curve.rolled_back.is_empty() {
        page.heading("Steps that were taken back");
        let head = ["Step", "Back to step", "Why", "Learning rate times"].map(str::to_owned);
        let rows: Vec<_> = curve
            .rolled_back
            .iter()
            .map(|back| {
                vec![
                    back.step.to_string(),
                    back.back_to.to_string(),
                    back.reason.clone(),
                    back.rate_scale.to_string(),
                ]
            })
            .collect();
        page.table(None, &head, &rows);
    }
}

/// The validation of the weights that were kept.
fn best(curve: &Curve) -> Option<&Validation> {
    curve.validations.iter().rfind(|validation| validation.best)
}

fn figure(structures: &[String], curve: &Curve) -> Figure {
    // The legend may be longer than the axes beside it.
    let legend = LEGEND_TOP + LEGEND_LINE * (structures.len() + 1) as f64;
    let height = match curve.validations.is_empty() {
        true => 300.0,
        false => legend.max(640.0),
    };
    let mut figure = Figure::new(1000.0, height);
    let last = curve.steps.last().map_or(1, |step| step.step).max(1) as f64;
    let loss: Vec<_> = curve
        .steps
        .iter()
        .map(|s| [s.step as f64, f64::from(s.loss)])
        .collect();
    let rate: Vec<_> = curve
        .steps
        .iter()
        .map(|s| [s.step as f64, s.learning_rate])
        .collect();
    let line = |ink, width, opacity| Style {
        ink,
        width,
        opacity,
        dash: 0.0,
    };
    let panel = |from: [f64; 2], size: [f64; 2], points: &[[f64; 2]]| Frame {
        from,
        size,
        x: [0.0, last],
        y: from_zero(points.iter().map(|point| point[1])),
    };
    let frame = panel([56.0, 40.0], [560.0, 210.0], &loss);
    axes(&mut figure, &frame, "Loss");
    frame.curve(&mut figure, &thinned(&loss), line(Ink::Series(0), 1.0, 0.3));
    frame.curve(
        &mut figure,
        &thinned(&smoothed(curve)),
        line(Ink::Series(0), 2.0, 1.0),
    );
    let frame = panel([700.0, 40.0], [280.0, 210.0], &rate);
    axes(&mut figure, &frame, "Learning rate");
    frame.curve(&mut figure, &thinned(&rate), line(Ink::Series(7), 2.0, 1.0));
    if !curve.validations.is_empty() {
        validation(&mut figure, structures, curve, last);
    }
    figure
}

fn validation(figure: &mut Figure, structures: &[String], curve: &Curve, last: f64) {
    let frame = Frame {
        from: [56.0, 350.0],
        size: [720.0, 240.0],
        x: [0.0, last],
        y: [0.0, 1.0],
    };
    axes(figure, &frame, "Validation Dice");
    let mut legend = 0;
    let mut add = |figure: &mut Figure, name: &str, points: Vec<[f64; 2]>, style: Style| {
        frame.curve(figure, &points, style);
        for [x, y] in &points {
            figure.dot(
                [frame.across(*x), frame.down(*y)],
                style.width + 0.6,
                style.ink,
                1.0,
            );
        }
        let y = LEGEND_TOP + f64::from(legend) * LEGEND_LINE;
        legend += 1;
        let sample = vec![[800.0, y], [824.0, y]];
        figure.path(sample, style.width, style.ink, style.opacity, style.dash);
        let end = points
            .last()
            .map_or_else(String::new, |point| format!("{:.2}  ", point[1]));
        figure.text(
            [832.0, y + 4.0],
            Anchor::Start,
            SMALL,
            Ink::Text,
            format!("{end}{name}"),
        );
    };
    for (n, name) in structures.iter().enumerate() {
        let of = |v: &Validation| Some([v.step as f64, v.of(name)?]);
        let points: Vec<_> = curve.validations.iter().filter_map(of).collect();
        let style = Style {
            ink: Ink::Series(n),
            width: 1.4,
            opacity: 0.9,
            dash: 4.0 * (n / SERIES.len()) as f64,
        };
        add(figure, name, points, style);
    }
    let points: Vec<_> = curve
        .validations
        .iter()
        .map(|v| [v.step as f64, v.mean])
        .collect();
    let style = Style {
        ink: Ink::Text,
        width: 2.6,
        opacity: 1.0,
        dash: 0.0,
    };
    add(figure, "mean", points, style);
    if let Some(best) = best(curve) {
        let [x, y] = [frame.across(best.step as f64), frame.down(best.mean)];
        let ring = (0..=40).map(|n| {
            let angle = f64::from(n) / 40.0 * std::f64::consts::TAU;
            [x + 7.0 * angle.cos(), y + 7.0 * angle.sin()]
        });
        figure.path(ring.collect(), 1.6, Ink::Text, 1.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::courses::POINTS;
    use super::*;
    use crate::cli::curve::{RolledBack, Step};
    use crate::model::CaseNote;

    fn curve(steps: usize) -> Curve {
        let step = |n: usize| Step {
            step: n,
            loss: 1.0 / n as f32,
            learning_rate: 0.004,
            elapsed_s: n as f64,
            waiting: 0.0,
        };
        let validation = |n: usize| {
            let dice = serde_json::json!({"liver": n as f64 / steps as f64, "spleen": null});
            Validation {
                step: n,
                dice: dice.as_object().cloned().unwrap(),
                mean: n as f64 / steps as f64,
                best: n < steps,
            }
        };
        Curve {
            steps: (1..=steps).map(step).collect(),
            validations: [steps / 2, steps].into_iter().map(validation).collect(),
            elapsed_s: steps as f64,
            ..Curve::default()
        }
    }

    #[test]
    fn a_page_shows_the_weights_that_were_kept() {
        let names = ["liver".to_owned(), "spleen".to_owned()];
        let mut curve = curve(3000);
        curve.cases.push(CaseNote {
            case: "ct_07".to_owned(),
            skipped: true,
            reason: "the image is constant".to_owned(),
        });
        curve.rolled_back.push(RolledBack {
            step: 7,
            back_to: 0,
            reason: "the loss is NaN".to_owned(),
            rate_scale: 0.5,
        });
        let (page, figure) = page("m", &names, &curve, None);
        let html = page.into_html();
        assert!(html.contains("best validation Dice, step 1500"));
        assert!(html.contains("<th scope=\"row\">liver</th><td>0.500</td><td>1.000</td>"));
        assert!(html.contains("<th scope=\"row\">spleen</th><td>-</td><td>-</td>"));
        assert!(html.contains("ct_07</th><td>no</td><td>the image is constant"));
        assert!(html.contains("7</th><td>0</td><td>the loss is NaN</td><td>0.5"));
        assert!(html.contains("50 min"));
        let longest = figure.shapes.iter().filter_map(|shape| match shape {
            crate::cli::report::figure::Shape::Path { points, .. } => Some(points.len()),
            _ => None,
        });
        assert!(longest.max().unwrap() <= POINTS);
    }

    #[test]
    fn a_run_of_no_or_one_step_has_a_page_too() {
        for curve in [Curve::default(), curve(1)] {
            let (page, figure) = page("m", &["liver".to_owned()], &curve, None);
            assert!(page.into_html().contains("</svg>"));
            assert!(!figure.to_svg("").contains("NaN"));
        }
    }
}
