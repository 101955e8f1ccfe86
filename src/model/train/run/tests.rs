use super::super::samples::Sample;
use super::*;
use crate::imaging::phantom::{PhantomOptions, torso};
use crate::imaging::{LabelFormat, write_label, write_scan};
use crate::model::clicks::ClickGuidance;
use crate::model::manifest::{Lineage, ModelDescription, Preprocessing};
use crate::model::pct_net::PctNetConfig;
use crate::model::schema::LabelSchema;
use crate::model::train::{TrainOptions, clicks};
use crate::model::weights::{fit_inputs, to_f32};
use burn_flex::Flex;

const PATCH: [usize; 3] = PctNetConfig::SMALL_PATCH;

fn request(ema: Option<f64>) -> TrainRequest {
    let labels = LabelSchema::from_list("liver").unwrap();
    TrainRequest {
        cases: Vec::new(),
        validation: Vec::new(),
        model: ModelDescription {
            name: "test".to_owned(),
            network: PctNetConfig::pct_net_s(labels.class_count(), PATCH, 1),
            labels,
            preprocessing: Preprocessing::default(),
            patch: PATCH,
            clicks: None,
            trained: false,
            lineage: Lineage::made_by("trained"),
        },
        init: None,
        out: "unused".into(),
        options: TrainOptions {
            steps: 100,
            batch: 1,
            ema,
            ..TrainOptions::starting_from(false)
        },
        checkpoint: None,
    }
}

fn patches(value: f32) -> Vec<Patch> {
    let voxels = PATCH.iter().product();
    vec![Patch::Made(Sample {
        input: (0..voxels).map(|n| value * (n % 7) as f32 / 7.0).collect(),
        labels: (0..voxels).map(|n| u8::from(n % 5 == 0)).collect(),
        annotated: vec![true; 2],
        case: 0,
    })]
}

#[test]
fn numbers_that_are_not_finite_lead_back_to_the_last_good_state() {
    let request = request(Some(0.5));
    let mut trainer =
        Trainer::<Flex>::new(&request, None, Engine::Cpu, Default::default()).unwrap();
    let cases = [StoredCase::named("p1", 2)];
    let good = trainer.state(0);
    let (weights, average) = (good.tensors.clone(), good.average.clone());
    trainer.good = Some(good);
    assert_eq!(trainer.rate(0), 4e-3);

    let mut heard = Vec::new();
    for step in 1..=3 {
        // An ordinary step moves the weights, then a patch spoils everything.
        match trainer.step(step, patches(1.0), &cases) {
            Outcome::Gradients(loss, grads) => {
                assert!(loss.is_finite());
                let net = trainer.net.clone();
                trainer.net = trainer.optimiser.step(0.1, net, grads);
            }
            Outcome::Failed(reason) | Outcome::Device(reason) => panic!("{reason}"),
        }
        let moved = trainer.state(step);
        assert!(moved.tensors != weights);
        let Outcome::Failed(reason) = trainer.step(step, patches(f32::NAN), &cases) else {
            panic!("a patch that is not finite gives no gradients");
        };
        assert!(reason.contains("on patches of p1"), "{reason}");
        let result = trainer.fail(step, &reason, &mut |event| {
            if let TrainEvent::RolledBack {
                back_to,
                rate_scale,
                ..
            } = event
            {
                heard.push((back_to, rate_scale));
            }
            ControlFlow::Continue(())
        });
        if step < 3 {
            assert!(result.unwrap().is_continue());
            let now = trainer.state(step);
            assert!(
                now.tensors == weights && now.average == average,
                "step {step}"
            );
        } else {
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains("p1") && error.contains("3 times in a row"),
                "{error}"
            );
        }
    }
    assert_eq!(heard, [(0, 0.5), (0, 0.25)]);
    assert_eq!(trainer.rate(0), 1e-3);
}

#[test]
fn a_last_update_that_spoils_the_weights_is_left() {
    let request = request(None);
    let mut trainer =
        Trainer::<Flex>::new(&request, None, Engine::Cpu, Default::default()).unwrap();
    let cases = [StoredCase::named("p1", 2)];
    let good = trainer.state(0);
    let weights = good.tensors.clone();
    trainer.good = Some(good);
    let mut heard = Vec::new();
    let mut on = |event: TrainEvent| {
        if let TrainEvent::RolledBack { step, back_to, .. } = event {
            heard.push((step, back_to));
        }
        ControlFlow::Continue(())
    };
    assert_eq!(trainer.leave_spoiled(9, &mut on).unwrap(), None);
    match trainer.step(8, patches(1.0), &cases) {
        Outcome::Gradients(_, grads) => {
            let net = trainer.net.clone();
            trainer.net = trainer.optimiser.step(f64::INFINITY, net, grads);
        }
        Outcome::Failed(reason) | Outcome::Device(reason) => panic!("{reason}"),
    }
    let flow = trainer.leave_spoiled(9, &mut on).unwrap();
    assert_eq!(flow, Some(ControlFlow::Continue(())));
    assert!(trainer.state(9).tensors == weights);
    assert_eq!(heard, [(9, 0)]);
}

#[test]
fn patience_ends_after_so_many_validations_without_a_better_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut request = request(None);
    request.options.patience = 2;
    let options = PhantomOptions {
        shape: Some([12, 24, 24]),
        ..PhantomOptions::small()
    };
    let mut made = torso(1, &options);
    let others = made.label.voxels.iter_mut().filter(|v| **v > 1);
    others.for_each(|v| *v = 0);
    let [image, label] = ["image", "label"].map(|name| dir.path().join(format!("{name}.nii")));
    write_scan(&image, &made.scan, LabelFormat::Nifti).unwrap();
    write_label(&label, &made.label, &[], LabelFormat::Nifti).unwrap();
    let cases = [TrainCase {
        name: "p1".to_owned(),
        image,
        label,
        annotated: vec![1],
    }];
    let mut trainer =
        Trainer::<Flex>::new(&request, None, Engine::Cpu, Default::default()).unwrap();
    let validate = |trainer: &mut Trainer<Flex>| {
        let quiet = &mut |_: TrainEvent| ControlFlow::Continue(());
        trainer.validate(1, &cases, quiet).unwrap()
    };
    assert_eq!(validate(&mut trainer), None, "the first is the best so far");
    assert_eq!(validate(&mut trainer), None);
    assert_eq!(validate(&mut trainer), Some(EndedEarly::Patience));
    if let Some(best) = &mut trainer.kept.best {
        best.mean = -1.0;
    }
    assert_eq!(validate(&mut trainer), None, "a better one counts anew");
    assert_eq!(trainer.kept.worse, 0);
}

#[test]
fn clipping_bounds_the_gradient_and_a_frozen_encoder_has_none() {
    let mut request = request(None);
    let cases = [StoredCase::named("p1", 2)];
    let norm = |request: &TrainRequest| {
        let trainer = Trainer::<Flex>::new(request, None, Engine::Cpu, Default::default()).unwrap();
        match trainer.step(0, patches(1.0), &cases) {
            Outcome::Gradients(_, grads) => (gradients::norm(&trainer.net, &grads), grads.len()),
            Outcome::Failed(reason) | Outcome::Device(reason) => panic!("{reason}"),
        }
    };
    request.options.clip_norm = 0.0;
    let (free, all) = norm(&request);
    request.options.clip_norm = f64::from(free) / 2.0;
    let (clipped, _) = norm(&request);
    assert!(
        (clipped - free / 2.0).abs() < 1e-3 * free,
        "{clipped} {free}"
    );
    request.options.clip_norm = f64::from(free) * 2.0;
    assert_eq!(norm(&request).0, free);
    request.options.freeze_encoder = 1;
    assert!(norm(&request).1 < all);
}

#[test]
fn the_rate_rises_over_the_warmup() {
    let mut request = request(None);
    request.options.warmup = 4;
    let trainer = Trainer::<Flex>::new(&request, None, Engine::Cpu, Default::default()).unwrap();
    assert!((trainer.rate(0) - 1e-3).abs() < 1e-9);
    assert!(trainer.rate(1) < trainer.rate(2) && trainer.rate(3) > trainer.rate(4));
}

/// Networks are held by value: three trainers in one function fill the 2 MiB of a test's thread when nothing is optimised.
#[test]
fn a_network_with_clicks_begins_as_the_one_without() {
    std::thread::Builder::new()
        .stack_size(16 << 20)
        .spawn(begins_as_the_one_without)
        .unwrap()
        .join()
        .unwrap();
}

fn begins_as_the_one_without() {
    let without = request(None);
    let plain = Trainer::<Flex>::new(&without, None, Engine::Cpu, Default::default()).unwrap();
    let mut with = request(None);
    let classes = with.model.network.class_num;
    with.model.clicks = Some(ClickGuidance::default());
    with.model.network.in_chns = ClickGuidance::channels(classes);
    let mut state = export(&plain.net.valid(), 1);
    fit_inputs(&mut state, 1, with.model.network.in_chns);
    let manifest = Manifest {
        format: 1,
        model: without.model.clone(),
        weights_sha256: String::new(),
    };
    let init = Some((state, manifest));
    let clicks = Trainer::<Flex>::new(&with, init, Engine::Cpu, Default::default()).unwrap();
    let report = clicks.init.as_ref().unwrap();
    assert!(report.missing.is_empty() && report.reshaped.is_empty() && report.unused.is_empty());
    let cases = [StoredCase::named("p1", classes)];
    let inputs = batch::inputs::<Flex>(patches(1.0), PATCH, &Default::default());
    let logits = |trainer: &Trainer<Flex>, clicks: &[clicks::PatchClick]| {
        let input = trainer.with_clicks(&inputs[0], &cases, clicks);
        to_f32(
            trainer
                .net
                .valid()
                .forward_finest(input, Mode::Eval)
                .into_data(),
        )
    };
    let at = [(1, [3, 4, 5])];
    // Equal but for the order in which products are summed.
    for (a, b) in logits(&plain, &[]).iter().zip(logits(&clicks, &at)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    // The simulated clicks of a step are the same again, about half of the samples get some, and they teach the new inputs.
    let drawn: Vec<_> = (0..40)
        .map(|step| clicks.clicks(step, &inputs, &cases))
        .collect();
    let some = drawn
        .iter()
        .filter(|clicks| clicks.iter().any(|c| !c.is_empty()))
        .count();
    assert!((10..=30).contains(&some), "{some} of 40");
    let step = drawn
        .iter()
        .position(|clicks| clicks.iter().any(|c| !c.is_empty()))
        .unwrap();
    assert!(clicks.clicks(step, &inputs, &cases) == drawn[step]);
    let Outcome::Gradients(_, grads) = clicks.step(step, patches(1.0), &cases) else {
        panic!("finite numbers give gradients");
    };
    let mut learned = clicks;
    let net = learned.net.clone();
    learned.net = learned.optimiser.step(1e-2, net, grads);
    let (with, without) = (logits(&learned, &at), logits(&learned, &[]));
    assert!(with != without);
}
