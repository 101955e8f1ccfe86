//! `fewlabel simulate`: what is compared is comparable, a kill changes nothing, and wrong use is said.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::pretrain::{dataset, text};
use crate::support::{organs, tiny_model};

/// A network so small that a step takes milliseconds.
pub fn tiny(dir: &Path) -> PathBuf {
    let model = dir.join("tiny");
    tiny_model(&model, &organs());
    model
}

fn simulate(data: &Path, init: &Path, out: &Path, more: &[&str]) -> Command {
    of_seeds("1,2", data, init, out, more)
}

fn of_seeds(seeds: &str, data: &Path, init: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewlabel"));
    command.arg("simulate").arg("--data").arg(data);
    command.arg("--init").arg(init).arg("--out").arg(out);
    command.args(["--device", "cpu", "--strategies", "entropy,random"]);
    command.args([
        "--seeds", seeds, "--rounds", "2", "--query", "1", "--steps", "2", "--test", "2",
    ]);
    command.args(more);
    command
}

fn run(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    output
}

/// Dice and choices of each round of a folder with results; times left out.
fn rounds(out: &Path) -> BTreeMap<String, [String; 3]> {
    let csv = std::fs::read_to_string(out.join("rounds.csv")).unwrap();
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    let column = |name: &str| head.iter().position(|h| *h == name).unwrap();
    let (dice, cases, chosen) = (column("mean_dice"), column("cases"), column("chosen"));
    lines
        .map(|line| {
            (
                line[..3].join(" "),
                [dice, cases, chosen].map(|c| line[c].to_owned()),
            )
        })
        .collect()
}

#[test]
fn strategies_are_compared_on_the_same_cases() {
    let dir = tempfile::tempdir().unwrap();
    let (data, init, out) = (
        dataset(dir.path(), 8),
        tiny(dir.path()),
        dir.path().join("out"),
    );
    let output = run(&mut simulate(&data, &init, &out, &["--json"]), 0);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(text(&output).contains("foreground_random is added"));
    let summary: Value =
        serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(printed, summary);
    let strategies = summary["summary"]["strategies"].as_array().unwrap();
    let names: Vec<_> = strategies
        .iter()
        .map(|s| s["strategy"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["entropy", "random", "foreground_random"]);
    assert_eq!(strategies[0]["curve"].as_array().unwrap().len(), 3);
    assert_eq!(strategies[0]["aubc"]["values"].as_array().unwrap().len(), 2);
    assert_eq!(
        summary["summary"]["penalty"][0].as_array().unwrap().len(),
        3
    );

    let rounds = rounds(&out);
    // Two seeds, three strategies, three rounds, and a model of all cases per seed.
    assert_eq!(rounds.len(), 2 * (3 * 3 + 1));
    for seed in [1, 2] {
        let first = |name: &str| &rounds[&format!("{name} {seed} 0")];
        assert_eq!(first("entropy"), first("random"));
        assert_eq!(first("full")[1], "6");
        for name in names.iter() {
            let chosen: Vec<_> = (0..3)
                .map(|round| rounds[&format!("{name} {seed} {round}")][2].clone())
                .collect();
            assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), 3, "{chosen:?}");
        }
    }
    let test: Value = serde_json::from_slice(
        &std::fs::read(out.join("runs/entropy/seed-1/round-2.json")).unwrap(),
    )
    .unwrap();
    let held_out: Vec<_> = test["test"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["case"])
        .collect();
    assert_eq!(held_out.len(), 2);
    for round in rounds
        .iter()
        .filter(|(name, _)| !name.starts_with("full"))
        .map(|(_, r)| r)
    {
        assert!(
            held_out
                .iter()
                .all(|case| !round[2].contains(case.as_str().unwrap()))
        );
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Which is better than which") && !page.contains("http"));
    assert!(out.join("report.png").metadata().unwrap().len() > 1000);
    let models = walk(&out.join("runs"))
        .into_iter()
        .filter(|path| path.ends_with("manifest.json"));
    assert_eq!(
        models.count(),
        0,
        "models of rounds that are done are removed"
    );

    // With other settings the results are not touched; the same command finds everything done.
    let before = std::fs::read(out.join("rounds.csv")).unwrap();
    let refused = run(
        &mut simulate(&data, &init, &out, &["--passes", "single"]),
        2,
    );
    assert!(text(&refused).contains("other settings"));
    run(&mut simulate(&data, &init, &out, &[]), 0);
    assert_eq!(std::fs::read(out.join("rounds.csv")).unwrap(), before);
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn a_killed_simulation_goes_on_as_if_nothing_had_been() {
    let dir = tempfile::tempdir().unwrap();
    let (data, init) = (dataset(dir.path(), 7), tiny(dir.path()));
    let whole = dir.path().join("whole");
    let options = ["--no-full"];
    run(&mut of_seeds("3", &data, &init, &whole, &options), 0);
    let killed = dir.path().join("killed");
    for round in ["initial/seed-3/round-0", "entropy/seed-3/round-1"] {
        let mut child = of_seeds("3", &data, &init, &killed, &options)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let file = killed.join(format!("runs/{round}.json"));
        while !file.exists() {
            assert!(
                child
                    .try_wait()
                    .unwrap()
                    .is_none_or(|status| status.success())
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(&mut of_seeds("3", &data, &init, &killed, &options), 0);
    assert_eq!(rounds(&killed), rounds(&whole));
}

#[test]
fn wrong_use_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (data, init, out) = (
        dataset(dir.path(), 4),
        tiny(dir.path()),
        dir.path().join("out"),
    );
    let unknown = run(
        &mut simulate(&data, &init, &out, &["--strategies", "best"]),
        2,
    );
    let said = text(&unknown);
    assert!(
        said.contains("\"best\"") && said.contains("clasp"),
        "{said}"
    );
    let few = run(&mut simulate(&data, &init, &out, &[]), 1);
    assert!(text(&few).contains("4 cases are too few"), "{}", text(&few));
}
