//! Strategies on a project in a temporary folder.

use serde_json::json;

use std::collections::HashSet;

use super::*;
use crate::project::tests::{Bench, id};
use crate::rng::Rng;
use crate::rounds::scoring::{ClassScores, ImageScores, Uncertainty};
use proptest::prelude::*;

async fn choose(bench: &Bench, name: &str) -> Option<String> {
    next(&bench.project, name, "client", &HashSet::new())
        .await
        .unwrap()
        .map(|choice| choice.image.id.to_string())
}

#[tokio::test]
async fn first_and_last_go_by_id_among_images_without_an_accepted_label() {
    let bench = Bench::with(&["b.nii.gz"]).await;
    Bench::write_image(&bench.project.studies().join("a.nii.gz"));
    Bench::write_image(&bench.project.studies().join("c.nii.gz"));
    bench.project.rescan().await.unwrap();
    assert_eq!(choose(&bench, "first").await.as_deref(), Some("a"));
    assert_eq!(choose(&bench, "last").await.as_deref(), Some("c"));
    bench.submit("a", "final", &[1]).await.unwrap();
    bench.submit("c", "final", &[1]).await.unwrap();
    bench.submit("b", "original", &[1]).await.unwrap();
    assert_eq!(choose(&bench, "first").await.as_deref(), Some("b"));
    assert_eq!(choose(&bench, "last").await.as_deref(), Some("b"));
    bench.submit("b", "final", &[1]).await.unwrap();
    for strategy in &ALL {
        assert_eq!(choose(&bench, strategy.name).await, None);
    }
    assert!(matches!(
        next(&bench.project, "best", "c", &HashSet::new()).await,
        Err(StrategyError::Unknown { .. })
    ));
}

#[tokio::test]
async fn test_images_are_never_served() {
    let names: Vec<String> = (0..20).map(|n| format!("c{n:02}.nii.gz")).collect();
    let bench = Bench::with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let held_out = bench.project.test_images().await.unwrap();
    assert_eq!(held_out.len(), 3);
    let mut served = HashSet::new();
    while let Some(image) = choose(&bench, "random").await {
        assert!(!held_out.contains(&image), "{image} is held out");
        bench.submit(&image, "final", &[1]).await.unwrap();
        served.insert(image);
    }
    assert_eq!(served.len(), 17);
    for strategy in &ALL {
        assert_eq!(choose(&bench, strategy.name).await, None);
    }
}

#[tokio::test]
async fn random_serves_every_image_once_before_any_twice_and_notes_it() {
    let bench = Bench::with(&["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz"]).await;
    // The first time there is no record of a serving in the answer, afterwards there is.
    let choice = next(&bench.project, "random", "client", &HashSet::new())
        .await
        .unwrap()
        .unwrap();
    assert!(!choice.image.info.contains_key("strategy"));
    assert!(choice.extras["weight"].as_f64().unwrap() > 0.0);
    let mut served = vec![choice.image.id.to_string()];
    for _ in 0..3 {
        served.push(choose(&bench, "random").await.unwrap());
    }
    served.sort();
    assert_eq!(served, ["a", "b", "c", "d"]);
    // All were served within this second; there is still a choice.
    assert!(choose(&bench, "random").await.is_some());
    choose(&bench, "first").await;
    let info = bench.project.image(&id("a")).await.unwrap().unwrap().info;
    assert_eq!(
        info["strategy"]["random"],
        json!({"ts": 1_700_000_000, "client_id": "client"})
    );
    assert_eq!(
        info["strategy"]["first"],
        json!({"ts": 1_700_000_000, "client_id": "client"})
    );
}

#[tokio::test]
async fn the_same_seed_and_history_give_the_same_order() {
    let names = ["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz", "e.nii.gz"];
    let mut orders = Vec::new();
    for _ in 0..2 {
        let bench = Bench::with(&names).await;
        let mut order = Vec::new();
        for _ in 0..8 {
            order.push(choose(&bench, "random").await.unwrap());
            bench.clock.advance_ms(1000);
        }
        orders.push(order);
    }
    assert_eq!(orders[0], orders[1]);
}

proptest! {
    #[test]
    fn random_is_always_a_candidate_and_prefers_fresh_ones(
        served in prop::collection::vec(prop::option::of(-5..1000i64), 1..20),
        seed in any::<u64>(),
    ) {
        let pool = served_before(&served);
        let (index, extras) = random::pick(&pool, &mut Rng::new(seed));
        prop_assert!(index < served.len());
        prop_assert!(served[index].is_none() || served.iter().all(Option::is_some));
        let weight = extras["weight"].as_f64().unwrap();
        prop_assert!(weight > 0.0 && weight <= 1.0);
    }
}

fn served_before(served: &[Option<i64>]) -> Pool<'static> {
    let candidate = |served_s_ago: &Option<i64>| Candidate {
        id: "x",
        served_s_ago: *served_s_ago,
        scores: None,
    };
    Pool {
        candidates: served.iter().map(candidate).collect(),
        ..Pool::default()
    }
}

#[test]
fn random_is_the_more_likely_the_longer_ago() {
    let pool = served_before(&[Some(900), Some(100)]);
    let mut rng = Rng::new(7);
    let longest = (0..10_000)
        .filter(|_| random::pick(&pool, &mut rng).0 == 0)
        .count();
    assert!((8_800..9_200).contains(&longest), "{longest}");
}

/// Scores of an image: entropy, per structure (volume in ml, entropy), features.
fn image(entropy: f64, classes: &[(f64, f64)], features: &[f32]) -> ImageScores {
    let classes = classes.iter().map(|(volume_ml, entropy)| ClassScores {
        volume_ml: *volume_ml,
        entropy: *entropy,
    });
    ImageScores {
        features: features.to_vec(),
        uncertainty: Some(Uncertainty {
            passes: Default::default(),
            answers: 2,
            entropy,
            margin: 1.0 - entropy,
            bald: entropy * entropy,
            classes: classes.collect(),
            slices: Vec::new(),
            region: None,
        }),
    }
}

/// Four images: 0 is the most uncertain, 1 has most of the second structure and its uncertainty, 2 is unlike the others, 3 is
/// nothing special.
fn images() -> Vec<ImageScores> {
    vec![
        image(0.9, &[(100.0, 0.5), (0.0, 0.0)], &[0.0, 1.0]),
        image(0.3, &[(50.0, 0.2), (9.0, 0.3)], &[0.1, 1.0]),
        image(0.2, &[(90.0, 0.1), (1.0, 0.1)], &[9.0, 5.0]),
        image(0.1, &[(80.0, 0.1), (1.0, 0.0)], &[0.05, 1.0]),
    ]
}

fn pool(images: &[ImageScores]) -> Pool<'_> {
    let candidate = |scores| Candidate {
        id: "x",
        served_s_ago: None,
        scores: Some(scores),
    };
    Pool {
        candidates: images.iter().map(candidate).collect(),
        round: 100,
        ..Pool::default()
    }
}

fn chosen(name: &str, pool: &Pool, count: usize) -> Vec<usize> {
    super::choose(find(name).unwrap(), pool.clone(), count, &mut Rng::new(1))
}

#[test]
fn each_strategy_takes_what_its_formula_says() {
    let images = images();
    let pool = pool(&images);
    assert_eq!(chosen("entropy", &pool, 2), [0, 1]);
    assert_eq!(chosen("bald", &pool, 1), [0]);
    assert_eq!(chosen("margin", &pool, 1), [3]);
    // The first structure, the second, the whole: late, so without noise to speak of.
    assert_eq!(chosen("clasp", &pool, 3), [0, 1, 2]);
    assert_eq!(chosen("auto", &pool, 2), [0, 1]);
    let labelled = Labelled {
        scores: Some(&images[0]),
        present: &[true, false],
    };
    let with_label = Pool {
        candidates: pool.candidates[1..].to_vec(),
        labelled: vec![labelled],
        ..pool.clone()
    };
    assert_eq!(
        chosen("k_center", &with_label, 1),
        [1],
        "the one unlike the others"
    );
    assert_eq!(
        chosen("cold_start", &with_label, 1),
        [0],
        "the structure without a label"
    );
    // Three of four are alike; the one in their middle is the most typical.
    assert_eq!(chosen("typicality", &pool, 1), [3]);
}

#[test]
fn strategies_with_chance_go_by_the_scores_too() {
    let images = images();
    let pool = pool(&images);
    let share = |name: &str, index: usize| {
        let strategy = find(name).unwrap();
        let drawn = (0..2000).filter(|seed| {
            super::choose(strategy, pool.clone(), 1, &mut Rng::new(*seed))[0] == index
        });
        drawn.count() as f64 / 2000.0
    };
    // In proportion: 0.9 of 1.5.
    assert!((share("power_entropy", 0) - 0.6).abs() < 0.04);
    // 1/3 of 1/4, 1/3 of 50/320, 1/3 of 9/11.
    let expected = (0.25 + 50.0 / 320.0 + 9.0 / 11.0) / 3.0;
    assert!((share("foreground_random", 1) - expected).abs() < 0.04);
    // The best of 20 random pairs is nearly always the best pair.
    for seed in 0..20 {
        let strategy = find("stochastic_batch").unwrap();
        let mut batch = super::choose(strategy, pool.clone(), 2, &mut Rng::new(seed));
        batch.sort_unstable();
        assert_eq!(batch[0], 0, "{batch:?}");
    }
}

#[test]
fn every_strategy_chooses_each_image_once_with_and_without_scores() {
    let images = images();
    let with = pool(&images);
    let without = served_before(&[None; 4]);
    for strategy in &ALL {
        for pool in [&with, &without] {
            let mut all = super::choose(strategy, pool.clone(), 9, &mut Rng::new(5));
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3], "{}", strategy.name);
            let again = || super::choose(strategy, pool.clone(), 2, &mut Rng::new(5));
            assert_eq!(again(), again(), "{}", strategy.name);
        }
        let (_, told) = table::one(strategy, &without, &mut Rng::new(1));
        let says = told
            .get("chosen_by")
            .is_some_and(|by| by.as_str().unwrap().starts_with("random"));
        assert_eq!(says, strategy.needs_scores, "{}", strategy.name);
    }
}
