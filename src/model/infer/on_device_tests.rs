//! Whole scans on a GPU (or a Vulkan device that computes on the CPU) against the host.

use super::*;
use crate::imaging::{Geometry, Volume};
use crate::model::clicks::{Click, ClickGuidance};
use crate::model::engine::DeviceChoice;
use crate::model::infer::{Network, OpenScan, ready, segment};
use crate::model::kernels::{Gpu, gpu_found};
use crate::model::manifest::{Lineage, ModelDescription, Preprocessing};
use crate::model::pct_net::PctNet;
use crate::model::precision::PrecisionChoice;
use crate::model::schema::LabelSchema;
use crate::model::weights::{export, import, to_f32};
use crate::rng::Rng;
use burn_flex::Flex;

const CHOICE: DeviceChoice = if cfg!(feature = "vulkan") {
    DeviceChoice::Vulkan(None)
} else {
    DeviceChoice::Cuda(0)
};
const PATCH: [usize; 3] = PctNetConfig::SMALL_PATCH;

/// `with_clicks`: of a model that takes clicks.
fn model(names: &str, with_clicks: bool) -> ModelDescription {
    let labels = LabelSchema::from_list(names).unwrap();
    let channels = ClickGuidance::channels(labels.class_count());
    let small = PctNetConfig::pct_net_s(labels.class_count(), PATCH, 1);
    ModelDescription {
        name: "test".into(),
        network: PctNetConfig {
            feature_chns: [4, 8, 16, 16, 16],
            num_heads: [2, 2, 2],
            in_chns: if with_clicks { channels } else { 1 },
            ..small
        },
        labels,
        preprocessing: Preprocessing {
            spacing_mm: Some([2.0, 1.5, 1.5]),
            hu_window: [-500.0, 500.0],
        },
        patch: PATCH,
        clicks: with_clicks.then(ClickGuidance::default),
        trained: true,
        lineage: Lineage::made_by("test"),
    }
}

/// The same weights on the CPU and on the GPU. A new network would say one class everywhere: the biases of its last layer
/// are set so that none is ahead.
fn networks(model: &ModelDescription, precision: Precision) -> (Network, Network) {
    let (config, mode) = (&model.network, model.network.resolution_mode);
    let on_cpu = |net| {
        let f32 = PrecisionChoice::Fixed(Precision::F32);
        ready(Engine::Cpu, net, config, PATCH, f32, Default::default()).unwrap()
    };
    let new = || PctNet::<Flex>::new(config, 5, &Default::default()).unwrap();
    let mut state = export(&new(), mode);
    let voxels = PATCH.iter().product::<usize>();
    let rng = Rng::new(8);
    let mut noise: Vec<f32> = (0..voxels as u64)
        .map(|i| rng.normal_at(i / 7) as f32 * 0.4)
        .collect();
    noise.resize(config.in_chns * voxels, 0.0);
    let logits = on_cpu(new()).by_windows().logits(noise);
    let (_, bias) = state
        .iter_mut()
        .find(|(name, _)| name.ends_with(".out_conv0.conv.2.bias"))
        .unwrap();
    assert_eq!(bias.values.len(), config.class_num);
    for (bias, logits) in bias.values.iter_mut().zip(logits.chunks_exact(voxels)) {
        *bias -= logits.iter().sum::<f32>() / voxels as f32;
    }
    let engine = Engine::open(CHOICE).unwrap();
    let device = burn::tensor::ops::Device::<Gpu>::default();
    let (gpu, report) = import(
        PctNet::<Gpu>::new(config, 6, &device).unwrap(),
        &state,
        mode,
    );
    assert!(report.missing.is_empty());
    let choice = PrecisionChoice::Fixed(precision);
    let gpu = ready(engine, gpu, config, PATCH, choice, device).unwrap();
    (on_cpu(import(new(), &state, mode).0), gpu)
}

/// Noise between two slabs of air.
fn scan() -> Volume<f32> {
    let shape = [36, 26, 50];
    let rng = Rng::new(3);
    let voxels = (0..shape.iter().product::<usize>() as u64)
        .map(|i| {
            let z = i as usize / (shape[1] * shape[2]);
            let tissue = (12..22).contains(&z);
            let rough = rng.normal_at(i / 7) as f32 * 200.0;
            if tissue { rough } else { -1000.0 }
        })
        .collect();
    let steps = [[1.0, 0.0, 0.0], [0.0, 1.2, 0.0], [0.0, 0.0, 2.5]];
    let geometry = Geometry::new(shape, [0.0; 3], [steps[2], steps[1], steps[0]]).unwrap();
    Volume { geometry, voxels }
}

const CLICKS: [Click; 3] = [
    Click {
        class: 1,
        voxel: [14, 10, 15],
    },
    Click {
        class: 0,
        voxel: [17, 20, 40],
    },
    Click {
        class: 3,
        voxel: [20, 15, 49],
    },
];

/// Share of the voxels with different labels.
fn away(ours: &Volume<u16>, want: &Volume<u16>) -> f64 {
    assert_eq!(ours.geometry, want.geometry);
    let pairs = ours.voxels.iter().zip(&want.voxels);
    pairs.filter(|(a, b)| a != b).count() as f64 / want.voxels.len() as f64
}

/// Clicked voxels have the class of their click.
fn obeyed(labels: &Volume<u16>, clicks: &[Click]) {
    let [_, height, width] = labels.geometry.shape();
    for Click { class, voxel } in clicks {
        let [z, y, x] = *voxel;
        assert_eq!(labels.voxels[(z * height + y) * width + x], *class);
    }
}

#[test]
fn gpu_whole_scan_is_labelled_as_on_the_cpu() {
    if !gpu_found() {
        return;
    }
    let scan = scan();
    let named = model("left kidney,right kidney,liver", false);
    let mirror = named.labels.mirrored();
    let mirror = mirror.as_deref();
    assert!(mirror.is_some());
    for (precision, bound, clicks, mirrors) in [
        (Precision::F32, 1e-3, &[][..], &[None, mirror][..]),
        (Precision::F32, 1e-3, &CLICKS, &[mirror]),
        (Precision::F16, 3e-2, &[], &[None]),
    ] {
        let model = model("left kidney,right kidney,liver", !clicks.is_empty());
        let (cpu, gpu) = networks(&model, precision);
        for &mirror in mirrors {
            let mut heard = Vec::new();
            let run = |net: &Network, heard: &mut Vec<(usize, usize)>| {
                segment(net, &model, mirror, &scan, clicks, &mut |done, all| {
                    heard.push((done, all));
                    ControlFlow::Continue(())
                })
                .unwrap()
            };
            let want = run(&cpu, &mut Vec::new());
            let ours = run(&gpu, &mut heard);
            assert_eq!(ours.windows, want.windows);
            assert_eq!(ours.windows_skipped, want.windows_skipped);
            assert!(want.windows > 0 && want.windows_skipped > 0);
            let away = away(&ours.labels, &want.labels);
            eprintln!(
                "{precision}, {} clicks: {away:e} of the voxels differ",
                clicks.len()
            );
            assert!(away <= bound, "{precision}: {away} of the voxels differ");
            for class in 1..4 {
                let count = want.labels.voxels.iter().filter(|l| **l == class).count();
                assert!(count * 100 > want.labels.voxels.len(), "{count} of {class}");
            }
            let all = ours.windows + ours.windows_skipped;
            assert_eq!(heard.last(), Some(&(all, all)));
            obeyed(&ours.labels, clicks);
        }
        let stopped = segment(&gpu, &model, None, &scan, &[], &mut |_, _| {
            ControlFlow::Break(())
        });
        assert!(matches!(stopped, Err(ModelError::Stopped)));
    }
}

#[test]
fn gpu_open_scan_takes_clicks() {
    if !gpu_found() {
        return;
    }
    let (model, scan) = (model("a,b,c", true), scan());
    let (cpu, gpu) = networks(&model, Precision::F32);
    let go_on = &mut |_: usize, _: usize| ControlFlow::Continue(());
    let mut open = OpenScan::new(gpu.by_windows(), &model, &scan, &[], go_on).unwrap();
    let asked = open
        .update(gpu.by_windows(), &model, &CLICKS, go_on)
        .unwrap();
    assert!(asked > 0);
    obeyed(&open.labels(), &CLICKS);
    let want = segment(&cpu, &model, None, &scan, &CLICKS, go_on).unwrap();
    let away = away(&open.labels(), &want.labels);
    assert!(away <= 1e-3, "{away} of the voxels differ");
}

#[test]
fn gpu_windows_without_clicks_have_empty_channels() {
    if !gpu_found() {
        return;
    }
    let device = burn::tensor::ops::Device::<Gpu>::default();
    let row = |values: Vec<f32>| {
        let len = values.len();
        let data = TensorData::new(values, [len]);
        raw(Tensor::<Gpu, 1>::from_data(data, &device))
    };
    let (grid, patch) = ([2, 3, 4], [2, 2, 4]);
    let job = WindowJob {
        scan: row((0..24).map(|v| v as f32).collect()),
        grid,
        patch,
        weights: row(windows::gaussian(patch)),
        classes: 2,
        output: &[0, 1, 2].map(|axis| vec![(0, 0, 0.0); grid[axis]]),
        mirror: Some(&[0, 1]),
        channels: 3,
    };
    let blend = Gpu::window_blend(job).unwrap();
    for (mirrored, first) in [(false, [4.0, 5.0, 6.0, 7.0]), (true, [7.0, 6.0, 5.0, 4.0])] {
        // One slice of the second window lies below the grid.
        let ours = wrap::<Gpu, 5>(blend.gather(&[[0, 1, 0], [-1, 1, 0]], DType::F32, mirrored));
        assert_eq!(ours.dims(), [2, 3, 2, 2, 4]);
        let ours = to_f32(ours.into_data());
        assert_eq!(ours[..4], first);
        assert_eq!(ours[48..56], [-1.0; 8]);
        assert_eq!(ours[56..60], first);
        assert!(ours[16..48].iter().chain(&ours[64..]).all(|v| *v == 0.0));
    }
}

#[test]
fn gpu_precision_that_is_not_there_is_an_error() {
    if !gpu_found() {
        return;
    }
    let device = burn::tensor::ops::Device::<Gpu>::default();
    let told = |precision| {
        let choice = PrecisionChoice::Fixed(precision);
        crate::model::infer::gpu_precision::<Gpu>(choice, &device)
    };
    assert_eq!(told(Precision::F32).unwrap(), Precision::F32);
    if let Err(error) = told(Precision::Bf16) {
        assert!(error.to_string().contains("it does in f32"), "{error}");
    }
}

/// Windows with random logits, blended on the device and on the host.
#[test]
fn gpu_blending_is_that_of_the_host() {
    if !gpu_found() {
        return;
    }
    let device = burn::tensor::ops::Device::<Gpu>::default();
    for (seed, (grid, output, air)) in [
        ([9, 10, 7], [9, 10, 7], 0..0),
        ([30, 12, 9], [41, 9, 13], 4..20),
        ([3, 5, 20], [6, 5, 31], 0..0),
        ([26, 8, 8], [13, 8, 8], 13..26),
    ]
    .into_iter()
    .enumerate()
    {
        let (patch, classes) = ([8, 8, 6], 3);
        let starts = [0, 1, 2].map(|axis| windows::starts(grid[axis], patch[axis]));
        let scale = [0, 1, 2].map(|axis| grid[axis] as f64 / output[axis] as f64);
        let weights = windows::gaussian(patch);
        let axes = [0, 1, 2].map(|axis| -> Vec<Between> {
            (0..output[axis])
                .map(|i| between(i, scale[axis], grid[axis]))
                .collect()
        });
        let row = |values: Vec<f32>| {
            let len = values.len();
            let data = TensorData::new(values, [len]);
            raw(Tensor::<Gpu, 1>::from_data(data, &device))
        };
        let job = WindowJob {
            scan: row(vec![0.5; grid.iter().product()]),
            grid,
            patch,
            weights: row(weights.clone()),
            classes,
            output: &axes,
            mirror: None,
            channels: 1,
        };
        let mut ours = Gpu::window_blend(job).unwrap();
        let mut host = super::super::blend::Blend::new(classes, grid, output, scale);
        let rng = Rng::new(seed as u64);
        let (mut labelled, mut number) = (0, 0);
        let mut label = |ours: &mut Box<dyn WindowBlend<Gpu>>, below: usize| {
            let from = labelled;
            let ready = axes[0][from..]
                .iter()
                .take_while(|(_, high, _)| below >= grid[0] || *high < below);
            labelled += ready.count();
            ours.label(from..labelled, below);
        };
        for &z in &starts[0] {
            let below = z.max(0) as usize;
            host.finish_below(below);
            label(&mut ours, below);
            if air.contains(&below) {
                continue;
            }
            for &y in &starts[1] {
                for &x in &starts[2] {
                    let count = classes * weights.len();
                    let logits: Vec<f32> = (0..count as u64)
                        .map(|i| rng.normal_at(number * 10_000 + i) as f32)
                        .collect();
                    number += 1;
                    host.add([z, y, x], patch, &logits, &weights);
                    let [d, h, w] = patch;
                    let data = TensorData::new(logits, [1, classes, d, h, w]);
                    let logits = raw(Tensor::<Gpu, 5>::from_data(data, &device));
                    ours.add(&[[z, y, x]], logits, None);
                }
            }
        }
        label(&mut ours, grid[0]);
        let (ours, host) = (ours.into_labels().unwrap(), host.into_labels());
        let away = ours.iter().zip(&host).filter(|(a, b)| a != b).count();
        assert_eq!(ours.len(), host.len());
        assert!(
            away * 1000 <= host.len(),
            "case {seed}: {away} of {}",
            host.len()
        );
    }
}
