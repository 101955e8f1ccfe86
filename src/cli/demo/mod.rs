//! `fewlabel demo`: one full round on synthetic studies, with a scripted annotator in the clinician's place.
//!
//! Everything goes through the server's HTTP interface, as it does with 3D Slicer: next case, proposal, corrected label,
//! training, and the proposals of the new model on cases that nobody labelled.

mod annotator;
mod report;
mod round;
mod server;
mod studies;

pub use round::{DemoArgs, run};
