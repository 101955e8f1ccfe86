//! Faults at every point: kills and disk errors at every system call of a submit, kills under load, damaged uploads, kills
//! of workers and servers in the middle of rounds.
//!
//! `cargo test --release --test fault -- [NAME] [--every N] [--kills N] [--uploads N] [--rounds N]`: without options it
//! runs a short form, as `tests/run` does. Every call (`--every 1`), 500 kills, 1000 uploads and 20 rounds are the whole
//! sets. The binary is its own helper: `submit` and `serve` below are what it kills.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

#[path = "../it/support/http.rs"]
#[allow(dead_code)]
mod http;
mod kills;
#[path = "../it/support/process.rs"]
#[allow(dead_code)]
mod process;
mod rounds;
mod site;
mod strace;
mod submit;
#[path = "../it/support/tiny.rs"]
#[allow(dead_code)]
mod tiny;
mod uploads;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Instant;

/// How much is tried.
struct Amount {
    /// One system call of so many.
    every: usize,
    kills: usize,
    uploads: usize,
    rounds: usize,
}

type Check = fn(&Amount) -> Result<String, String>;

const CHECKS: [(&str, Check); 4] = [
    ("syscalls", strace::run),
    ("kills", kills::run),
    ("uploads", uploads::run),
    ("rounds", rounds::run),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("submit") => return submit::submit(Path::new(&arguments[1])),
        Some("serve") => return submit::serve(Path::new(&arguments[1])),
        _ => {}
    }
    let mut amount = Amount {
        every: 4,
        kills: 50,
        uploads: 10,
        rounds: 2,
    };
    let (mut wanted, mut rest) = (None, arguments.into_iter());
    while let Some(argument) = rest.next() {
        let mut number = || rest.next().unwrap().parse().unwrap();
        match argument.as_str() {
            "--every" => amount.every = number(),
            "--kills" => amount.kills = number(),
            "--uploads" => amount.uploads = number(),
            "--rounds" => amount.rounds = number(),
            // Options of the usual test harness mean nothing here.
            option if option.starts_with('-') => {}
            name => wanted = Some(name.to_owned()),
        }
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in CHECKS {
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted)) {
            continue;
        }
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| check(&amount)));
        let seconds = start.elapsed().as_secs();
        match outcome {
            Ok(Ok(found)) => {
                println!("fault: {name}: {found} ({seconds} s)");
                passed += 1;
            }
            Ok(Err(missing)) => {
                println!("skipped: fault {name}: {missing}");
                passed += 1;
            }
            Err(_) => {
                println!("fault: {name}: FAILED after {seconds} s");
                failed += 1;
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if failed > 0 {
        std::process::exit(101);
    }
}
