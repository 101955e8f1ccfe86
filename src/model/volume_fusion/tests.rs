use super::*;
use crate::imaging::{Geometry, Volume};
use crate::rng::Rng;
use proptest::prelude::*;

fn volume(shape: [usize; 3], voxels: Vec<f32>) -> Volume<f32> {
    let steps = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    Volume::new(Geometry::new(shape, [0.0; 3], steps).unwrap(), voxels).unwrap()
}

fn noise(shape: [usize; 3], seed: u64) -> Volume<f32> {
    let mut rng = Rng::new(seed);
    let count = shape.iter().product();
    volume(
        shape,
        (0..count).map(|_| rng.range(-1.0, 1.0) as f32).collect(),
    )
}

fn generator(scheme: Scheme, patch: [usize; 3], seed: u64) -> Generator {
    let options = FusionOptions {
        scheme,
        classes: 5,
        patch,
    };
    Generator::new(options, seed)
}

fn sample(generator: &Generator, a: &Volume<f32>, b: &Volume<f32>, index: u64) -> Sample {
    generator.fuse(
        index,
        generator.foreground(a, index),
        generator.background(b, index),
    )
}

const SCHEMES: [Scheme; 2] = [Scheme::Blocks, Scheme::Boxes];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_sample_is_a_blend_of_its_patches(
        seed: u64, index: u64, boxes: bool,
        shape in prop::array::uniform3(1..30usize), patch in prop::array::uniform3(1..20usize),
    ) {
        let generator = generator(SCHEMES[usize::from(boxes)], patch, seed);
        let (a, b) = (noise(shape, seed ^ 1), noise(shape, seed ^ 2));
        let made = sample(&generator, &a, &b, index);
        prop_assert_eq!(made.input.len(), patch.iter().product::<usize>());
        prop_assert_eq!(&made, &sample(&generator, &a, &b, index));
        let inverted = intensity::draw_inversion(&mut generator.rng.stream(index).named("inversion"));
        let sign = if inverted { -1.0 } else { 1.0 };
        let as_input = |v: f32| sign * (2.0 * v - 1.0);
        let (p1, p2) = (generator.foreground(&a, index), generator.background(&b, index));
        for (n, (&x, &class)) in made.input.iter().zip(&made.label).enumerate() {
            let (p1, p2) = (as_input(p1[n]), as_input(p2[n]));
            match class {
                0 => prop_assert_eq!(x, p2),
                4 => prop_assert_eq!(x, p1),
                k => {
                    let weight = f32::from(k) / 4.0;
                    prop_assert!((x - (weight * p1 + (1.0 - weight) * p2)).abs() < 1e-6);
                }
            }
            prop_assert!((-1.0..=1.0).contains(&x));
        }
    }

    #[test]
    fn degenerate_scans_give_finite_samples(
        seed: u64, boxes: bool, shape in prop::array::uniform3(1..9usize),
        fill in prop::sample::select(vec![-1.0, 0.3, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        stray in prop::sample::select(vec![-1.0, 1.0, f32::NAN, 1e30]),
    ) {
        let mut voxels = vec![fill; shape.iter().product()];
        voxels[seed as usize % shape.iter().product::<usize>()] = stray;
        let scan = volume(shape, voxels);
        let generator = generator(SCHEMES[usize::from(boxes)], [8, 12, 16], seed);
        let made = sample(&generator, &scan, &scan, 3);
        prop_assert!(made.input.iter().all(|v| (-1.0..=1.0).contains(v)));
    }
}

/// Kolmogorov and Smirnov: the share of values below any point is that of the uniform distribution, within what one in a
/// thousand samples exceeds.
#[track_caller]
pub(super) fn assert_uniform(mut values: Vec<f64>, [low, high]: [f64; 2]) {
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    for (n, value) in values.iter().enumerate() {
        assert!((low..=high).contains(value), "{value}");
        let (expected, found) = ((value - low) / (high - low), (n as f64 + 0.5) / count);
        let bound = 1.95 / count.sqrt();
        assert!(
            (expected - found).abs() < bound,
            "{found} of them are below {value}"
        );
    }
}

/// Whole numbers from `low` to `high` come as often, within five standard deviations of a count.
#[track_caller]
pub(super) fn assert_even(values: &[usize], [low, high]: [usize; 2]) {
    let mut counts = vec![0usize; high - low + 1];
    for value in values {
        counts[value - low] += 1;
    }
    let expected = values.len() as f64 / counts.len() as f64;
    for (n, count) in counts.iter().enumerate() {
        let away = (*count as f64 - expected).abs();
        assert!(
            away < 5.0 * expected.sqrt(),
            "{}: {count} times, expected {expected}",
            low + n
        );
    }
}

#[test]
fn samples_depend_on_seed_and_index_alone() {
    let scan = noise([20, 30, 30], 1);
    let make = |seed, index| {
        sample(
            &generator(Scheme::Blocks, [8, 16, 16], seed),
            &scan,
            &scan,
            index,
        )
    };
    assert_eq!(make(1, 5), make(1, 5));
    assert_ne!(make(1, 5), make(1, 6));
    assert_ne!(make(1, 5), make(2, 5));
}

#[test]
fn one_pair_in_four_is_inverted_and_both_patches_together() {
    let generator = generator(Scheme::Blocks, [4, 4, 4], 9);
    let mut inverted = 0;
    for index in 0..4000 {
        // Patches of one known value each: 1 and 0.75.
        let made = generator.fuse(index, vec![1.0; 64], vec![0.75; 64]);
        let background = made.input[made.label.iter().position(|c| *c == 0).unwrap()];
        assert!(background == 0.5 || background == -0.5);
        if let Some(at) = made.label.iter().position(|c| *c == 4) {
            assert_eq!(made.input[at], 2.0 * background, "one draw for the pair");
        }
        inverted += usize::from(background < 0.0);
    }
    assert!((920..1080).contains(&inverted), "{inverted}");
}

#[test]
fn patches_are_flipped_along_each_axis_half_of_the_time() {
    let side = 12;
    for axis in 0..3 {
        let ramp = (0..side * side * side).map(|n| {
            let place = [n / (side * side), n / side % side, n % side];
            place[axis] as f32 / side as f32 * 2.0 - 1.0
        });
        let scan = volume([side; 3], ramp.collect());
        let generator = generator(Scheme::Blocks, [8; 3], axis as u64);
        let (mut flips, mut together) = (0, 0);
        for index in 0..1000 {
            let (a, b) = (
                generator.foreground(&scan, index),
                generator.background(&scan, index),
            );
            let [flipped_a, flipped_b] = [a, b].map(|patch| patch[0] > patch[511]);
            flips += usize::from(flipped_a);
            together += usize::from(flipped_a == flipped_b);
        }
        assert!((430..570).contains(&flips), "axis {axis}: {flips}");
        assert!(
            (430..570).contains(&together),
            "the patches flip apart: {together}"
        );
    }
}

#[test]
fn cuts_cover_the_whole_scan_and_the_whole_range_of_sizes() {
    // A ramp along x shows where a cut began and ended, whatever the contrast does to it.
    let (side, out) = (200usize, 20usize);
    let ramp = (0..side)
        .map(|x| x as f32 / side as f32 * 2.0 - 1.0)
        .collect();
    let scan = volume([1, 1, side], ramp);
    let (mut least, mut most, mut first, mut last) = (side as f32, 0f32, side as f32, 0f32);
    for seed in 0..3000 {
        let place = crop::draw(scan.geometry.shape(), [1, 1, out], &mut Rng::new(seed));
        let patch = crop::cut(&scan, &place);
        let at = |v: f32| (v + 1.0) / 2.0 * side as f32;
        let (a, b) = (
            at(patch[0]).min(at(patch[out - 1])),
            at(patch[0]).max(at(patch[out - 1])),
        );
        let length = (b - a).round() + 1.0;
        (least, most) = (least.min(length), most.max(length));
        (first, last) = (first.min(a), last.max(b));
    }
    assert_eq!((least, most), (14.0, 29.0), "0.7 to 1.5 times the patch");
    assert!(first < 0.5 && last > side as f32 - 1.5, "{first} {last}");
}

/// The same drawing, made by a GPU.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
#[test]
fn gpu_fusion_is_that_of_the_host() {
    use crate::model::kernels::{Gpu, Kernels, gpu_found, wrap};
    use crate::model::weights::to_f32;

    if !gpu_found() {
        return;
    }
    let maker = Gpu::patch_maker().unwrap();
    for scheme in SCHEMES {
        let generator = generator(scheme, [7, 12, 13], 5);
        let (a, mut b) = (noise([15, 14, 20], 1), noise([6, 30, 9], 2));
        // Mostly air: percentiles coincide; and what is not a number.
        b.voxels.iter_mut().step_by(3).for_each(|v| *v = -1.0);
        b.voxels[100] = f32::NAN;
        let air = volume([9, 9, 9], vec![-1.0; 729]);
        for (index, (p1, p2)) in [(&a, &b), (&b, &a), (&a, &air), (&air, &b)]
            .iter()
            .enumerate()
        {
            let index = index as u64;
            let host = sample(&generator, p1, p2, index);
            let pieces = [(p1, true), (p2, false)]
                .map(|(scan, foreground)| generator.piece(scan, index, foreground, true));
            let [first, second] = pieces;
            let Some(Fused::Drawn(job)) = generator.join(index, first, second) else {
                panic!("it is drawn");
            };
            assert_eq!(job.classes, host.label);
            let input = (maker.fuse)(&job, &Default::default());
            let input = to_f32(wrap::<Gpu, 3>(input).into_data());
            for (n, (a, b)) in input.iter().zip(&host.input).enumerate() {
                assert!(
                    (a - b).abs() < 1e-4,
                    "{scheme:?} {index}: {a} and {b} at {n}"
                );
            }
        }
    }
}
