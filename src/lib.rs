//! Fewlabel
pub mod imaging;
pub mod model;
pub mod rng;
