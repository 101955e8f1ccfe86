//! Fewlabel: a server for segmenting CT with few labels.

pub mod cli;
pub mod imaging;
pub mod rng;
