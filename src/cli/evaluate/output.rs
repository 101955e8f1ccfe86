//! What an evaluation prints: one JSON document, or a table.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::cli::agreement::{
    COMPARED, Evaluation, Files, Measure, PredictionSummary, Spread, StructureSummary, Summary,
};
use crate::cli::statistics::{LEVEL, RESAMPLES};
use crate::imaging::metrics::{Agreement, Presence};

/// The whole evaluation. `cases`, `mean_per_structure` and `mean` are the Dice of the first prediction; `measures` and
/// `summary` hold everything, and `comparisons` the same for the other predictions.
pub fn json(files: &Files, evaluation: &Evaluation, summary: &Summary) -> Value {
    let names: Vec<String> = evaluation
        .values
        .iter()
        .map(|value| evaluation.structures.name(*value))
        .collect();
    let first = &summary.predictions[0];
    let dice = |case: usize| {
        let of = |s: &StructureSummary| json!(s.spread(Measure::Dice).values[case]);
        by_name(&names, first.structures.iter().map(of))
    };
    let cases = (0..files.cases.len()).map(dice);
    let means = first
        .structures
        .iter()
        .map(|s| json!(s.spread(Measure::Dice).mean));
    let tolerances = evaluation
        .values
        .iter()
        .map(|value| json!(evaluation.structures.tolerance_mm(*value)));
    let mut document = json!({
        "cases": by_name(&files.cases, cases),
        "mean_per_structure": by_name(&names, means),
        "mean": first.overall(Measure::Dice).mean,
        "tolerance_mm": by_name(&names, tolerances),
        "intervals": {"level": LEVEL, "method": "percentile bootstrap over cases", "resamples": RESAMPLES, "seed": summary.seed},
        "left_out": files.left_out,
        "warnings": evaluation.warnings,
    });
    let mut predictions = (0..files.predictions.len())
        .map(|prediction| of_prediction(files, evaluation, summary, &names, prediction));
    if let (Some(all), Some(Value::Object(first))) = (document.as_object_mut(), predictions.next())
    {
        all.extend(first);
        all.insert("comparisons".to_owned(), predictions.collect());
    }
    document
}

fn by_name(names: &[String], values: impl Iterator<Item = Value>) -> Value {
    Value::Object(names.iter().cloned().zip(values).collect())
}

fn of_prediction(
    files: &Files,
    evaluation: &Evaluation,
    summary: &Summary,
    names: &[String],
    prediction: usize,
) -> Value {
    let found = &summary.predictions[prediction];
    let measures = (0..files.cases.len()).map(|case| {
        let of = |value: &u16| of_agreement(evaluation.agreement(prediction, case, *value));
        by_name(names, evaluation.values.iter().map(of))
    });
    let structures = found.structures.iter().map(|structure| {
        let mut spreads = spreads(|measure| structure.spread(measure));
        let counts = [
            None,
            Some(Presence::Neither),
            Some(Presence::ReferenceOnly),
            Some(Presence::PredictionOnly),
        ];
        for presence in counts {
            let key = format!("cases_{}", status(presence));
            spreads.insert(key, json!(structure.count(presence)));
        }
        Value::Object(spreads)
    });
    let mut document = json!({
        "name": files.predictions[prediction],
        "measures": by_name(&files.cases, measures),
        "summary": by_name(names, structures),
        "summary_over_structures": spreads(|measure| found.overall(measure)),
    });
    if let Some((overall, structures)) = found.differences.split_last() {
        let of = |pair: &[Spread; 2]| -> Value {
            let pairs = COMPARED.iter().zip(pair);
            pairs
                .map(|(measure, s)| (measure.key().to_owned(), of_spread(s)))
                .collect::<Map<_, _>>()
                .into()
        };
        document["difference_to_first"] = by_name(names, structures.iter().map(of));
        document["difference_to_first_over_structures"] = of(overall);
    }
    document
}

fn spreads<'a>(of: impl Fn(Measure) -> &'a Spread) -> Map<String, Value> {
    Measure::ALL
        .iter()
        .map(|measure| (measure.key().to_owned(), of_spread(of(*measure))))
        .collect()
}

fn of_spread(spread: &Spread) -> Value {
    let median = spread.quartiles().map(|five| five[2]);
    json!({"mean": spread.mean, "ci95": spread.interval, "median": median, "cases": spread.count()})
}

fn of_agreement(agreement: Option<Agreement>) -> Value {
    let mut found = Map::new();
    found.insert(
        "status".to_owned(),
        json!(status(agreement.map(|found| found.presence))),
    );
    for measure in Measure::ALL {
        let value = agreement.and_then(|found| measure.of(&found));
        found.insert(measure.key().to_owned(), json!(value));
    }
    found.insert(
        "reference_ml".to_owned(),
        json!(agreement.map(|found| found.reference_ml)),
    );
    found.insert(
        "prediction_ml".to_owned(),
        json!(agreement.map(|found| found.prediction_ml)),
    );
    found.into()
}

/// Why values may be absent.
fn status(presence: Option<Presence>) -> &'static str {
    match presence {
        None => "not_annotated",
        Some(Presence::Both) => "compared",
        Some(Presence::Neither) => "in_neither",
        Some(Presence::ReferenceOnly) => "missed",
        Some(Presence::PredictionOnly) => "invented",
    }
}

/// Means with their intervals, a block for each prediction.
pub fn table(evaluation: &Evaluation, summary: &Summary, predictions: &[String]) -> String {
    let mut out = String::new();
    for (name, found) in predictions.iter().zip(&summary.predictions) {
        if predictions.len() > 1 {
            let _ = writeln!(out, "{name}");
        }
        of_table(&mut out, evaluation, found);
    }
    for (name, found) in predictions.iter().zip(&summary.predictions).skip(1) {
        if let Some([dice, nsd]) = found.differences.last() {
            let _ = writeln!(
                out,
                "{name} minus {}, case by case: Dice {}, NSD {}",
                predictions[0],
                dice.signed(),
                nsd.signed()
            );
        }
    }
    let _ = writeln!(
        out,
        "[95 % interval of the mean: bootstrap over cases, seed {}]",
        summary.seed
    );
    out
}

fn of_table(out: &mut String, evaluation: &Evaluation, found: &PredictionSummary) {
    let names: Vec<String> = evaluation
        .values
        .iter()
        .map(|value| evaluation.structures.name(*value))
        .collect();
    let longest = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0)
        .max(9);
    let mut line = |name: &str, cases: String, cell: &dyn Fn(Measure) -> String| {
        let _ = write!(out, "{name:longest$} {cases:>5}");
        for measure in Measure::ALL {
            let wide = if measure == Measure::VolumeDifferenceRelative {
                17
            } else {
                21
            };
            let _ = write!(out, "  {:<wide$}", cell(measure));
        }
        let end = out.trim_end().len();
        out.truncate(end);
        out.push('\n');
    };
    line("structure", "cases".to_owned(), &|measure| {
        measure.title().to_owned()
    });
    for (name, structure) in names.iter().zip(&found.structures) {
        let cases = structure.spread(Measure::Dice).count().to_string();
        line(name, cases, &|measure| {
            measure.cell(structure.spread(measure))
        });
    }
    let cases = found.overall(Measure::Dice).count().to_string();
    line("mean", cases, &|measure| {
        measure.cell(found.overall(measure))
    });
    for (name, structure) in names.iter().zip(&found.structures) {
        for (presence, text) in [
            (Presence::ReferenceOnly, "missed (Dice 0, no distance) in"),
            (
                Presence::PredictionOnly,
                "predicted where the reference has none (Dice 0, no distance) in",
            ),
        ] {
            let count = structure.count(Some(presence));
            if count > 0 {
                let _ = writeln!(
                    out,
                    "{name}: {text} {count} of {} cases",
                    structure.presence.len()
                );
            }
        }
    }
}
