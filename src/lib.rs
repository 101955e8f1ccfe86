//! Fewlabel
pub mod cli;
pub mod clock;
pub mod config;
pub mod imaging;
pub mod model;
pub mod project;
pub mod rest;
pub mod rng;
pub mod rounds;
pub mod sessions;
pub mod store;
pub mod telemetry;
pub mod worker;
