//! The MONAI Label REST protocol over HTTP, one file per group of routes; start with [`router`].
//!
//! Handlers read the request, call the domain (`project`, `rounds`, `sessions`) and shape the answer;
//! they hold no state but [`App`]. Work that takes long is a job that the worker process does:
//! `/infer` waits for its job, the others answer with a task object.
//!
//! # Beyond MONAI Label
//! | file | routes |
//! |---|---|
//! | `rounds` | `/rounds/`: the table of rounds, start, progress, stop, settings |
//! | `versions` | `/models/`: versions of models; publish, keep, pin, roll back |
//! | `leases` | `/leases/`: who works on which image |
//! | `statistics` | `/statistics/`: how far the project is |
//!
//! Each file begins with its routes and the exact shape of their answers. Names are in snake_case; `_ts` are seconds since
//! 1970-01-01 UTC, `_s` durations in seconds.
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
mod dicomweb;
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
mod leases;
mod logs;
mod metrics;
mod model;
mod query;
mod reply;
mod reviews;
mod revisions;
mod rounds;
pub mod router;
mod scoring;
pub mod serve;
mod session;
mod shared;
mod statistics;
mod structures;
mod studies;
mod task;
mod train;
mod versions;

pub use app::{App, AppParts, Offers};
