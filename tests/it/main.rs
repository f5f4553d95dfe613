//! The one integration binary: each module tests yardstick the way its user meets it.

mod cli;
mod contract;
mod golden;
mod metamorphic;
mod models;
mod peers;
mod report;
mod run;
mod server;
mod support;
mod tidy;
