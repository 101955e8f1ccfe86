use std::path::Path;

use super::*;
use crate::imaging::phantom::{PhantomOptions, torso};
use crate::imaging::{Geometry, LabelFormat, Volume, write_label, write_scan};
use crate::model::background::Background;
use crate::model::manifest::Preprocessing;
use crate::model::train::data::TrainCase;
use crate::rng::Rng;
use proptest::prelude::*;
use std::ops::ControlFlow;

const CLASSES: usize = 7;

impl Sampler {
    /// Sample number `index`, made by the host.
    fn sample(&self, index: u64) -> io::Result<Sample> {
        self.draw(index).map(|drawn| drawn.make())
    }
}

fn case(
    dir: &Path,
    name: &str,
    scan: &Volume<f32>,
    label: &Volume<u16>,
    annotated: Vec<u16>,
) -> TrainCase {
    let [image, mask] = ["image", "label"].map(|kind| dir.join(format!("{name}.{kind}.nii")));
    write_scan(&image, scan, LabelFormat::Nifti).unwrap();
    write_label(&mask, label, &[], LabelFormat::Nifti).unwrap();
    TrainCase {
        name: name.to_owned(),
        image,
        label: mask,
        annotated,
    }
}

/// Phantoms, of which the second has no annotation of the first organ.
fn phantoms(dir: &Path, count: u64) -> Vec<TrainCase> {
    let options = PhantomOptions {
        shape: Some([14, 30, 33]),
        ..PhantomOptions::small()
    };
    (0..count)
        .map(|seed| {
            let made = torso(seed, &options);
            let first = if seed == 1 { 2 } else { 1 };
            let annotated = (first..CLASSES as u16).collect();
            case(dir, &format!("p{seed}"), &made.scan, &made.label, annotated)
        })
        .collect()
}

fn sampler(dir: &Path, cases: &[TrainCase], augment: Augment, size: [usize; 3]) -> Sampler {
    let preprocessing = Preprocessing {
        spacing_mm: None,
        hu_window: [-300.0, 700.0],
    };
    let folder = dir.join("cases");
    let store = CaseStore::prepare(&folder, cases, CLASSES, &preprocessing, 1, &mut |note| {
        assert!(note.is_none_or(|note| !note.skipped));
        Ok(())
    })
    .unwrap();
    Sampler {
        store,
        size,
        hu_window: preprocessing.hu_window,
        focus: 0.67,
        augment,
        mirror: Some(vec![0, 1, 2, 4, 3, 5, 6]),
        seed: 3,
        on_device: false,
    }
}

#[test]
fn without_augmentation_a_patch_is_a_piece_of_its_case() {
    let dir = tempfile::tempdir().unwrap();
    let cases = phantoms(dir.path(), 1);
    let size = [8, 12, 10];
    let sampler = sampler(dir.path(), &cases, Augment::None, size);
    let (loaded, _) = crate::model::train::data::load(&cases[0], CLASSES).unwrap();
    let shape = loaded.scan.geometry.shape();
    for index in 0..20 {
        let sample = sampler.sample(index).unwrap();
        let rng = Rng::new(3).named("patches").stream(index);
        let (_, centre) = sampler
            .store
            .draw(size, 0.67, &mut rng.named("place"))
            .unwrap();
        let start: [usize; 3] =
            std::array::from_fn(|a| (centre[a] - (size[a] as f64 - 1.0) / 2.0) as usize);
        for (n, (value, label)) in sample.input.iter().zip(&sample.labels).enumerate() {
            let at = [
                n / 120 + start[0],
                n / 10 % 12 + start[1],
                n % 10 + start[2],
            ];
            let at = (at[0] * shape[1] + at[1]) * shape[2] + at[2];
            let hu = loaded.scan.voxels[at].clamp(-300.0, 700.0).round();
            assert!((value - ((hu + 300.0) * 0.002 - 1.0)).abs() < 1e-6);
            assert_eq!(u16::from(*label), loaded.labels.voxels[at]);
        }
    }
}

#[test]
fn a_sample_depends_on_its_number_alone() {
    let dir = tempfile::tempdir().unwrap();
    let cases = phantoms(dir.path(), 2);
    let make = || sampler(dir.path(), &cases, Augment::Full, [8, 16, 16]);
    let alone = make();
    let expected: Vec<Sample> = (0..12).map(|n| alone.sample(n).unwrap()).collect();
    assert!(expected.windows(2).all(|pair| pair[0] != pair[1]));
    drop(alone);
    for (threads, first) in [(1, 0), (3, 0), (2, 5)] {
        let mut pipeline = Background::start(make(), threads, 3, first);
        for wanted in &expected[first as usize..] {
            match pipeline.next(&mut || ControlFlow::Continue(())).unwrap() {
                ControlFlow::Continue(Patch::Made(sample)) => assert!(sample == *wanted),
                ControlFlow::Continue(Patch::Drawn(_)) => panic!("the host makes them"),
                ControlFlow::Break(()) => panic!("nobody stops it"),
            }
        }
        assert!(pipeline.stats().made >= 12 - first);
    }
    assert!(
        !dir.path().join("cases").exists(),
        "the folder goes with the store"
    );
}

#[test]
fn every_class_is_drawn_as_often_and_only_where_it_was_annotated() {
    let dir = tempfile::tempdir().unwrap();
    // Four classes of very different size; the fifth is nowhere. The second case knows only class 2.
    let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let geometry = Geometry::new([1, 1, 4000], [0.0; 3], steps).unwrap();
    let voxels: Vec<u16> = (0..4000)
        .map(|x| match x {
            0..2000 => 1,
            2000..2030 => 2,
            2030..2033 => 3,
            2040 => 4,
            _ => 0,
        })
        .collect();
    let label = Volume::new(geometry, voxels.clone()).unwrap();
    let scan = Volume::new(geometry, (0..4000).map(|v| v as f32 / 10.0).collect()).unwrap();
    let cases = [
        case(dir.path(), "a", &scan, &label, vec![1, 2, 3, 4, 5]),
        case(dir.path(), "b", &scan, &label, vec![2]),
    ];
    let mut noted = Vec::new();
    let store = CaseStore::prepare(
        &dir.path().join("cases"),
        &cases,
        6,
        &Preprocessing::default(),
        1,
        &mut |note| {
            noted.extend(note);
            Ok(())
        },
    )
    .unwrap();
    assert!(noted.len() == 1 && !noted[0].skipped, "{noted:?}");
    assert!(noted[0].reason.contains("1, 3, 4"), "{noted:?}");
    let (mut drawn, rounds) = ([[0; 5]; 2], 4000);
    for index in 0..rounds {
        // A patch of one voxel lies on the voxel that was drawn.
        let (case, centre) = store.draw([1, 1, 1], 1.0, &mut Rng::new(index)).unwrap();
        drawn[case][usize::from(voxels[centre[2] as usize])] += 1;
    }
    let [a, b] = drawn;
    assert_eq!((a[0], b[0], b[1], b[3], b[4]), (0, 0, 0, 0, 0));
    for count in [a[1], a[2] + b[2], a[3], a[4]] {
        assert!((900..1100).contains(&count), "{drawn:?}");
    }
    assert!((400..600).contains(&b[2]), "{drawn:?}");
    // Without focus patches lie anywhere.
    let anywhere = (0..1000).filter(|n| {
        let (_, centre) = store.draw([1, 1, 1], 0.0, &mut Rng::new(*n)).unwrap();
        voxels[centre[2] as usize] == 0
    });
    assert!((400..600).contains(&anywhere.count()));
}

#[test]
fn mirrored_samples_exchange_the_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let cases = phantoms(dir.path(), 1);
    let mut sampler = sampler(dir.path(), &cases, Augment::None, [8, 16, 16]);
    // The plain patch of the same number, so that what differs is the exchange alone.
    let plain: Vec<Sample> = (0..30).map(|n| sampler.sample(n).unwrap()).collect();
    sampler.augment = Augment::Light;
    let mirror = sampler.mirror.clone().unwrap();
    let mut exchanged = 0;
    for (n, plain) in plain.iter().enumerate() {
        let rng = Rng::new(3).named("patches").stream(n as u64);
        let (mut input, mut labels) = (plain.input.clone(), plain.labels.clone());
        if let Some(table) = Augment::Light.exchanged(Some(&mirror), &rng) {
            exchange(&mut input, &mut labels, 16, table);
            exchanged += 1;
            for (row, old) in labels.chunks(16).zip(plain.labels.chunks(16)) {
                for (label, old) in row.iter().zip(old.iter().rev()) {
                    assert_eq!(*label, mirror[usize::from(*old)]);
                }
            }
            for (row, old) in input.chunks(16).zip(plain.input.chunks(16)) {
                assert!(row.iter().eq(old.iter().rev()));
            }
        }
    }
    assert!((5..25).contains(&exchanged), "{exchanged}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn augmented_patches_hold_values_of_their_case(seed in any::<u64>()) {
        let dir = tempfile::tempdir().unwrap();
        let cases = phantoms(dir.path(), 2);
        let mut sampler = sampler(dir.path(), &cases, Augment::Full, [8, 16, 16]);
        sampler.seed = seed;
        for index in 0..4 {
            let sample = sampler.sample(index).unwrap();
            prop_assert_eq!((sample.input.len(), sample.labels.len()), (2048, 2048));
            prop_assert!(sample.labels.iter().all(|label| usize::from(*label) < CLASSES));
            prop_assert!(sample.input.iter().all(|v| v.is_finite() && v.abs() < 2.0));
        }
    }
}

#[test]
fn a_turned_patch_shows_the_same_structure_with_its_label() {
    // A bright ball with its label: wherever a patch shows brightness, the label says so too.
    let dir = tempfile::tempdir().unwrap();
    let side = 24;
    let steps = [[0.0, 0.0, 3.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    let geometry = Geometry::new([side; 3], [0.0; 3], steps).unwrap();
    let ball: Vec<bool> = (0..side * side * side)
        .map(|n| {
            let offset = [n / side / side, n / side % side, n % side].map(|v| v as f64 - 11.5);
            9.0 * offset[0] * offset[0] + offset[1] * offset[1] + offset[2] * offset[2] < 81.0
        })
        .collect();
    let scan = Volume::new(
        geometry,
        ball.iter()
            .map(|&b| f32::from(u8::from(b)) * 400.0)
            .collect(),
    )
    .unwrap();
    let label = Volume::new(geometry, ball.iter().map(|&b| u16::from(b)).collect()).unwrap();
    let cases = [case(dir.path(), "ball", &scan, &label, vec![1])];
    let mut sampler = sampler(dir.path(), &cases, Augment::Full, [8, 20, 20]);
    (sampler.focus, sampler.mirror) = (1.0, None);
    let store = &sampler.store;
    for index in 0..20 {
        let rng = Rng::new(index);
        let (number, centre) = store
            .draw(sampler.size, 1.0, &mut rng.named("place"))
            .unwrap();
        let case = &store.cases()[number];
        let spatial = Augment::Full.spatial(sampler.size, case.spacing_mm, &rng);
        let drawn = Drawn {
            case: number,
            annotated: case.annotated.clone(),
            region: case.region(spatial.bounds(centre)).unwrap(),
            spatial,
            centre,
            size: sampler.size,
            hu_window: sampler.hu_window,
            changes: ValueChanges::default(),
            mirror: None,
        };
        let (input, labels) = drawn.interpolate();
        for (value, label) in input.iter().zip(labels) {
            let hu = (value + 1.0) * 500.0 - 300.0;
            // Half of the brightness is half of the votes; outside of the case both are nothing.
            if (hu - 200.0).abs() > 1.0 && hu >= -1.0 {
                assert_eq!(label == 1, hu > 200.0, "{hu}");
            }
        }
    }
}

/// The same drawing, made by a GPU.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
#[test]
fn gpu_patches_are_those_of_the_host() {
    use crate::model::kernels::{Gpu, Kernels, gpu_found, wrap};
    use crate::model::weights::to_f32;

    if !gpu_found() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cases = phantoms(dir.path(), 2);
    // Sides that no word and no group of units divides.
    let sampler = sampler(dir.path(), &cases, Augment::Full, [7, 18, 21]);
    let (mut kinds, mut others, mut voxels) = ([0; 8], 0, 0);
    for index in 0..40 {
        let drawn = sampler.draw(index).unwrap();
        let changes = &drawn.changes;
        let there = [
            drawn.spatial.bend().is_some(),
            changes.gamma.is_some(),
            changes.contrast.is_some(),
            changes.brightness.is_some(),
            changes.low_resolution.is_some(),
            changes.blur.is_some(),
            changes.noise.is_some(),
            drawn.mirror.is_some(),
        ];
        for (kind, there) in kinds.iter_mut().zip(there) {
            *kind += usize::from(there);
        }
        let host = drawn.make();
        let maker = Gpu::patch_maker().unwrap();
        let (values, labels) = (maker.make)(&drawn.into_job(), &Default::default());
        let values = to_f32(wrap::<Gpu, 3>(values).into_data());
        assert_eq!(
            (values.len(), labels.len()),
            (host.input.len(), host.labels.len())
        );
        for (a, b) in values.iter().zip(&host.input) {
            assert!((a - b).abs() <= 1e-3, "patch {index}: {a} and {b}");
        }
        // Where two labels have the same share, rounding decides.
        others += labels
            .iter()
            .zip(&host.labels)
            .filter(|(a, b)| a != b)
            .count();
        voxels += labels.len();
    }
    assert!(kinds.iter().all(|&count| count > 2), "{kinds:?}");
    assert!(others * 1000 <= voxels, "{others} labels of {voxels}");
}

#[test]
fn a_mirrored_patch_is_annotated_as_the_other_side() {
    let dir = tempfile::tempdir().unwrap();
    let made = torso(
        5,
        &PhantomOptions {
            shape: Some([14, 30, 33]),
            ..PhantomOptions::small()
        },
    );
    // One kidney (4) was drawn, the other (3) is there but nobody drew it.
    let mut label = made.label;
    label
        .voxels
        .iter_mut()
        .filter(|v| **v == 3)
        .for_each(|v| *v = 0);
    let drawn = vec![1, 2, 4, 5, 6];
    let cases = [case(dir.path(), "one", &made.scan, &label, drawn)];
    let sampler = sampler(dir.path(), &cases, Augment::Light, [8, 16, 16]);
    let mut kidneys = [0; 2];
    for index in 0..60 {
        let patch = Patch::Drawn(Box::new(sampler.draw(index).unwrap()));
        let sample = sampler.sample(index).unwrap();
        assert_eq!(patch.annotated(), sample.annotated, "made by a device");
        let mirrored = sample.annotated[3];
        let mut expected = vec![true; CLASSES];
        expected[if mirrored { 4 } else { 3 }] = false;
        assert_eq!(sample.annotated, expected);
        // What was drawn counts on either side.
        let known = |class: &u8| sample.annotated[usize::from(*class)];
        assert!(sample.labels.iter().all(known));
        let kidney = |class: &u8| (3..=4).contains(class);
        kidneys[usize::from(mirrored)] += sample.labels.iter().filter(|c| kidney(c)).count();
    }
    assert!(kidneys.iter().all(|voxels| *voxels > 0), "{kidneys:?}");
}
