//! The binary `fewlabel`: parses, dispatches, and turns errors into exit codes.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fewlabel::cli;

/// Tensors are many and large: this allocator keeps their pages instead of returning them after each operation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show one full round on synthetic studies
    Demo(cli::demo::DemoArgs),
    /// Serve a folder of studies over the MONAI Label protocol
    Serve(cli::serve::ServeArgs),
    /// Turn a PyTorch checkpoint into a model directory
    Convert(cli::convert::ConvertArgs),
    /// Segment image files
    Infer(cli::infer::InferArgs),
    /// Fine-tune on a folder of labelled scans
    Train(cli::train::TrainArgs),
    /// Pretrain on a folder of scans without labels
    Pretrain(cli::pretrain::PretrainArgs),
    /// Compare predicted with reference label maps
    Evaluate(cli::evaluate::EvaluateArgs),
    /// Replay a labelled set as a project, to compare strategies
    Simulate(cli::simulate::SimulateArgs),
    /// Show what the readers see in images
    Inspect(cli::inspect::InspectArgs),
    /// Show or change which images are held out
    Split(cli::split::SplitArgs),
    /// Write who did what as JSON lines
    Audit(cli::audit::AuditArgs),
    /// Look for damage in a data folder
    Check(cli::check::CheckArgs),
    /// Save a data folder, also while a server uses it
    Backup(cli::backup::BackupArgs),
    /// Make a data folder of a backup
    Restore(cli::restore::RestoreArgs),
    /// Write labels and images as a folder that other programs read
    Export(cli::export::ExportArgs),
    /// Take a MONAI Label studies folder into a project
    Import(cli::import::ImportArgs),
    /// Measure the network on this machine
    Bench(cli::bench::BenchArgs),
    /// Compute for a server (started by serve)
    #[command(hide = true)]
    Worker(cli::worker::WorkerArgs),
}

fn main() -> ExitCode {
    let done = |outcome: anyhow::Result<()>| outcome.map(|()| ExitCode::SUCCESS);
    let outcome = match Arguments::parse().command {
        Command::Demo(args) => done(cli::demo::run(args)),
        Command::Serve(args) => done(cli::serve::run(args)),
        Command::Convert(args) => done(cli::convert::run(args)),
        Command::Infer(args) => cli::infer::run(args),
        Command::Train(args) => done(cli::train::run(args)),
        Command::Pretrain(args) => done(cli::pretrain::run(args)),
        Command::Evaluate(args) => done(cli::evaluate::run(args)),
        Command::Simulate(args) => done(cli::simulate::run(args)),
        Command::Inspect(args) => cli::inspect::run(args),
        Command::Split(args) => done(cli::split::run(args)),
        Command::Audit(args) => done(cli::audit::run(args)),
        Command::Check(args) => cli::check::run(args),
        Command::Backup(args) => done(cli::backup::run(args)),
        Command::Restore(args) => done(cli::restore::run(args)),
        Command::Export(args) => done(cli::export::run(args)),
        Command::Import(args) => cli::import::run(args),
        Command::Bench(args) => done(cli::bench::run(args)),
        Command::Worker(args) => done(cli::worker::run(args)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("fewlabel: {error:#}");
        ExitCode::from(if error.is::<cli::Usage>() { 2 } else { 1 })
    })
}
