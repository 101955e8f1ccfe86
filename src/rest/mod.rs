//! The MONAI Label REST protocol over HTTP, one file per group of routes; start with [`router`].
//!
//! Handlers read the request, call the domain (`project`, `rounds`, `sessions`) and shape the answer;
//! they hold no state but [`App`]. Work that takes long is a job that the worker process does:
//! `/infer` waits for its job, the others answer with a task object.
//!
//! Not of the protocol: `/livez`, `/readyz`, `/metrics`, revisions of labels, `/datastore/rescan`.
//!
#![doc = include_str!("protocol.md")]

mod absent;
mod activelearning;
mod app;
mod archive;
mod batch;
pub mod damaged;
mod datastore;
mod description;
mod docs;
mod edge;
mod error;
mod form;
mod guard;
mod health;
mod idle;
mod infer;
mod info;
mod interaction;
mod logs;
mod metrics;
mod model;
mod query;
mod reply;
mod reviews;
mod revisions;
pub mod router;
mod scoring;
pub mod serve;
mod session;
mod shared;
mod structures;
mod studies;
mod task;
mod train;

pub use app::{App, AppParts, Offers};
