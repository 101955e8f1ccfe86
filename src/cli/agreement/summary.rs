//! Means over cases with their confidence intervals.

use super::score::Evaluation;
use crate::cli::statistics::{interval, interval_of_mean, quantile, sorted};
use crate::imaging::metrics::{Agreement, Presence, mean};

/// What is measured of a structure in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Dice coefficient.
    Dice,
    /// Normalised surface Dice.
    Nsd,
    /// 95th percentile of the Hausdorff distance.
    Hd95,
    /// Average symmetric surface distance.
    Assd,
    /// Volume of the prediction minus that of the reference.
    VolumeDifference,
    /// The same over the reference's volume.
    VolumeDifferenceRelative,
}

impl Measure {
    /// In the order of tables.
    pub const ALL: [Self; 6] = [
        Self::Dice,
        Self::Nsd,
        Self::Hd95,
        Self::Assd,
        Self::VolumeDifference,
        Self::VolumeDifferenceRelative,
    ];

    /// Name in JSON, with its unit.
    pub fn key(self) -> &'static str {
        match self {
            Self::Dice => "dice",
            Self::Nsd => "nsd",
            Self::Hd95 => "hd95_mm",
            Self::Assd => "assd_mm",
            Self::VolumeDifference => "volume_difference_ml",
            Self::VolumeDifferenceRelative => "volume_difference_relative",
        }
    }

    /// Name in tables, with its unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dice => "Dice",
            Self::Nsd => "NSD",
            Self::Hd95 => "HD95 mm",
            Self::Assd => "ASSD mm",
            Self::VolumeDifference => "Volume ml",
            Self::VolumeDifferenceRelative => "Volume %",
        }
    }

    /// A mean with its interval.
    pub fn cell(self, spread: &Spread) -> String {
        match (spread.mean, spread.interval) {
            (None, _) => "-".to_owned(),
            (Some(mean), None) => self.text(mean),
            (Some(mean), Some([low, high])) => format!(
                "{} [{}, {}]",
                self.text(mean),
                self.text(low),
                self.text(high)
            ),
        }
    }

    /// A value as text in tables.
    pub fn text(self, value: f64) -> String {
        let text = match self {
            Self::Dice | Self::Nsd => format!("{value:.3}"),
            Self::Hd95 | Self::Assd => format!("{value:.1}"),
            Self::VolumeDifference => format!("{value:+.1}"),
            Self::VolumeDifferenceRelative => format!("{:+.0}", value * 100.0),
        };
        // No negative zero.
        if text
            .strip_prefix('-')
            .is_some_and(|rest| rest.chars().all(|c| "0.".contains(c)))
        {
            text.replacen('-', "+", 1)
        } else {
            text
        }
    }

    /// The value of an agreement; `None` where it has none.
    pub fn of(self, agreement: &Agreement) -> Option<f64> {
        match self {
            Self::Dice => agreement.dice,
            Self::Nsd => agreement.nsd,
            Self::Hd95 => agreement.hd95_mm,
            Self::Assd => agreement.assd_mm,
            Self::VolumeDifference => agreement.volume_difference_ml(),
            Self::VolumeDifferenceRelative => agreement.volume_difference_relative(),
        }
    }
}

/// One measure over cases.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// Values in the order of the cases; `None` where it has none.
    pub values: Vec<Option<f64>>,
    /// Mean of the defined values.
    pub mean: Option<f64>,
    /// 95 % bootstrap interval of the mean over cases; `None` below two defined values.
    pub interval: Option<[f64; 2]>,
}

impl Spread {
    fn new(values: Vec<Option<f64>>, seed: u64) -> Self {
        Self {
            mean: mean(values.iter().copied()),
            interval: interval_of_mean(&values, seed),
            values,
        }
    }

    /// A difference with its interval, as text.
    pub fn signed(&self) -> String {
        match (self.mean, self.interval) {
            (None, _) => "-".to_owned(),
            (Some(mean), None) => format!("{mean:+.3}"),
            (Some(mean), Some([low, high])) => format!("{mean:+.3} [{low:+.3}, {high:+.3}]"),
        }
    }

    /// How many cases have a value.
    pub fn count(&self) -> usize {
        self.values.iter().flatten().count()
    }

    /// Minimum, quartiles and maximum; `None` without values.
    pub fn quartiles(&self) -> Option<[f64; 5]> {
        let sorted = sorted(self.values.iter().copied());
        let mut five = [0.0; 5];
        for (n, value) in five.iter_mut().enumerate() {
            *value = quantile(&sorted, n as f64 / 4.0)?;
        }
        Some(five)
    }
}

/// One structure in all cases of one prediction.
pub struct StructureSummary {
    /// One for each of [`Measure::ALL`].
    spreads: Vec<Spread>,
    /// Per case; `None` where it was not annotated.
    pub presence: Vec<Option<Presence>>,
}

impl StructureSummary {
    /// A measure over cases.
    pub fn spread(&self, measure: Measure) -> &Spread {
        &self.spreads[measure as usize]
    }

    /// Number of cases where the structure is like this.
    pub fn count(&self, presence: Option<Presence>) -> usize {
        self.presence.iter().filter(|p| **p == presence).count()
    }
}

/// A prediction over all cases.
pub struct PredictionSummary {
    /// By structure, in the order of the evaluation's values.
    pub structures: Vec<StructureSummary>,
    /// Mean over structures of the means over cases, one for each of [`Measure::ALL`]; its values are the means over
    /// structures of each case.
    overall: Vec<Spread>,
    /// This prediction minus the first, on the cases where both have a value: by structure (the last is the mean over
    /// structures), Dice then NSD. Empty for the first.
    pub differences: Vec<[Spread; 2]>,
}

impl PredictionSummary {
    /// A measure over structures and cases.
    pub fn overall(&self, measure: Measure) -> &Spread {
        &self.overall[measure as usize]
    }
}

/// What [`PredictionSummary::differences`] compares.
pub const COMPARED: [Measure; 2] = [Measure::Dice, Measure::Nsd];

/// All predictions over all cases.
pub struct Summary {
    /// The first is `--prediction`.
    pub predictions: Vec<PredictionSummary>,
    /// Seed of the intervals.
    pub seed: u64,
}

impl Summary {
    /// Means and intervals of what was measured.
    pub fn of(evaluation: &Evaluation, seed: u64) -> Self {
        let mut predictions: Vec<PredictionSummary> = Vec::new();
        for prediction in 0..evaluation.prediction_count() {
            let structures: Vec<_> = evaluation
                .values
                .iter()
                .map(|value| structure(evaluation, prediction, *value, seed))
                .collect();
            let overall: Vec<_> = Measure::ALL
                .iter()
                .map(|measure| overall(&structures, *measure, evaluation.case_count(), seed))
                .collect();
            let differences = match predictions.first() {
                None => Vec::new(),
                Some(first) => {
                    let of_structures =
                        structures
                            .iter()
                            .zip(&first.structures)
                            .map(|(here, first)| {
                                COMPARED.map(|m| difference(here.spread(m), first.spread(m), seed))
                            });
                    let of_means = COMPARED.map(|measure| {
                        difference(&overall[measure as usize], first.overall(measure), seed)
                    });
                    of_structures.chain([of_means]).collect()
                }
            };
            predictions.push(PredictionSummary {
                structures,
                overall,
                differences,
            });
        }
        Self { predictions, seed }
    }
}

fn structure(
    evaluation: &Evaluation,
    prediction: usize,
    value: u16,
    seed: u64,
) -> StructureSummary {
    let found: Vec<Option<Agreement>> = (0..evaluation.case_count())
        .map(|case| evaluation.agreement(prediction, case, value))
        .collect();
    let values = |measure: Measure| {
        let of = |agreement: &Option<Agreement>| agreement.and_then(|found| measure.of(&found));
        found.iter().map(of).collect()
    };
    StructureSummary {
        spreads: Measure::ALL
            .iter()
            .map(|measure| Spread::new(values(*measure), seed))
            .collect(),
        presence: found
            .iter()
            .map(|found| found.map(|found| found.presence))
            .collect(),
    }
}

/// The mean over structures of their means over cases: every structure counts the same, however often it is defined.
fn overall(structures: &[StructureSummary], measure: Measure, cases: usize, seed: u64) -> Spread {
    let spreads: Vec<&Spread> = structures.iter().map(|s| s.spread(measure)).collect();
    let of_structures = |cases: &[usize]| {
        mean(
            spreads
                .iter()
                .map(|spread| mean(cases.iter().map(|case| spread.values[*case]))),
        )
    };
    Spread {
        values: (0..cases).map(|case| of_structures(&[case])).collect(),
        mean: mean(spreads.iter().map(|spread| spread.mean)),
        interval: interval(cases, seed, of_structures),
    }
}

/// Case by case, where both have a value.
fn difference(here: &Spread, first: &Spread, seed: u64) -> Spread {
    let both = here.values.iter().zip(&first.values);
    Spread::new(
        both.map(|(here, first)| Some((*here)? - (*first)?))
            .collect(),
        seed,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_as_text() {
        assert_eq!(Measure::Dice.text(0.81249), "0.812");
        assert_eq!(Measure::VolumeDifference.text(-0.04), "+0.0");
        assert_eq!(Measure::VolumeDifference.text(-0.06), "-0.1");
        assert_eq!(Measure::VolumeDifferenceRelative.text(0.256), "+26");
    }

    #[test]
    fn spreads() {
        let spread = Spread::new(vec![Some(1.0), None, Some(3.0)], 1);
        assert_eq!((spread.mean, spread.count()), (Some(2.0), 2));
        assert_eq!(spread.quartiles(), Some([1.0, 1.5, 2.0, 2.5, 3.0]));
        let [low, high] = spread.interval.unwrap();
        assert!(low >= 1.0 && high <= 3.0 && low < high);
        let other = Spread::new(vec![Some(0.5), Some(2.0), None], 1);
        assert_eq!(
            difference(&other, &spread, 1).values,
            [Some(-0.5), None, None]
        );
        let none = Spread::new(vec![None], 1);
        assert_eq!(
            (none.mean, none.interval, none.quartiles()),
            (None, None, None)
        );
    }
}
