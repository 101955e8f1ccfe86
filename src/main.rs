//! The `fewlabel` command.

use std::process::ExitCode;

use clap::Parser;
use fewlabel::cli::inspect;

#[derive(Parser)]
#[command(name = "fewlabel", version)]
enum Command {
    /// Show what the readers see in images.
    Inspect(inspect::InspectArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Inspect(args) => inspect::run(args),
    }
}
