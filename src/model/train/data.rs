//! Labelled cases as they come from the disk.

use std::path::PathBuf;

use crate::imaging::{Budget, Volume, read_label, read_scan};

/// A labelled scan on disk.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct TrainCase {
    /// Name for messages.
    pub name: String,
    /// The scan.
    pub image: PathBuf,
    /// Its label map, values of the schema, on the scan's grid.
    pub label: PathBuf,
    /// Label values that were annotated; the others are unknown in this case.
    pub annotated: Vec<u16>,
}

/// What there is to say about a case.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CaseNote {
    /// Name of the case.
    pub case: String,
    /// Whether nothing is learned from it.
    pub skipped: bool,
    /// Why, or what was assumed.
    pub reason: String,
}

/// A scan with its label on their own grid.
#[derive(Debug)]
pub struct LoadedCase {
    /// Name for messages.
    pub name: String,
    /// HU.
    pub scan: Volume<f32>,
    /// Schema values.
    pub labels: Volume<u16>,
    /// Per class (background first) whether it was annotated.
    pub annotated: Vec<bool>,
}

impl std::fmt::Display for CaseNote {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let what = if self.skipped { "skipped" } else { "note on" };
        write!(f, "{what} case {}: {}", self.case, self.reason)
    }
}

/// Reads a scan and its label, with what was assumed or repaired.
///
/// # Errors
/// What makes the case useless: an unreadable file, two grids, values outside of the schema of `classes` classes, a scan of
/// one value, no voxel of any annotated structure.
pub fn load(case: &TrainCase, classes: usize) -> Result<(LoadedCase, Option<CaseNote>), CaseNote> {
    let note = |skipped, reason| CaseNote {
        case: case.name.clone(),
        skipped,
        reason,
    };
    let (loaded, warnings) = read(case, classes).map_err(|reason| note(true, reason))?;
    let remark = (!warnings.is_empty()).then(|| note(false, warnings.join("; ")));
    Ok((loaded, remark))
}

fn read(case: &TrainCase, classes: usize) -> Result<(LoadedCase, Vec<String>), String> {
    let budget = Budget::default();
    let scan = read_scan(&case.image, &budget).map_err(|e| format!("image: {e}"))?;
    let mut warnings = scan.warnings;
    let scan = scan.volume;
    let label = read_label(&case.label, &budget).map_err(|e| format!("label: {e}"))?;
    let tolerance_mm = 0.01 * scan.geometry.spacing_mm().into_iter().fold(1.0, f64::max);
    if !scan.geometry.same_grid(&label.geometry, tolerance_mm) {
        return Err(format!(
            "the label's grid {:?} (z, y, x) is not the image's {:?}, or lies elsewhere; export it with the image as reference",
            label.geometry.shape(),
            scan.geometry.shape()
        ));
    }
    let [labels] = <[Vec<u16>; 1]>::try_from(label.layers)
        .map_err(|layers| format!("the label has {} layers; training needs one", layers.len()))?;
    if let Some(value) = labels.iter().find(|&&v| usize::from(v) >= classes) {
        return Err(format!(
            "label value {value} is not in the schema of {} structures",
            classes - 1
        ));
    }
    if scan.voxels.windows(2).all(|pair| pair[0] == pair[1]) {
        return Err("image: every voxel has the same value".to_owned());
    }
    let annotated: Vec<bool> = (0..classes as u16)
        .map(|c| c == 0 || case.annotated.contains(&c))
        .collect();
    let mut there = vec![false; classes];
    labels.iter().for_each(|v| there[usize::from(*v)] = true);
    if !(1..classes).any(|class| annotated[class] && there[class]) {
        let reason = "the label is empty: no voxel of a structure that was annotated; finish it or leave the case out";
        return Err(reason.to_owned());
    }
    let undeclared: Vec<String> = (1..classes)
        .filter(|&class| there[class] && !annotated[class])
        .map(|class| class.to_string())
        .collect();
    if !undeclared.is_empty() {
        warnings.push(format!(
            "label values {} are there but not declared as annotated: these structures are taken as unknown in this case",
            undeclared.join(", ")
        ));
    }
    let labels = Volume {
        geometry: scan.geometry,
        voxels: labels,
    };
    let loaded = LoadedCase {
        name: case.name.clone(),
        scan,
        labels,
        annotated,
    };
    Ok((loaded, warnings))
}
