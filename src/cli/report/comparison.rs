//! The page of an evaluation: box plots per structure, tables with intervals, worst cases.

use super::chart::{CHARACTER, Frame, SMALL, from_zero};
use super::courses::{self, Course};
use super::figure::{Anchor, Figure, Ink};
use super::judged::Judged;
use super::page::Page;
use crate::cli::agreement::{Evaluation, Files, Measure, PredictionSummary, Spread, Summary};
use crate::imaging::metrics::Presence;

/// Height of one box with its space.
const BOX: f64 = 18.0;
/// Space between structures.
const BETWEEN: f64 = 10.0;
const TOP: f64 = 66.0;
const WIDTH: f64 = 1000.0;
/// Space between panels.
const GAP: f64 = 34.0;
/// What the panels show.
const PANELS: [Measure; 3] = [Measure::Dice, Measure::Nsd, Measure::Hd95];

const EXPLANATION: &str = "Dice: overlap with the reference, 0 to 1 (1 is perfect). NSD: share of the surfaces that lie within the tolerance of each other, 0 to 1. HD95: 95 % of the surface lies within this distance of the other. ASSD: average distance between the surfaces. Volume: prediction minus reference. In brackets: 95 % interval of the mean, by resampling the cases. A structure that was missed counts as Dice and NSD 0 and has no distance, so distances are means over the cases where it was found.";

/// The page and its figure.
pub fn page(judged: &Judged, courses: &[Course]) -> (Page, Figure) {
    let files = &judged.files;
    let title = match files.predictions.len() {
        1 => "Evaluation against reference labels".to_owned(),
        _ => format!("Comparison: {}", files.predictions.join(", ")),
    };
    let below = format!(
        "{} cases, {} structures",
        files.cases.len(),
        judged.evaluation.values.len()
    );
    let mut page = Page::new(&title, &below);
    page.figures(&headline(files, &judged.summary));
    let figure = agreement(&mut page, judged);
    if !courses.is_empty() {
        let drawn = courses::figure(courses);
        page.heading("Courses of training");
        page.svg(&drawn.to_svg("Loss and validation Dice of each run over steps"));
        page.text("Loss: mean over a fiftieth of the run. Dice: mean over the structures and the run's own validation cases.");
    }
    (page, figure)
}

/// Box plots, tables and worst cases of an evaluation, with its notes; answers with the figure.
pub fn agreement(page: &mut Page, judged: &Judged) -> Figure {
    let Judged {
        files,
        evaluation,
        summary,
        pictures,
    } = judged;
    let names = names(evaluation);
    let figure = figure(&files.predictions, &names, summary);
    page.heading("Agreement per structure");
    page.svg(&figure.to_svg("Box plots of Dice, NSD and HD95 per structure"));
    page.text("Every dot is a case. Box: the middle half of the cases; thick line: median; thin line: smallest to largest.");

    page.heading("Means over cases");
    for (name, found) in files.predictions.iter().zip(&summary.predictions) {
        if files.predictions.len() > 1 {
            page.subheading(name);
        }
        let (head, rows) = means(evaluation, &names, found);
        page.table(None, &head, &rows);
        for line in absences(&names, found) {
            page.text(&line);
        }
    }
    page.text(EXPLANATION);
    if files.predictions.len() > 1 {
        differences(page, files, &names, summary);
    }
    if !pictures.is_empty() {
        page.heading("Worst cases");
        page.text("The structure with the lowest Dice of each of the worst cases, at the slices where it differs most. The reference is the last row.");
        for picture in pictures {
            page.picture(&picture.png, &picture.caption);
        }
    }
    page.heading("Every case");
    for (prediction, name) in files.predictions.iter().enumerate() {
        let (head, rows) = cases(files, &names, &summary.predictions[prediction]);
        page.table(Some(&format!("Dice per case: {name}")), &head, &rows);
    }
    notes(page, files, evaluation, summary);
    figure
}

fn names(evaluation: &Evaluation) -> Vec<String> {
    let names = evaluation.values.iter();
    names
        .map(|value| evaluation.structures.name(*value))
        .collect()
}

fn headline(files: &Files, summary: &Summary) -> Vec<(String, String)> {
    let mut numbers = Vec::new();
    for (name, found) in files.predictions.iter().zip(&summary.predictions) {
        for measure in [Measure::Dice, Measure::Nsd] {
            let spread = found.overall(measure);
            let Some(mean) = spread.mean else { continue };
            let whose = match files.predictions.len() {
                1 => String::new(),
                _ => format!(", {name}"),
            };
            let interval = spread.interval.map_or_else(String::new, |[low, high]| {
                format!(" ({} to {})", measure.text(low), measure.text(high))
            });
            let what = format!("mean {}{whose}{interval}", measure.title());
            numbers.push((measure.text(mean), what));
        }
    }
    numbers
}

fn means(
    evaluation: &Evaluation,
    names: &[String],
    found: &PredictionSummary,
) -> (Vec<String>, Vec<Vec<String>>) {
    let mut head = vec!["Structure".to_owned(), "Cases".to_owned()];
    head.extend(Measure::ALL.map(|measure| measure.title().to_owned()));
    head.push("Tolerance mm".to_owned());
    let row = |name: &str, of: &dyn Fn(Measure) -> (String, usize), tolerance: String| {
        let mut row = vec![name.to_owned(), of(Measure::Dice).1.to_string()];
        row.extend(Measure::ALL.map(|measure| of(measure).0));
        row.push(tolerance);
        row
    };
    let mut rows: Vec<_> = names
        .iter()
        .zip(&evaluation.values)
        .zip(&found.structures)
        .map(|((name, value), structure)| {
            let of = |measure| {
                let spread = structure.spread(measure);
                (measure.cell(spread), spread.count())
            };
            row(
                name,
                &of,
                format!("{}", evaluation.structures.tolerance_mm(*value)),
            )
        })
        .collect();
    let of = |measure| {
        let spread = found.overall(measure);
        (measure.cell(spread), spread.count())
    };
    rows.push(row("Mean", &of, String::new()));
    (head, rows)
}

fn absences(names: &[String], found: &PredictionSummary) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, structure) in names.iter().zip(&found.structures) {
        for (presence, text) in [
            (Presence::ReferenceOnly, "missed by the prediction"),
            (
                Presence::PredictionOnly,
                "predicted, but not in the reference",
            ),
        ] {
            let count = structure.count(Some(presence));
            if count > 0 {
                lines.push(format!(
                    "{name}: {text} in {count} of {} cases.",
                    structure.presence.len()
                ));
            }
        }
    }
    lines
}

fn differences(page: &mut Page, files: &Files, names: &[String], summary: &Summary) {
    page.heading("Differences, case by case");
    page.text(&format!(
        "Each minus {}, on the same cases. An interval that holds 0 shows no difference that these cases could tell from chance.",
        files.predictions[0]
    ));
    let mut head = vec!["Structure".to_owned()];
    for name in &files.predictions[1..] {
        head.extend([format!("{name}: Dice"), format!("{name}: NSD")]);
    }
    let rows: Vec<Vec<String>> = names
        .iter()
        .map(String::as_str)
        .chain(["Mean"])
        .enumerate()
        .map(|(n, name)| {
            let others = summary.predictions[1..].iter();
            let cells =
                others.flat_map(|found| found.differences[n].each_ref().map(Spread::signed));
            std::iter::once(name.to_owned()).chain(cells).collect()
        })
        .collect();
    page.table(None, &head, &rows);
}

fn cases(
    files: &Files,
    names: &[String],
    found: &PredictionSummary,
) -> (Vec<String>, Vec<Vec<String>>) {
    let mut head = vec!["Case".to_owned()];
    head.extend(names.iter().cloned());
    head.push("Mean".to_owned());
    let text = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| Measure::Dice.text(v));
    let rows = files.cases.iter().enumerate().map(|(case, name)| {
        let cells = found
            .structures
            .iter()
            .map(|structure| match structure.presence[case] {
                None => "not annotated".to_owned(),
                Some(Presence::ReferenceOnly) => "missed".to_owned(),
                Some(Presence::PredictionOnly) => "not in reference".to_owned(),
                Some(_) => text(structure.spread(Measure::Dice).values[case]),
            });
        let mean = text(found.overall(Measure::Dice).values[case]);
        std::iter::once(name.clone())
            .chain(cells)
            .chain([mean])
            .collect()
    });
    (head, rows.collect())
}

fn notes(page: &mut Page, files: &Files, evaluation: &Evaluation, summary: &Summary) {
    page.heading("Notes");
    page.text(&format!(
        "Surface distances follow Nikolov and others (JMIR 2021): surface elements of 2 x 2 x 2 voxels, weighted by their area, in the patient's millimetres. Intervals: {} resamples, seed {}.",
        crate::cli::statistics::RESAMPLES,
        summary.seed
    ));
    if !files.left_out.is_empty() {
        page.text(&format!(
            "Left out, because a reference or a prediction is missing: {}.",
            files.left_out.join(", ")
        ));
    }
    for warning in &evaluation.warnings {
        page.text(warning);
    }
}

/// Box plots: a row for each structure, a panel for each measure.
fn figure(predictions: &[String], names: &[String], summary: &Summary) -> Figure {
    let longest = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    let left = (longest as f64 * CHARACTER * SMALL + 16.0).clamp(60.0, 260.0);
    let row = predictions.len() as f64 * BOX + BETWEEN;
    let height = row * names.len() as f64;
    let mut figure = Figure::new(WIDTH, TOP + height + 30.0);
    if predictions.len() > 1 {
        let mut at = left;
        for (n, name) in predictions.iter().enumerate() {
            figure.bar([at, 10.0], [12.0, 12.0], Ink::Series(n), 1.0);
            figure.text([at + 18.0, 20.0], Anchor::Start, SMALL, Ink::Text, name);
            at += 40.0 + name.chars().count() as f64 * CHARACTER * SMALL;
        }
    }
    let width = (WIDTH - left - 24.0 - GAP * (PANELS.len() - 1) as f64) / PANELS.len() as f64;
    for (n, measure) in PANELS.into_iter().enumerate() {
        let range = match measure {
            Measure::Dice | Measure::Nsd => [0.0, 1.0],
            _ => {
                let structures = summary.predictions.iter().flat_map(|p| &p.structures);
                from_zero(
                    structures.flat_map(|s| s.spread(measure).values.iter().copied().flatten()),
                )
            }
        };
        let frame = Frame {
            from: [left + n as f64 * (width + GAP), TOP],
            size: [width, height],
            x: range,
            y: [0.0, 1.0],
        };
        frame.title(&mut figure, measure.title());
        frame.x_axis(&mut figure);
        for structure in 0..names.len() {
            let top = TOP + structure as f64 * row;
            figure.line(
                [frame.from[0], top],
                [frame.from[0] + width, top],
                1.0,
                Ink::Grid,
            );
            for (prediction, found) in summary.predictions.iter().enumerate() {
                let y = top + BETWEEN / 2.0 + (prediction as f64 + 0.5) * BOX;
                let spread = found.structures[structure].spread(measure);
                if let Some(five) = spread.quartiles() {
                    let values: Vec<_> = spread.values.iter().copied().flatten().collect();
                    frame.box_plot(
                        &mut figure,
                        y,
                        BOX - 6.0,
                        Ink::Series(prediction),
                        five,
                        &values,
                    );
                }
            }
        }
    }
    for (structure, name) in names.iter().enumerate() {
        let middle = TOP + (structure as f64 + 0.5) * row;
        figure.text(
            [left - 10.0, middle + 4.0],
            Anchor::End,
            SMALL,
            Ink::Text,
            name,
        );
    }
    figure
}
