//! One integration binary; the files mirror routes and commands.

mod support;

mod cli_serve;
mod formats;
mod python_client;
mod rest_activelearning;
mod rest_datastore;
mod rest_general;
mod rest_infer;
mod rest_info;
mod rest_model;
mod rest_session;
mod rest_train;
