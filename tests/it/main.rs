//! One integration binary; files mirror routes and commands.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests fail by panicking

mod formats;
