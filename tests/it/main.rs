//! One integration binary; files mirror routes and commands.

mod formats;
