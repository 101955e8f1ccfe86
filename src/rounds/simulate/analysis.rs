//! What the rounds of a simulation say about its strategies.

use serde::Serialize;

use super::record::RoundRecord;
use super::student;

/// Probability that an interval holds the mean, and 1 minus the level of the tests.
const LEVEL: f64 = 0.95;

/// A mean over seeds with its 95 % interval by Student's t; none of a single seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Mean.
    pub mean: f64,
    /// Ends of the interval.
    pub interval: Option<[f64; 2]>,
    /// One value per seed.
    pub values: Vec<f64>,
}

/// One point of a curve.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// The round.
    pub round: usize,
    /// Cases learned from.
    pub cases: usize,
    /// Share of the pool's labelled voxels that were learned from, mean over seeds, percent.
    pub foreground_percent: f64,
    /// Mean Dice on the test cases.
    pub dice: Estimate,
}

/// One strategy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StrategySummary {
    /// Its name.
    pub strategy: String,
    /// Round by round.
    pub curve: Vec<Point>,
    /// Area under the curve over the number of cases, by trapezoids, divided by its width: the mean Dice on the way.
    pub aubc: Estimate,
    /// Dice of the last round.
    pub last: Estimate,
    /// Rate b of `full - a * exp(-b * x)` over the percentage x of labelled voxels since the beginning: how much of the way to
    /// the model of all cases a percent of labelling is worth. None without that model, or where the curve does not rise.
    pub foreground_efficiency: Option<Estimate>,
    /// Seconds for scoring and choosing, all rounds and seeds.
    pub choose_s: f64,
    /// Seconds for training, all rounds after the first.
    pub train_s: f64,
}

/// All strategies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// In the order in which they were asked for.
    pub strategies: Vec<StrategySummary>,
    /// `[row][column]`: share of the rounds after the first in which the row's strategy is better than the column's by a
    /// paired t test over the seeds, two-sided at 5 %, without correction for the number of tests. None below two seeds.
    pub penalty: Option<Vec<Vec<f64>>>,
    /// Dice of the model of all cases of the pool.
    pub full: Option<Estimate>,
    /// Seeds.
    pub seeds: Vec<u64>,
}

impl Estimate {
    /// The mean of values of independent seeds.
    pub fn of(values: Vec<f64>) -> Option<Self> {
        let n = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let interval = deviation(&values, mean).map(|sd| {
            let half = student::quantile(LEVEL, n - 1.0) * sd / n.sqrt();
            [mean - half, mean + half]
        });
        Some(Self {
            mean,
            interval,
            values,
        })
    }
}

fn deviation(values: &[f64], mean: f64) -> Option<f64> {
    let n = values.len();
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
}

/// Whether the first values are larger than the second by a paired t test, two-sided at 5 %.
fn is_better(first: &[f64], second: &[f64]) -> bool {
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    match deviation(&differences, mean) {
        Some(sd) if mean > 0.0 => {
            let t = mean / (sd / n.sqrt());
            student::two_sided(t, n - 1.0) < 1.0 - LEVEL
        }
        _ => false,
    }
}

/// Sums up the rounds that [`super::run`] gave; `pool_foreground_voxels` is that of all cases to choose from.
pub fn summarise(
    strategies: &[String],
    seeds: &[u64],
    records: &[RoundRecord],
    pool_foreground_voxels: u64,
) -> Summary {
    let of = |strategy: &str, seed: u64| -> Vec<&RoundRecord> {
        let mut rounds: Vec<&RoundRecord> = records
            .iter()
            .filter(|r| r.strategy == strategy && r.seed == seed)
            .collect();
        rounds.sort_by_key(|r| r.round);
        rounds
    };
    let percent =
        |r: &RoundRecord| 100.0 * r.foreground_voxels as f64 / pool_foreground_voxels.max(1) as f64;
    let full_of = |seed: u64| of("full", seed).first().map(|r| r.mean_dice);
    let full = Estimate::of(seeds.iter().filter_map(|seed| full_of(*seed)).collect());
    let one = |name: &String| -> Option<StrategySummary> {
        let runs: Vec<Vec<&RoundRecord>> = seeds.iter().map(|seed| of(name, *seed)).collect();
        let rounds = runs.iter().map(Vec::len).min().unwrap_or(0);
        let mut curve = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let at: Vec<&RoundRecord> = runs.iter().map(|run| run[round]).collect();
            curve.push(Point {
                round,
                cases: at.first()?.cases,
                foreground_percent: at.iter().map(|r| percent(r)).sum::<f64>() / at.len() as f64,
                dice: Estimate::of(at.iter().map(|r| r.mean_dice).collect())?,
            });
        }
        let dice = |run: &[&RoundRecord]| -> Vec<[f64; 2]> {
            run.iter().map(|r| [r.cases as f64, r.mean_dice]).collect()
        };
        let efficiencies: Vec<f64> = seeds
            .iter()
            .zip(&runs)
            .filter_map(|(seed, run)| {
                let points: Vec<[f64; 2]> = run.iter().map(|r| [percent(r), r.mean_dice]).collect();
                efficiency(&points, full_of(*seed)?)
            })
            .collect();
        let later = || runs.iter().flatten().filter(|r| r.round > 0);
        Some(StrategySummary {
            strategy: name.clone(),
            aubc: Estimate::of(runs.iter().map(|run| area(&dice(run))).collect())?,
            last: curve.last()?.dice.clone(),
            foreground_efficiency: match efficiencies.len() == seeds.len() {
                true => Estimate::of(efficiencies),
                false => None,
            },
            choose_s: later().map(|r| r.choose_s).sum(),
            train_s: later().map(|r| r.train_s).sum(),
            curve,
        })
    };
    let strategies: Vec<StrategySummary> = strategies.iter().filter_map(one).collect();
    let penalty = (seeds.len() > 1).then(|| {
        let wins = |a: &StrategySummary, b: &StrategySummary| {
            let rounds = a.curve.len().saturating_sub(1);
            let pairs = a.curve.iter().zip(&b.curve).skip(1);
            let won = pairs.filter(|(a, b)| is_better(&a.dice.values, &b.dice.values));
            won.count() as f64 / rounds.max(1) as f64
        };
        strategies
            .iter()
            .map(|a| strategies.iter().map(|b| wins(a, b)).collect())
            .collect()
    });
    Summary {
        strategies,
        penalty,
        full,
        seeds: seeds.to_vec(),
    }
}

/// Area under points `[x, y]` in order of x, divided by their width; of one point its y.
fn area(points: &[[f64; 2]]) -> f64 {
    let width = match (points.first(), points.last()) {
        (Some(first), Some(last)) if last[0] > first[0] => last[0] - first[0],
        (Some(first), _) => return first[1],
        _ => return 0.0,
    };
    let sum: f64 = points
        .windows(2)
        .map(|pair| (pair[1][0] - pair[0][0]) * (pair[0][1] + pair[1][1]) / 2.0)
        .sum();
    sum / width
}

/// The rate b of `full - a * exp(-b * (x - x0))` by least squares: a search over b, for each of which a follows. None where
/// no rising curve fits.
fn efficiency(points: &[[f64; 2]], full: f64) -> Option<f64> {
    let x0 = points.first()?[0];
    if points.len() < 3 {
        return None;
    }
    let error = |b: f64| {
        let (mut gap_decay, mut decay_decay) = (0.0, 0.0);
        for [x, y] in points {
            let decay = (-b * (x - x0)).exp();
            gap_decay += (full - y) * decay;
            decay_decay += decay * decay;
        }
        let a = gap_decay / decay_decay;
        let residual = |[x, y]: &[f64; 2]| full - y - a * (-b * (x - x0)).exp();
        let sum: f64 = points.iter().map(|point| residual(point).powi(2)).sum();
        (sum, a)
    };
    // From a thousandth to ten per percent, in steps of a hundredth of a decade.
    let rates = (0..=400).map(|n| 10f64.powf(-3.0 + f64::from(n) / 100.0));
    let best = rates.min_by(|a, b| error(*a).0.total_cmp(&error(*b).0))?;
    let inside = (1.1e-3..9.0).contains(&best);
    (inside && error(best).1 > 0.0).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(strategy: &str, seed: u64, round: usize, dice: f64) -> RoundRecord {
        RoundRecord {
            strategy: strategy.to_owned(),
            seed,
            round,
            chosen: Vec::new(),
            cases: 2 + 2 * round,
            voxels: 0,
            foreground_voxels: 10 * (round as u64 + 1),
            test: Vec::new(),
            dice: vec![Some(dice)],
            mean_dice: dice,
            choose_s: 1.0,
            train_s: 2.0,
            test_s: 3.0,
        }
    }

    #[test]
    fn by_hand() {
        let mut records = Vec::new();
        for seed in [1, 2, 3] {
            for round in 0..3 {
                let better = 0.5 + 0.1 * round as f64;
                records.push(record("a", seed, round, better + 0.001 * seed as f64));
                // As good in the first round, worse afterwards, by nearly the same for every seed.
                let behind = if round == 0 {
                    0.0
                } else {
                    0.05 + 0.0001 * seed as f64
                };
                records.push(record(
                    "b",
                    seed,
                    round,
                    better + 0.001 * seed as f64 - behind,
                ));
            }
            records.push(record("full", seed, 0, 0.9));
        }
        let names = ["a".to_owned(), "b".to_owned()];
        let summary = summarise(&names, &[1, 2, 3], &records, 100);
        let a = &summary.strategies[0];
        assert!((a.aubc.mean - 0.602).abs() < 1e-9, "{:?}", a.aubc);
        assert!((a.last.mean - 0.702).abs() < 1e-9);
        // Standard deviation 0.001, three seeds: 4.3027 * 0.001 / sqrt 3.
        let [low, high] = a.last.interval.unwrap();
        assert!((high - low - 2.0 * 0.002_484).abs() < 1e-5);
        assert_eq!(a.curve[2].foreground_percent, 30.0);
        assert_eq!((a.choose_s, a.train_s), (6.0, 12.0));
        let penalty = summary.penalty.unwrap();
        assert_eq!(penalty, [[0.0, 1.0], [0.0, 0.0]]);
        assert!((summary.full.unwrap().mean - 0.9).abs() < 1e-12);
        let rate = |n: usize| {
            summary.strategies[n]
                .foreground_efficiency
                .as_ref()
                .unwrap()
                .mean
        };
        assert!(rate(0) > rate(1), "less labelling for the same Dice");
        let single = summarise(&names, &[1], &records, 100);
        assert_eq!(
            (single.penalty, &single.strategies[0].last.interval),
            (None, &None)
        );
    }

    #[test]
    fn the_rate_of_an_exact_curve_is_found() {
        let points: Vec<[f64; 2]> = [5.0, 10.0, 20.0, 40.0]
            .map(|x: f64| [x, 0.9 - 0.5 * (-0.08 * (x - 5.0)).exp()])
            .to_vec();
        let rate = efficiency(&points, 0.9).unwrap();
        assert!((rate - 0.08).abs() < 0.002, "{rate}");
        let falling: Vec<[f64; 2]> = vec![[5.0, 0.9], [10.0, 0.5], [20.0, 0.3]];
        assert_eq!(efficiency(&falling, 0.9), None);
        assert_eq!(area(&[[2.0, 0.5]]), 0.5);
    }

    #[test]
    fn equal_runs_are_not_better() {
        assert!(!is_better(&[0.5, 0.6], &[0.5, 0.6]));
        assert!(is_better(&[0.6, 0.7], &[0.5, 0.6 - 1e-12]));
        assert!(!is_better(&[0.9, 0.1, 0.9], &[0.1, 0.8, 0.1]));
    }
}
