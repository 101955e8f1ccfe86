//! Whether a new version may replace the live one.
//!
//! Both segment the same validation cases, and their Dice is compared case by case (paired), structure by structure. A
//! version is published when its numbers are finite and no structure, nor the mean over them, lost more than its epsilon.
//! Where nothing can be compared, because there is no validation case that the live version has not learned from, the
//! version is published and the record says so: a project of two or three labels could never get better otherwise.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::imaging::metrics::mean;

/// Old and new on one validation case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CasePair {
    /// Image id.
    pub image: String,
    /// Hash of the image.
    pub image_sha256: String,
    /// Hash of the label compared with.
    pub label_sha256: String,
    /// Dice per structure (label value 1 first) of the live version; none where neither label nor proposal has it, or it
    /// was not annotated.
    pub old_dice: Vec<Option<f64>>,
    /// Likewise of the new version.
    pub new_dice: Vec<Option<f64>>,
}

/// Old against new, for one structure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StructureComparison {
    /// Its name.
    pub name: String,
    /// Cases in which both have a Dice.
    pub cases: usize,
    /// Mean over these cases; none when there are none. Likewise below.
    pub old_dice: Option<f64>,
    /// Of the new version.
    pub new_dice: Option<f64>,
    /// New minus old.
    pub difference: Option<f64>,
    /// What it may lose.
    pub epsilon: f64,
    /// Whether it lost no more.
    pub passed: bool,
}

/// Old against new.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Cases compared.
    pub cases: usize,
    /// Mean over structures.
    pub old_dice: Option<f64>,
    /// Of the new version.
    pub new_dice: Option<f64>,
    /// New minus old.
    pub difference: Option<f64>,
    /// What the mean may lose.
    pub epsilon: f64,
    /// Whether the mean lost no more.
    pub passed: bool,
    /// In the order of the labels.
    pub structures: Vec<StructureComparison>,
    /// What all of it comes from.
    pub per_case: Vec<CasePair>,
    /// Validation cases that the live version has learned from.
    pub left_out: Vec<String>,
}

/// What becomes of a new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it goes live.
    pub publish: bool,
    /// Why, in a sentence.
    pub reason: String,
}

/// Compares case by case; `names` are the structures in label order.
pub fn compare(
    names: &[String],
    per_case: Vec<CasePair>,
    left_out: Vec<String>,
    settings: &Settings,
) -> Comparison {
    let at = |dice: &[Option<f64>], index: usize| dice.get(index).copied().flatten();
    let structures: Vec<StructureComparison> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let pairs: Vec<(f64, f64)> = per_case
                .iter()
                .filter_map(|case| at(&case.old_dice, index).zip(at(&case.new_dice, index)))
                .collect();
            let old_dice = mean(pairs.iter().map(|(old, _)| Some(*old)));
            let new_dice = mean(pairs.iter().map(|(_, new)| Some(*new)));
            let difference = mean(pairs.iter().map(|(old, new)| Some(new - old)));
            let epsilon = settings.epsilon_for(name);
            StructureComparison {
                name: name.clone(),
                cases: pairs.len(),
                old_dice,
                new_dice,
                difference,
                epsilon,
                passed: !lost(difference, epsilon),
            }
        })
        .collect();
    let difference = mean(structures.iter().map(|s| s.difference));
    let epsilon = settings.epsilon_mean;
    Comparison {
        cases: per_case.len(),
        old_dice: mean(structures.iter().map(|s| s.old_dice)),
        new_dice: mean(structures.iter().map(|s| s.new_dice)),
        difference,
        epsilon,
        passed: !lost(difference, epsilon),
        structures,
        per_case,
        left_out,
    }
}

/// More than rounding below.
fn lost(difference: Option<f64>, epsilon: f64) -> bool {
    difference.is_some_and(|difference| difference < -epsilon - 1e-9)
}

/// Decides about a new version, beside a live version that was trained or not, and pinned or not. `comparison` is that of
/// the two where they could be compared.
pub fn judge(
    finite: bool,
    live_is_trained: bool,
    live_is_pinned: Option<i64>,
    comparison: Option<&Comparison>,
) -> Verdict {
    let keep = |reason: String| Verdict {
        publish: false,
        reason,
    };
    if !finite {
        return keep("its weights are not all finite numbers".to_owned());
    }
    let found = comparison.filter(|comparison| comparison.difference.is_some());
    let worse: Vec<String> = found
        .iter()
        .flat_map(|comparison| &comparison.structures)
        .filter(|structure| !structure.passed)
        .map(|structure| {
            format!(
                "{} by {:.3} (allowed {:.3})",
                structure.name,
                -structure.difference.unwrap_or_default(),
                structure.epsilon
            )
        })
        .collect();
    if live_is_trained && !worse.is_empty() {
        return keep(format!("worse than the live version: {}", worse.join(", ")));
    }
    if live_is_trained && let Some(comparison) = found.filter(|comparison| !comparison.passed) {
        return keep(format!(
            "worse than the live version: the mean Dice by {:.3} (allowed {:.3})",
            -comparison.difference.unwrap_or_default(),
            comparison.epsilon
        ));
    }
    if let Some(version) = live_is_pinned {
        return keep(format!("version {version} is pinned"));
    }
    let reason = match found {
        Some(comparison) if live_is_trained => format!(
            "not worse than the live version on {} validation cases: mean Dice {:.3} instead of {:.3}",
            comparison.cases,
            comparison.new_dice.unwrap_or_default(),
            comparison.old_dice.unwrap_or_default()
        ),
        _ if !live_is_trained => "the live version was not trained yet".to_owned(),
        _ => "not compared: there is no labelled validation case that the live version has not learned from".to_owned(),
    };
    Verdict {
        publish: true,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["liver".to_owned(), "spleen".to_owned()]
    }

    fn pair(image: &str, old: [Option<f64>; 2], new: [Option<f64>; 2]) -> CasePair {
        CasePair {
            image: image.to_owned(),
            image_sha256: String::new(),
            label_sha256: String::new(),
            old_dice: old.to_vec(),
            new_dice: new.to_vec(),
        }
    }

    fn verdict(pairs: Vec<CasePair>, settings: &Settings) -> Verdict {
        let comparison = compare(&names(), pairs, Vec::new(), settings);
        judge(true, true, None, Some(&comparison))
    }

    #[test]
    fn pairs_count_only_where_both_have_a_value() {
        let pairs = vec![
            pair("a", [Some(0.8), None], [Some(0.9), Some(0.0)]),
            pair("b", [Some(0.6), Some(0.5)], [Some(0.5), None]),
        ];
        let found = compare(&names(), pairs, vec!["c".to_owned()], &Settings::default());
        let liver = &found.structures[0];
        assert_eq!((liver.cases, found.cases), (2, 2));
        assert!((liver.old_dice.unwrap() - 0.7).abs() < 1e-12);
        assert!(liver.difference.unwrap().abs() < 1e-12 && liver.passed);
        let spleen = &found.structures[1];
        assert_eq!(
            (spleen.cases, spleen.difference, spleen.passed),
            (0, None, true)
        );
        assert!(found.passed && found.difference.unwrap().abs() < 1e-12);
    }

    #[test]
    fn a_structure_or_the_mean_that_lost_too_much_keeps_the_live_version() {
        let settings = Settings {
            epsilon_of: [("spleen".to_owned(), 0.3)].into(),
            ..Settings::default()
        };
        let both = |old: f64, new: [f64; 2]| vec![pair("a", [Some(old); 2], new.map(Some))];
        assert!(verdict(both(0.8, [0.9, 0.79]), &settings).publish);
        let liver = verdict(both(0.8, [0.74, 0.9]), &settings);
        assert!(
            !liver.publish && liver.reason.contains("liver by 0.060 (allowed 0.050)"),
            "{liver:?}"
        );
        let mean = verdict(both(0.8, [0.8, 0.6]), &settings);
        assert!(
            !mean.publish && mean.reason.contains("mean Dice by 0.100"),
            "{mean:?}"
        );
        assert!(
            verdict(both(0.8, [0.95, 0.65]), &settings).publish,
            "its epsilon is 0.3"
        );
    }

    #[test]
    fn what_cannot_be_compared_goes_live_unless_it_is_not_finite_or_another_is_pinned() {
        let untrained = judge(true, false, None, None);
        assert!(untrained.publish && untrained.reason.contains("not trained"));
        let first = judge(true, true, None, None);
        assert!(first.publish && first.reason.contains("not compared"));
        assert!(!judge(false, false, None, None).publish);
        let pinned = judge(true, true, Some(3), None);
        assert!(!pinned.publish && pinned.reason == "version 3 is pinned");
    }
}
