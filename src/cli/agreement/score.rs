//! Which files are compared, and what is measured in each case.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cli::Usage;
use crate::cli::dataset::{annotated_labels, files};
use crate::imaging::metrics::{Agreement, agreement};
use crate::imaging::{Budget, Volume, read_label};
use crate::model::{LabelSchema, TrainCase};

/// Name of the predictions of `--prediction`.
const FIRST: &str = "prediction";
/// Largest distance between the grids of two maps that are the same.
const GRID_MM: f64 = 0.1;

/// The label maps to compare.
pub struct Files {
    /// Cases that have a reference and every prediction, in order.
    pub cases: Vec<String>,
    /// Cases that lack one of them.
    pub left_out: Vec<String>,
    /// Names of the predictions, the first is `--prediction`.
    pub predictions: Vec<String>,
    reference: HashMap<String, PathBuf>,
    by_prediction: Vec<HashMap<String, PathBuf>>,
}

impl Files {
    /// Finds the files; `compare` are further predictions as `NAME=DIR`.
    pub fn open(reference: &Path, prediction: &Path, compare: &[String]) -> anyhow::Result<Self> {
        let mut predictions = vec![FIRST.to_owned()];
        let mut folders = vec![prediction.to_owned()];
        for entry in compare {
            let (name, folder) = entry
                .split_once('=')
                .filter(|(name, folder)| !name.trim().is_empty() && !folder.is_empty())
                .ok_or_else(|| Usage(format!("--compare {entry}: write it as NAME=DIR")))?;
            let name = name.trim().to_owned();
            if predictions.contains(&name) {
                bail!(Usage(format!(
                    "--compare {entry}: the name {name:?} is taken; give each prediction its own"
                )));
            }
            predictions.push(name);
            folders.push(PathBuf::from(folder));
        }
        let reference_files = files(reference)?;
        let by_prediction: Vec<_> = folders
            .iter()
            .map(|folder| files(folder))
            .collect::<Result<_, _>>()?;
        let all: BTreeSet<&String> = reference_files
            .keys()
            .chain(by_prediction.iter().flat_map(HashMap::keys))
            .collect();
        let (cases, left_out): (Vec<_>, Vec<_>) = all.into_iter().cloned().partition(|name| {
            reference_files.contains_key(name)
                && by_prediction.iter().all(|files| files.contains_key(name))
        });
        if cases.is_empty() {
            let folders: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
            bail!(
                "{} and {} have no file of the same name",
                reference.display(),
                folders.join(", ")
            );
        }
        Ok(Self {
            cases,
            left_out,
            predictions,
            reference: reference_files,
            by_prediction,
        })
    }

    /// Labelled cases, and `NAME.nii.gz` for each in a folder with predictions.
    pub fn of_cases(cases: &[TrainCase], prediction: &Path) -> Self {
        let names = || cases.iter().map(|case| case.name.clone());
        let predicted = |name: String| {
            let path = predicted(prediction, &name);
            (name, path)
        };
        let labels = cases.iter().map(|case| case.label.clone());
        Self {
            cases: names().collect(),
            left_out: Vec::new(),
            predictions: vec![FIRST.to_owned()],
            reference: names().zip(labels).collect(),
            by_prediction: vec![names().map(predicted).collect()],
        }
    }

    /// The reference of a case and its predictions, all on one grid.
    pub fn read(&self, case: &str) -> anyhow::Result<(Volume<u16>, Vec<Volume<u16>>)> {
        let path = |files: &HashMap<String, PathBuf>| {
            let path = files.get(case).cloned();
            path.with_context(|| format!("there is no file of the case {case}"))
        };
        let reference = read(&path(&self.reference)?)?;
        let mut predictions = Vec::with_capacity(self.predictions.len());
        for (name, files) in self.predictions.iter().zip(&self.by_prediction) {
            let prediction = read(&path(files)?)?;
            if !reference.geometry.same_grid(&prediction.geometry, GRID_MM) {
                bail!(
                    "{case}: the grid {:?} (z, y, x) of {name} is not the reference's {:?}, or lies elsewhere; resample it to the reference",
                    prediction.geometry.shape(),
                    reference.geometry.shape()
                );
            }
            predictions.push(prediction);
        }
        Ok((reference, predictions))
    }
}

/// Where [`Files::of_cases`] looks for the prediction of a case.
pub fn predicted(folder: &Path, case: &str) -> PathBuf {
    folder.join(format!("{case}.nii.gz"))
}

fn read(path: &Path) -> anyhow::Result<Volume<u16>> {
    let label = read_label(path, &Budget::default()).with_context(|| path.display().to_string())?;
    let mut layers = label.layers;
    match layers.pop() {
        Some(voxels) if layers.is_empty() => Ok(Volume {
            geometry: label.geometry,
            voxels,
        }),
        _ => bail!(
            "{}: overlapping layers cannot be compared; save it as a plain label map",
            path.display()
        ),
    }
}

/// What the label values mean, and how exact a surface of each has to be.
#[derive(Default)]
pub struct Structures {
    schema: Option<LabelSchema>,
    /// Values that were annotated in a case; all where it is not named.
    annotated: HashMap<String, Vec<u16>>,
    tolerance_mm: f64,
    own_tolerance_mm: BTreeMap<u16, f64>,
}

impl Structures {
    /// Names from a `dataset.json`, tolerances from `MM[,NAME=MM...]`.
    pub fn new(labels: Option<&Path>, tolerances: &str) -> anyhow::Result<Self> {
        let mut structures = Self::default();
        if let Some(path) = labels {
            structures.schema = Some(LabelSchema::from_dataset_json(path)?);
            structures.annotated = annotated_labels(path)?;
        }
        let wrong =
            |part: &str, why: &str| Usage(format!("--tolerance-mm {tolerances}: {part:?} {why}"));
        let number = |part: &str| {
            part.trim()
                .parse::<f64>()
                .ok()
                .filter(|mm| mm.is_finite() && *mm >= 0.0)
                .ok_or_else(|| wrong(part, "is not a distance in mm"))
        };
        let mut general = None;
        for part in tolerances.split(',') {
            match part.split_once('=') {
                None => {
                    if general.replace(number(part)?).is_some() {
                        bail!(wrong(part, "is a second distance without a structure"));
                    }
                }
                Some((name, mm)) => {
                    let value = structures
                        .value_of(name.trim())
                        .ok_or_else(|| wrong(name, "is no structure of these labels"))?;
                    structures.own_tolerance_mm.insert(value, number(mm)?);
                }
            }
        }
        structures.tolerance_mm =
            general.ok_or_else(|| wrong(tolerances, "has no distance for the other structures"))?;
        Ok(structures)
    }

    /// Of labelled cases, all with the same tolerance.
    pub fn of_cases(cases: &[TrainCase], schema: LabelSchema, tolerance_mm: f64) -> Self {
        let annotated = |case: &TrainCase| (case.name.clone(), case.annotated.clone());
        Self {
            schema: Some(schema),
            annotated: cases.iter().map(annotated).collect(),
            tolerance_mm,
            own_tolerance_mm: BTreeMap::new(),
        }
    }

    /// The name of a label value.
    pub fn name(&self, value: u16) -> String {
        let named = self.schema.as_ref().and_then(|schema| {
            let position = usize::from(value).checked_sub(1)?;
            schema.names().get(position).cloned()
        });
        named.unwrap_or_else(|| format!("label_{value}"))
    }

    fn value_of(&self, name: &str) -> Option<u16> {
        match &self.schema {
            Some(schema) => schema.value_of(name),
            None => name.strip_prefix("label_")?.parse().ok(),
        }
    }

    /// Tolerance of the NSD.
    pub fn tolerance_mm(&self, value: u16) -> f64 {
        let own = self.own_tolerance_mm.get(&value);
        own.copied().unwrap_or(self.tolerance_mm)
    }
}

/// Every case of every prediction, measured.
pub struct Evaluation {
    /// What the values mean.
    pub structures: Structures,
    /// The label values measured, in order.
    pub values: Vec<u16>,
    /// What is measured is not what was asked for in some case.
    pub warnings: Vec<String>,
    /// By prediction, then case.
    cases: Vec<Vec<BTreeMap<u16, Agreement>>>,
    /// By case: the values whose reference says nothing.
    not_annotated: Vec<BTreeSet<u16>>,
}

impl Evaluation {
    /// Measures one case after the other.
    ///
    /// # Errors
    /// The first case that cannot be measured.
    pub fn of(files: &Files, structures: Structures) -> anyhow::Result<Self> {
        let mut cases = vec![Vec::new(); files.predictions.len()];
        let (mut warnings, mut not_annotated) = (Vec::new(), Vec::new());
        let mut values: BTreeSet<u16> = structures
            .schema
            .iter()
            .flat_map(|schema| schema.values().into_iter().map(|(value, _)| value))
            .collect();
        for case in &files.cases {
            let (reference, predictions) = files.read(case)?;
            if reference.geometry.is_sheared() {
                warnings.push(format!(
                    "{case}: the voxel axes are not at right angles (sheared or tilted); distances are along the axes and only approximate"
                ));
            }
            let present = present(&reference, &predictions);
            match &structures.schema {
                None => values.extend(&present),
                Some(_) => {
                    let unknown: Vec<_> = present.difference(&values).map(u16::to_string).collect();
                    if !unknown.is_empty() {
                        warnings.push(format!(
                            "{case}: the values {} have no name in the labels and are left out",
                            unknown.join(", ")
                        ));
                    }
                }
            }
            let measured: Vec<(u16, f64)> = present
                .intersection(&values)
                .map(|value| (*value, structures.tolerance_mm(*value)))
                .collect();
            for (scores, prediction) in cases.iter_mut().zip(&predictions) {
                let found = agreement(&reference, prediction, &measured)?;
                let values = measured.iter().map(|(value, _)| *value);
                scores.push(values.zip(found).collect());
            }
            not_annotated.push(match structures.annotated.get(case) {
                Some(known) => values
                    .iter()
                    .filter(|v| !known.contains(v))
                    .copied()
                    .collect(),
                None => BTreeSet::new(),
            });
        }
        Ok(Self {
            structures,
            values: values.into_iter().collect(),
            warnings,
            cases,
            not_annotated,
        })
    }

    /// Number of predictions.
    pub fn prediction_count(&self) -> usize {
        self.cases.len()
    }

    /// Number of cases.
    pub fn case_count(&self) -> usize {
        self.not_annotated.len()
    }

    /// How a structure agrees, by positions of prediction and case; `None` where it was not annotated, so that nothing
    /// is known.
    pub fn agreement(&self, prediction: usize, case: usize, value: u16) -> Option<Agreement> {
        if self.not_annotated[case].contains(&value) {
            return None;
        }
        let found = self.cases[prediction][case].get(&value);
        Some(found.copied().unwrap_or(Agreement::NEITHER))
    }
}

/// Values other than background in any of the maps.
fn present(reference: &Volume<u16>, predictions: &[Volume<u16>]) -> BTreeSet<u16> {
    let mut found = vec![false; usize::from(u16::MAX) + 1];
    for volume in std::iter::once(reference).chain(predictions) {
        for value in &volume.voxels {
            found[usize::from(*value)] = true;
        }
    }
    (1..=u16::MAX)
        .filter(|value| found[usize::from(*value)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_per_structure() {
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("dataset.json");
        std::fs::write(&json, r#"{"labels": {"1": "liver", "2": "spleen"}}"#).unwrap();
        let named = Structures::new(Some(&json), "2.5, spleen=1").unwrap();
        assert_eq!((named.tolerance_mm(1), named.tolerance_mm(2)), (2.5, 1.0));
        assert_eq!(
            (named.name(2), named.name(3)),
            ("spleen".to_owned(), "label_3".to_owned())
        );
        let numbered = Structures::new(None, "label_7=4,1").unwrap();
        assert_eq!(
            (numbered.tolerance_mm(7), numbered.tolerance_mm(1)),
            (4.0, 1.0)
        );
        for wrong in [
            "",
            "-1",
            "x",
            "nan",
            "1,2",
            "liver=1",
            "1,kidney=2",
            "1,liver=x",
        ] {
            let error = Structures::new(Some(&json), wrong).err().unwrap();
            assert!(error.is::<Usage>(), "{wrong}: {error}");
        }
        assert!(Structures::new(None, "1,liver=2").is_err());
    }
}
