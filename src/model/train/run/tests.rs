use super::super::samples::Sample;
use super::*;
use crate::model::manifest::{Lineage, ModelDescription, Preprocessing};
use crate::model::pct_net::PctNetConfig;
use crate::model::schema::LabelSchema;
use crate::model::train::TrainOptions;
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
