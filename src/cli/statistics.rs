//! Numbers over cases: quantiles, and confidence intervals by resampling the cases.

use crate::imaging::metrics::mean;
use crate::rng::Rng;

/// Resamples behind an interval.
pub const RESAMPLES: u64 = 2000;
/// Share of the resamples inside of an interval.
pub const LEVEL: f64 = 0.95;

/// The `share` quantile (0 to 1) of values in ascending order, interpolated linearly between neighbours; `None` of none.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at as usize], sorted[(at as usize + 1).min(last)]);
    Some(below + (above - below) * at.fract())
}

/// The defined values in ascending order.
pub fn sorted(values: impl IntoIterator<Item = Option<f64>>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().flatten().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The 95 % interval of a statistic over cases by the percentile bootstrap: cases are drawn with replacement
/// [`RESAMPLES`] times, and `statistic` gets their positions below `cases`. The draws depend on `seed` and `cases` alone, so
/// that intervals over the same cases belong together. `None` below two cases, or where the statistic is never defined.
pub fn interval(
    cases: usize,
    seed: u64,
    statistic: impl Fn(&[usize]) -> Option<f64>,
) -> Option<[f64; 2]> {
    if cases < 2 {
        return None;
    }
    let draws = Rng::new(seed).named("bootstrap");
    let mut drawn = vec![0; cases];
    let found = sorted((0..RESAMPLES).map(|n| {
        let mut rng = draws.stream(n);
        drawn.fill_with(|| rng.below(cases));
        statistic(&drawn)
    }));
    let tail = (1.0 - LEVEL) / 2.0;
    Some([quantile(&found, tail)?, quantile(&found, 1.0 - tail)?])
}

/// [`interval`] of the mean of the defined values, one per case; `None` below two of them.
pub fn interval_of_mean(values: &[Option<f64>], seed: u64) -> Option<[f64; 2]> {
    let defined: Vec<f64> = values.iter().copied().flatten().collect();
    interval(defined.len(), seed, |drawn| {
        mean(drawn.iter().map(|case| Some(defined[*case])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_by_hand() {
        let values = [1.0, 2.0, 4.0];
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 0.5), Some(2.0));
        assert_eq!(quantile(&values, 0.75), Some(3.0));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(sorted([Some(2.0), None, Some(1.0)]), [1.0, 2.0]);
    }

    #[test]
    fn the_interval_is_as_wide_as_the_normal_one_for_many_cases() {
        let mut rng = Rng::new(9);
        let values: Vec<_> = (0..400).map(|_| Some(3.0 + rng.normal())).collect();
        let [low, high] = interval_of_mean(&values, 1).unwrap();
        let centre = mean(values.iter().copied()).unwrap();
        assert!((centre - low - 0.098).abs() < 0.02 && (high - centre - 0.098).abs() < 0.02);
        assert_eq!(interval_of_mean(&values, 1), Some([low, high]));
        assert_ne!(interval_of_mean(&values, 2), Some([low, high]));
    }

    #[test]
    fn one_case_has_no_interval_and_equal_cases_an_empty_one() {
        assert_eq!(interval_of_mean(&[Some(0.5), None], 1), None);
        assert_eq!(
            interval_of_mean(&[Some(0.5), Some(0.5), None], 1),
            Some([0.5, 0.5])
        );
        assert_eq!(interval(3, 1, |_| None), None);
    }
}
