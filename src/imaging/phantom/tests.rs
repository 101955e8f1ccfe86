use super::*;
use crate::imaging::orientation;

fn statistics(case: &PhantomCase, value: u16) -> (usize, f64, f64) {
    let values: Vec<f64> = case
        .scan
        .voxels
        .iter()
        .zip(&case.label.voxels)
        .filter(|(_, l)| **l == value)
        .map(|(v, _)| f64::from(*v))
        .collect();
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let square =
        values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len().max(1) as f64;
    (values.len(), mean, square.sqrt())
}

#[test]
fn a_seed_is_one_case() {
    let options = PhantomOptions {
        shape: Some([24, 32, 32]),
        ..PhantomOptions::default()
    };
    assert_eq!(torso(3, &options), torso(3, &options));
    assert_ne!(torso(3, &options), torso(4, &options));
    let least = torso(
        1,
        &PhantomOptions {
            shape: Some([0, 4, 4]),
            ..options
        },
    );
    assert_eq!(least.scan.voxels.len(), least.scan.geometry.voxel_count());
}

#[test]
fn every_organ_is_in_every_case_and_in_its_place() {
    for seed in 0..8 {
        let case = torso(seed, &PhantomOptions::small());
        assert_eq!(case.label.geometry, case.scan.geometry);
        assert!(case.scan.voxels.iter().all(|v| v.is_finite()));
        let mut centres = vec![[0.0; 3]; ORGANS.len() + 1];
        let [_, ny, nx] = case.label.geometry.shape();
        for (n, &value) in case.label.voxels.iter().enumerate() {
            let world = case.label.geometry.to_world([
                (n / (ny * nx)) as f64,
                (n / nx % ny) as f64,
                (n % nx) as f64,
            ]);
            for w in 0..3 {
                centres[usize::from(value)][w] += world[w];
            }
        }
        for (n, name) in ORGANS.iter().enumerate() {
            let (count, ..) = statistics(&case, n as u16 + 1);
            assert!(count > 250, "seed {seed}: {name} has {count} voxels");
            centres[n + 1] = centres[n + 1].map(|sum| sum / count as f64);
        }
        let x = |organ: usize| centres[organ + 1][0];
        assert!(
            x(0) < 0.0 && x(2) < 0.0,
            "seed {seed}: liver and right kidney lie on the patient's right"
        );
        assert!(
            x(1) > 0.0 && x(3) > 0.0,
            "seed {seed}: spleen and left kidney lie on the patient's left"
        );
        assert!(
            centres[6][1] > centres[5][1],
            "seed {seed}: the vertebrae lie behind the aorta"
        );
    }
}

#[test]
fn organs_overlap_in_hounsfield_units() {
    // A threshold that separated liver and spleen would need their means further apart than this.
    let mut overlapping = 0;
    for seed in 0..8 {
        let case = torso(seed, &PhantomOptions::small());
        let ((_, liver, spread), (_, spleen, _), (_, body, _)) = (
            statistics(&case, 1),
            statistics(&case, 2),
            statistics(&case, 0),
        );
        assert!(
            (0.0..250.0).contains(&liver) && body < -100.0,
            "seed {seed}: liver {liver}, rest {body}"
        );
        if (liver - spleen).abs() < 2.0 * spread {
            overlapping += 1;
        }
    }
    assert!(overlapping >= 6, "{overlapping} of 8");
}

#[test]
fn stored_orders_differ_and_lead_back() {
    let options = PhantomOptions {
        shape: Some([20, 24, 28]),
        ..PhantomOptions::default()
    };
    let mut shapes = std::collections::HashSet::new();
    for seed in 0..12 {
        let case = torso(seed, &options);
        shapes.insert(case.scan.geometry.shape());
        let turn = orientation::to_lps(&case.scan.geometry);
        assert_eq!(turn.apply(&case.scan).geometry.shape(), [20, 24, 28]);
    }
    assert!(shapes.len() > 3, "{shapes:?}");
}
