//! Strategies on a project in a temporary folder.

use serde_json::json;

use super::*;
use crate::project::tests::{Bench, id};
use crate::rng::Rng;
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
    for name in NAMES {
        assert_eq!(choose(&bench, name).await, None);
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
    let mut served = std::collections::HashSet::new();
    while let Some(image) = choose(&bench, "random").await {
        assert!(!held_out.contains(&image), "{image} is held out");
        bench.submit(&image, "final", &[1]).await.unwrap();
        served.insert(image);
    }
    assert_eq!(served.len(), 17);
    for name in NAMES {
        assert_eq!(choose(&bench, name).await, None);
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
        let id = id("x");
        let candidates: Vec<_> = served.iter().map(|&served_s_ago| Candidate { id: &id, served_s_ago }).collect();
        let (index, extras) = random::pick(&candidates, &mut Rng::new(seed));
        prop_assert!(index < served.len());
        prop_assert!(served[index].is_none() || served.iter().all(Option::is_some));
        let weight = extras["weight"].as_f64().unwrap();
        prop_assert!(weight > 0.0 && weight <= 1.0);
    }
}

#[test]
fn random_is_the_more_likely_the_longer_ago() {
    let id = id("x");
    let candidates = [Some(900), Some(100)].map(|served_s_ago| Candidate {
        id: &id,
        served_s_ago,
    });
    let mut rng = Rng::new(7);
    let longest = (0..10_000)
        .filter(|_| random::pick(&candidates, &mut rng).0 == 0)
        .count();
    assert!((8_800..9_200).contains(&longest), "{longest}");
}
