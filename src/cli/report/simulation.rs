//! The page of a simulation: curves over the budget with intervals, areas, efficiency, pairwise comparison.

use super::chart::{Frame, SMALL, Style};
use super::figure::{Anchor, Figure, Ink};
use super::page::Page;
use crate::rounds::simulate::{Estimate, Point, RoundRecord, Settings, StrategySummary, Summary};

/// Distance between the strategies' intervals at the same budget, in pixels.
const ASIDE: f64 = 4.0;

/// A mean and its 95 % interval as text.
pub fn with_interval(estimate: &Estimate) -> String {
    match estimate.interval {
        Some([low, high]) => format!("{:.3} ({low:.3} to {high:.3})", estimate.mean),
        None => format!("{:.3}", estimate.mean),
    }
}

/// The page and its figure; `structures` in order.
pub fn page(
    settings: &Settings,
    structures: &[String],
    records: &[RoundRecord],
    summary: &Summary,
) -> (Page, Figure) {
    let Settings {
        rounds,
        query,
        initial,
        test,
        steps,
        ..
    } = settings;
    let mut page = Page::new(
        "Simulated project",
        &format!(
            "{} strategies, {} seeds, {initial} initial cases and {rounds} rounds of {query}, {steps} steps each, {test} test cases",
            summary.strategies.len(),
            summary.seeds.len()
        ),
    );
    let best = |value: fn(&StrategySummary) -> f64| {
        let order = |a: &&StrategySummary, b: &&StrategySummary| value(a).total_cmp(&value(b));
        summary.strategies.iter().max_by(order)
    };
    let mut numbers = Vec::new();
    if let Some(first) = best(|s| s.aubc.mean) {
        let what = format!("largest area under the curve: {}", first.strategy);
        numbers.push((format!("{:.3}", first.aubc.mean), what));
    }
    if let Some(first) = best(|s| s.last.mean) {
        let what = format!("highest Dice of the last round: {}", first.strategy);
        numbers.push((format!("{:.3}", first.last.mean), what));
    }
    if let Some(full) = &summary.full {
        let what = "Dice with all cases of the pool".to_owned();
        numbers.push((format!("{:.3}", full.mean), what));
    }
    page.figures(&numbers);
    let figure = figure(summary);
    page.heading("Course");
    page.svg(&figure.to_svg(
        "Dice on the test cases over labelled cases, and area under the curve per strategy",
    ));
    page.text("Dice: mean over structures and test cases, which are the same throughout and never chosen. Vertical lines are 95 % intervals of the mean over seeds (Student's t), set a little beside each other; few seeds make them wide. The dashed line is the model of all cases of the pool. Area: mean Dice along the curve, one dot per seed. All strategies of a seed begin with the same cases and each round starts from the same weights.");
    page.heading("Strategies");
    strategies(&mut page, summary);
    if let Some(penalty) = &summary.penalty {
        page.heading("Which is better than which");
        let names = summary.strategies.iter().map(|s| s.strategy.clone());
        let head: Vec<String> = std::iter::once("is better than".to_owned())
            .chain(names)
            .collect();
        let rows: Vec<Vec<String>> = summary
            .strategies
            .iter()
            .zip(penalty)
            .enumerate()
            .map(|(row, (strategy, wins))| {
                let cell = |(column, share): (usize, &f64)| match row == column {
                    true => String::new(),
                    false => format!("{:.0} %", share * 100.0),
                };
                let cells = wins.iter().enumerate().map(cell);
                std::iter::once(strategy.strategy.clone())
                    .chain(cells)
                    .collect()
            })
            .collect();
        page.table(None, &head, &rows);
        page.text("Share of the rounds after the first in which the row's strategy has a higher Dice than the column's by a paired t test over the seeds, two-sided at 5 %, not corrected for the number of tests.");
    }
    rounds_table(&mut page, structures, records);
    (page, figure)
}

fn strategies(page: &mut Page, summary: &Summary) {
    let head = [
        "Strategy",
        "Area under the curve",
        "Dice of the last round",
        "Foreground efficiency",
        "Choosing",
        "Training",
    ]
    .map(str::to_owned);
    let rows: Vec<Vec<String>> = summary
        .strategies
        .iter()
        .map(|s| {
            let efficiency = s.foreground_efficiency.as_ref();
            vec![
                s.strategy.clone(),
                with_interval(&s.aubc),
                with_interval(&s.last),
                efficiency.map_or_else(|| "-".to_owned(), with_interval),
                format!("{:.0} s", s.choose_s),
                format!("{:.0} s", s.train_s),
            ]
        })
        .collect();
    page.table(None, &head, &rows);
    page.text("In brackets: 95 % interval over seeds. Foreground efficiency: rate at which the Dice approaches that of all cases, per percent of the pool's labelled voxels; none where a curve does not rise. Seconds: all rounds and seeds, after the first round.");
}

fn rounds_table(page: &mut Page, structures: &[String], records: &[RoundRecord]) {
    let mut head: Vec<String> = ["Strategy", "Seed", "Round", "Cases", "Dice"]
        .map(str::to_owned)
        .to_vec();
    head.extend(structures.iter().cloned());
    head.push("Chosen".to_owned());
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|r| {
            let mut row = vec![
                r.strategy.clone(),
                r.seed.to_string(),
                r.round.to_string(),
                r.cases.to_string(),
                format!("{:.3}", r.mean_dice),
            ];
            let shown = |d: &Option<f64>| d.map_or_else(|| "-".to_owned(), |d| format!("{d:.3}"));
            row.extend(r.dice.iter().map(shown));
            row.push(match r.strategy.as_str() {
                "full" => "all".to_owned(),
                _ => r.chosen.join(", "),
            });
            row
        })
        .collect();
    page.heading("Rounds");
    page.table(Some("All rounds"), &head, &rows);
}

fn figure(summary: &Summary) -> Figure {
    let count = summary.strategies.len();
    let mut figure = Figure::new(1000.0, (80.0 + 26.0 * count as f64).max(420.0) + 20.0);
    let shown = summary.strategies.iter().flat_map(|s| &s.curve);
    let shown = shown.map(|point| &point.dice).chain(&summary.full);
    let y = range(shown.flat_map(extent), 0.02);
    let budgets = || {
        let curves = summary.strategies.iter().flat_map(|s| &s.curve);
        curves.map(|point| point.cases as f64)
    };
    let (first, last) = (
        budgets().fold(f64::INFINITY, f64::min),
        budgets().fold(0.0, f64::max),
    );
    if !(first < f64::INFINITY && y[0] < y[1]) {
        return figure;
    }
    let aside = 0.06 * (last - first).max(1.0);
    let frame = Frame {
        from: [56.0, 40.0],
        size: [520.0, 320.0],
        x: [first - aside, last + aside],
        y,
    };
    frame.title(&mut figure, "Dice on the test cases");
    frame.x_axis(&mut figure);
    frame.y_axis(&mut figure);
    let below = [
        frame.from[0] + frame.size[0],
        frame.from[1] + frame.size[1] + 32.0,
    ];
    figure.text(below, Anchor::End, SMALL, Ink::Faint, "labelled cases");
    if let Some(full) = &summary.full {
        let line = [[frame.x[0], full.mean], [frame.x[1], full.mean]];
        let style = Style {
            ink: Ink::Faint,
            width: 1.4,
            opacity: 1.0,
            dash: 5.0,
        };
        frame.curve(&mut figure, &line, style);
    }
    for (n, strategy) in summary.strategies.iter().enumerate() {
        let shift = ASIDE * (n as f64 - (count as f64 - 1.0) / 2.0);
        curve(&mut figure, &frame, &strategy.curve, n, shift);
    }
    areas(&mut figure, summary);
    figure
}

fn curve(figure: &mut Figure, frame: &Frame, points: &[Point], n: usize, shift: f64) {
    let ink = Ink::Series(n);
    let at = |point: &Point| {
        [
            frame.across(point.cases as f64) + shift,
            frame.down(point.dice.mean),
        ]
    };
    figure.path(points.iter().map(at).collect(), 2.0, ink, 1.0, dash(n));
    for point in points {
        let [x, y] = at(point);
        if let Some(ends) = point.dice.interval {
            let [low, high] = ends.map(|v| frame.down(v.clamp(frame.y[0], frame.y[1])));
            figure.path(vec![[x, low], [x, high]], 1.2, ink, 0.55, 0.0);
        }
        figure.dot([x, y], 3.4, ink, 1.0);
    }
}

/// Everything that is drawn of an estimate.
fn extent(estimate: &Estimate) -> impl Iterator<Item = f64> {
    let ends = estimate.interval.into_iter().flatten();
    ends.chain(estimate.values.iter().copied())
        .chain([estimate.mean])
}

/// An axis of Dice that shows all values and a little more, at least `least`; intervals may reach beyond 0 and 1, it does not.
fn range(values: impl Iterator<Item = f64>, least: f64) -> [f64; 2] {
    let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let margin = (0.1 * (high - low)).max(least);
    [(low - margin).max(0.0), (high + margin).min(1.0)]
}

/// Further strategies than there are colours are dashed.
fn dash(n: usize) -> f64 {
    4.0 * (n / super::figure::SERIES.len()) as f64
}

/// Area under the curve per strategy, with the names that are the legend of both parts.
fn areas(figure: &mut Figure, summary: &Summary) {
    let shown = summary.strategies.iter().flat_map(|s| extent(&s.aubc));
    let count = summary.strategies.len() as f64;
    let frame = Frame {
        from: [750.0, 40.0],
        size: [230.0, 26.0 * count + 14.0],
        x: range(shown, 0.01),
        y: [0.0, 1.0],
    };
    let title = [610.0, frame.from[1] - 10.0];
    figure.text(
        title,
        Anchor::Start,
        13.0,
        Ink::Text,
        "Area under the curve",
    );
    frame.x_axis(figure);
    for (n, strategy) in summary.strategies.iter().enumerate() {
        let (ink, y) = (Ink::Series(n), frame.from[1] + 20.0 + 26.0 * n as f64);
        figure.path(vec![[610.0, y], [630.0, y]], 2.0, ink, 1.0, dash(n));
        figure.dot([620.0, y], 3.4, ink, 1.0);
        let name = [637.0, y + 4.0];
        figure.text(
            name,
            Anchor::Start,
            SMALL,
            Ink::Text,
            strategy.strategy.clone(),
        );
        if let Some(ends) = strategy.aubc.interval {
            let [low, high] = ends.map(|v| frame.across(v.clamp(frame.x[0], frame.x[1])));
            figure.line([low, y], [high, y], 1.2, ink);
        }
        for value in &strategy.aubc.values {
            figure.dot([frame.across(*value), y], 2.2, ink, 0.6);
        }
        let mean = frame.across(strategy.aubc.mean);
        figure.line([mean, y - 6.0], [mean, y + 6.0], 2.2, ink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(values: &[f64]) -> Estimate {
        Estimate::of(values.to_vec()).unwrap()
    }

    fn summary(rounds: usize, seeds: &[f64]) -> Summary {
        let strategy = |name: &str, lift: f64| StrategySummary {
            strategy: name.to_owned(),
            curve: (0..rounds)
                .map(|round| Point {
                    round,
                    cases: 2 + 2 * round,
                    foreground_percent: 10.0 * round as f64,
                    dice: estimate(
                        &seeds
                            .iter()
                            .map(|s| s + lift * round as f64)
                            .collect::<Vec<_>>(),
                    ),
                })
                .collect(),
            aubc: estimate(seeds),
            last: estimate(seeds),
            foreground_efficiency: None,
            choose_s: 1.0,
            train_s: 2.0,
        };
        Summary {
            strategies: vec![strategy("entropy", 0.1), strategy("<random>", 0.05)],
            penalty: (seeds.len() > 1).then(|| vec![vec![0.0, 0.5], vec![0.0, 0.0]]),
            full: None,
            seeds: (0..seeds.len() as u64).collect(),
        }
    }

    fn settings() -> Settings {
        Settings {
            strategies: vec!["entropy".to_owned()],
            seeds: vec![1],
            rounds: 2,
            query: 2,
            initial: 2,
            test: 3,
            steps: 10,
            batch: None,
            passes: Default::default(),
            full: false,
            parent_sha256: String::new(),
        }
    }

    #[test]
    fn a_page_names_strategies_and_numbers() {
        let (page, figure) = page(
            &settings(),
            &["liver".to_owned()],
            &[],
            &summary(3, &[0.5, 0.52]),
        );
        let html = page.into_html();
        assert!(html.contains("&lt;random&gt;") && !html.contains("<random>"));
        assert!(html.contains("<td>50 %</td>"), "the pairwise comparison");
        assert!(html.contains("0.510 ("), "a mean with its interval");
        assert!(!figure.to_svg("").contains("NaN"));
    }

    #[test]
    fn one_seed_and_one_round_have_a_page_too() {
        for rounds in [0, 1] {
            let (page, figure) = page(&settings(), &[], &[], &summary(rounds, &[0.5]));
            assert!(page.into_html().contains("</svg>"));
            assert!(!figure.to_svg("").contains("NaN"));
        }
    }
}
