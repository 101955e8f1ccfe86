//! A first guess at preprocessing from the scans themselves, for models that start without a past.

use crate::imaging::{Geometry, orientation};

use super::manifest::Preprocessing;

/// HU range for structures of soft tissue and bone; air and dense metal saturate.
const HU_WINDOW: [f32; 2] = [-300.0, 700.0];
/// The median scan is brought to at most so many voxels along an axis, so that a small network's windows still see
/// whole organs.
const MAX_SIDE: f64 = 192.0;

/// Spacing: the median over the scans per axis (after turning to LPS order), coarser where the median scan would have
/// more than 192 voxels along that axis. Without scans the images' own spacing is kept.
pub fn plan_preprocessing(scans: &[Geometry]) -> Preprocessing {
    let turned: Vec<Geometry> = scans
        .iter()
        .map(|scan| *orientation::to_lps(scan).target())
        .collect();
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let spacing_mm = (!turned.is_empty()).then(|| {
        [0, 1, 2].map(|axis| {
            let spacing = median(turned.iter().map(|g| g.spacing_mm()[axis]).collect());
            let extent = turned
                .iter()
                .map(|g| g.spacing_mm()[axis] * g.shape()[axis] as f64);
            let needed = spacing.max(median(extent.collect()) / MAX_SIDE);
            // Two decimals are enough for a grid, and read well in the manifest.
            (needed * 100.0).round() / 100.0
        })
    });
    Preprocessing {
        spacing_mm,
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
}
