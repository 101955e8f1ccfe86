//! What the data suggest: spacing, HU window and patch, for models that start without a past, and what there is to learn
//! from.

use serde::{Deserialize, Serialize};

use crate::imaging::{Geometry, orientation};

use super::manifest::{ClassFrequency, DataSummary, Preprocessing};
use super::pct_net::PctNetConfig;
use super::schema::LabelSchema;
use super::train::{TrainCase, load};

/// HU range for structures of soft tissue and bone; air and dense metal saturate.
const HU_WINDOW: [f32; 2] = [-300.0, 700.0];
/// The window is widened until it holds the labelled voxels but for so many at either end: that dense bone saturates costs
/// nothing, a window without most of what is labelled would.
const TAIL: f64 = 0.25;
/// HU that a CT can hold, the range of the histogram.
const CT_HU: [i32; 2] = [-1024, 3071];
/// The median scan is brought to at most so many voxels along an axis, so that a small network's windows still see
/// whole organs.
const MAX_SIDE: f64 = 192.0;

/// Voxel spacing that scans are resampled to.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// Planned from the scans.
    #[default]
    Plan,
    /// Each scan's own, as published.
    Own,
    /// `[z, y, x]` in millimetres.
    Millimetres([f64; 3]),
}

/// What is given instead of planned.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given {
    /// Voxel spacing.
    pub spacing: Spacing,
    /// HU that become [-1, 1].
    pub hu_window: Option<[f32; 2]>,
    /// Side lengths `[z, y, x]` in voxels.
    pub patch: Option<[usize; 3]>,
}

/// A look at all labelled cases, one in memory at a time. Cases that cannot be used are left out; training names them.
pub struct Survey {
    grids: Vec<Geometry>,
    classes: Vec<ClassFrequency>,
    /// Labelled voxels per HU.
    histogram: Vec<u64>,
}

impl Survey {
    /// Reads every case.
    pub fn of(cases: &[TrainCase], labels: &LabelSchema) -> Self {
        let [lowest, highest] = CT_HU;
        let frequency = |name: &String| ClassFrequency {
            name: name.clone(),
            annotated: 0,
            cases: 0,
            voxels: 0,
        };
        let mut survey = Self {
            grids: Vec::new(),
            classes: labels.names().iter().map(frequency).collect(),
            histogram: vec![0; (highest - lowest) as usize + 1],
        };
        for case in cases {
            let Ok((case, _)) = load(case, labels.class_count()) else {
                continue;
            };
            survey.grids.push(case.scan.geometry);
            let mut counts = vec![0u64; labels.class_count()];
            for (hu, label) in case.scan.voxels.iter().zip(&case.labels.voxels) {
                counts[usize::from(*label)] += 1;
                if *label > 0 {
                    let hu = (hu.round() as i32).clamp(lowest, highest);
                    survey.histogram[(hu - lowest) as usize] += 1;
                }
            }
            for (class, frequency) in survey.classes.iter_mut().enumerate() {
                let voxels = counts[class + 1];
                frequency.annotated += usize::from(case.annotated[class + 1]);
                frequency.cases += usize::from(voxels > 0);
                frequency.voxels += voxels;
            }
        }
        survey
    }

    /// HU below which `share` of the labelled voxels lie.
    fn quantile(&self, share: f64) -> Option<f32> {
        let total: u64 = self.histogram.iter().sum();
        let mut below = 0;
        let bin = self.histogram.iter().position(|count| {
            below += count;
            below as f64 > share * total as f64
        })?;
        Some((CT_HU[0] + bin as i32) as f32)
    }

    /// The spacing that [`Spacing::Plan`] gives, `[z, y, x]`; none without scans.
    pub fn spacing_mm(&self) -> Option<[f64; 3]> {
        plan_spacing(&lps(&self.grids))
    }

    /// Preprocessing and patch for a network that starts without a past.
    pub fn plan(
        &self,
        network: &PctNetConfig,
        given: &Given,
    ) -> (Preprocessing, [usize; 3], DataSummary) {
        let mut reasons = Vec::new();
        let spacing_mm = match given.spacing {
            Spacing::Plan => self.spacing_mm(),
            Spacing::Own => None,
            Spacing::Millimetres(mm) => Some(mm),
        };
        reasons.push(match (given.spacing, spacing_mm) {
            (Spacing::Plan, None) => "spacing: each scan's own, as there is no scan to plan from".to_owned(),
            (_, None) => "spacing: each scan's own, as given".to_owned(),
            (Spacing::Millimetres(_), Some(mm)) => format!("spacing {} mm: as given", list(mm)),
            (_, Some(mm)) => format!(
                "spacing {} mm: the median of {} scans, coarser where the median scan would have more than {MAX_SIDE} voxels",
                list(mm),
                self.grids.len()
            ),
        });
        let (low, high) = (self.quantile(TAIL), self.quantile(1.0 - TAIL));
        let hu_window = given.hu_window.unwrap_or_else(|| {
            let [narrow_low, narrow_high] = HU_WINDOW;
            let outward = |v: f32| (v / 50.0).round() * 50.0;
            [
                narrow_low.min(low.map_or(narrow_low, outward)),
                narrow_high.max(high.map_or(narrow_high, outward)),
            ]
        });
        reasons.push(match given.hu_window {
            Some(window) => format!("HU window {} to {}: as given", window[0], window[1]),
            None => format!(
                "HU window {} to {}: soft tissue and bone ({} to {}), widened to the middle half of the labelled voxels ({} to {})",
                hu_window[0],
                hu_window[1],
                HU_WINDOW[0],
                HU_WINDOW[1],
                low.unwrap_or(HU_WINDOW[0]),
                high.unwrap_or(HU_WINDOW[1]),
            ),
        });
        let preprocessing = Preprocessing {
            spacing_mm,
            hu_window,
        };
        let stride = network.stride();
        let patch = given.patch.unwrap_or_else(|| {
            std::array::from_fn(|axis| {
                let usual = PctNetConfig::SMALL_PATCH[axis];
                let turned = lps(&self.grids);
                let sides = turned.iter().map(|grid| {
                    let mm = grid.spacing_mm()[axis];
                    let side_mm = mm * grid.shape()[axis] as f64;
                    side_mm / spacing_mm.map_or(mm, |planned| planned[axis])
                });
                match median(sides.collect()) {
                    Some(side) => usual.min((side.ceil() as usize).next_multiple_of(stride[axis])),
                    None => usual,
                }
            })
        });
        reasons.push(match given.patch {
            Some(patch) => format!("patch {} voxels: as given", list(patch)),
            None => format!(
                "patch {} voxels: small patches find small structures with few labels; never larger than the median scan",
                list(patch)
            ),
        });
        let summary = self.summary(reasons);
        (preprocessing, patch, summary)
    }

    /// What was found, with the reasons for a plan.
    pub fn summary(&self, reasons: Vec<String>) -> DataSummary {
        DataSummary {
            cases: self.grids.len(),
            classes: self.classes.clone(),
            reasons,
        }
    }
}

fn list<T: ToString>(values: [T; 3]) -> String {
    values.map(|v| v.to_string()).join(" x ")
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn lps(scans: &[Geometry]) -> Vec<Geometry> {
    let turned = scans.iter().map(|scan| *orientation::to_lps(scan).target());
    turned.collect()
}

/// The median over scans in LPS order per axis, coarser where the median scan would have more than 192 voxels along that
/// axis; none without scans.
fn plan_spacing(turned: &[Geometry]) -> Option<[f64; 3]> {
    let mut planned = [0.0; 3];
    for (axis, planned) in planned.iter_mut().enumerate() {
        let spacing = median(turned.iter().map(|g| g.spacing_mm()[axis]).collect())?;
        let extents = turned
            .iter()
            .map(|g| g.spacing_mm()[axis] * g.shape()[axis] as f64);
        let needed = spacing.max(median(extents.collect())? / MAX_SIDE);
        // Two decimals are enough for a grid, and read well in the manifest.
        *planned = (needed * 100.0).round() / 100.0;
    }
    Some(planned)
}

/// Preprocessing from the grids of scans alone, for data without labels. Without scans the images' own spacing is kept.
pub fn plan_preprocessing(scans: &[Geometry]) -> Preprocessing {
    Preprocessing {
        spacing_mm: plan_spacing(&lps(scans)),
        hu_window: HU_WINDOW,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(shape: [usize; 3], spacing: [f64; 3]) -> Geometry {
        let [z, y, x] = spacing;
        Geometry::new(
            shape,
            [0.0; 3],
            [[0.0, 0.0, z], [0.0, y, 0.0], [x, 0.0, 0.0]],
        )
        .unwrap()
    }

    #[test]
    fn the_median_spacing_is_taken() {
        let scans = [
            grid([50, 100, 100], [2.5, 1.0, 1.0]),
            grid([50, 100, 100], [3.0, 1.5, 1.5]),
            grid([50, 100, 100], [5.0, 2.0, 2.0]),
        ];
        assert_eq!(plan_preprocessing(&scans).spacing_mm, Some([3.0, 1.5, 1.5]));
    }

    #[test]
    fn large_scans_become_coarser() {
        let spacing = plan_preprocessing(&[grid([100, 512, 512], [2.0, 0.75, 0.75])]).spacing_mm;
        assert_eq!(spacing, Some([2.0, 2.0, 2.0]));
        assert_eq!(plan_preprocessing(&[]).spacing_mm, None);
    }

    fn survey(hu: &[(i32, u64)]) -> Survey {
        let mut histogram = vec![0; (CT_HU[1] - CT_HU[0]) as usize + 1];
        for (hu, count) in hu {
            histogram[(hu - CT_HU[0]) as usize] = *count;
        }
        Survey {
            grids: vec![grid([10, 100, 20], [3.0, 1.0, 1.0])],
            classes: Vec::new(),
            histogram,
        }
    }

    #[test]
    fn the_window_holds_what_is_labelled_and_patches_fit_the_scans() {
        let network = PctNetConfig::pct_net_s(2, PctNetConfig::SMALL_PATCH, 1);
        let found = survey(&[(-1000, 4), (40, 60), (1210, 36)]);
        let (preprocessing, patch, summary) = found.plan(&network, &Given::default());
        assert_eq!(preprocessing.hu_window, [-300.0, 1200.0]);
        assert_eq!(preprocessing.spacing_mm, Some([3.0, 1.0, 1.0]));
        assert!(patch[1] == 32 && patch[0] <= 16, "{patch:?}");
        network.check_patch(patch).unwrap();
        assert_eq!(summary.reasons.len(), 3);
        let given = Given {
            spacing: Spacing::Own,
            hu_window: Some([-100.0, 200.0]),
            patch: Some([16, 64, 64]),
        };
        let (preprocessing, patch, summary) = found.plan(&network, &given);
        assert_eq!((preprocessing.spacing_mm, patch), (None, [16, 64, 64]));
        assert_eq!(preprocessing.hu_window, [-100.0, 200.0]);
        assert!(
            summary
                .reasons
                .iter()
                .all(|reason| reason.ends_with("as given"))
        );
        assert_eq!(
            survey(&[]).plan(&network, &Given::default()).0.hu_window,
            HU_WINDOW
        );
    }
}
