//! `fewlabel simulate`: replays a labelled set as a project, to compare strategies before annotators work for one.

mod command;
mod output;
mod phantoms;

pub use command::{SimulateArgs, run};
