//! One integration binary; the files mirror routes and commands.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

mod support;

mod active_learning;
mod bench;
mod cli_serve;
mod convert;
mod dicom;
mod dicom_results;
mod dicom_serve;
mod dicomweb;
mod evaluate;
mod faults;
mod formats;
mod history;
mod infer;
mod interactive;
mod layering;
mod pretrain;
mod rest_activelearning;
mod rest_datastore;
mod rest_general;
mod rest_infer;
mod rest_info;
mod rest_limits;
mod rest_metrics;
mod rest_model;
mod rest_reviews;
mod rest_rounds;
mod rest_session;
mod rest_train;
mod rounds;
mod simulate;
mod train;
mod upkeep;
