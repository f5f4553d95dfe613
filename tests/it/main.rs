//! The one integration binary: each module tests yardstick the way its user meets it.

#![expect(clippy::unwrap_used, reason = "what a test's helpers cannot do fails the test")]

mod arrangement;
#[cfg(unix)]
mod build_script;
#[cfg(target_os = "linux")]
mod calibrate;
mod cli;
mod cloud_run;
#[cfg(target_os = "linux")]
mod compare;
mod contract;
#[cfg(feature = "cuda")]
mod cuda;
mod engine;
mod fairness;
mod golden;
mod kv_sweep;
#[cfg(target_os = "linux")]
mod lifecycle;
mod loads;
mod metamorphic;
mod models;
mod peers;
mod performance;
mod probe;
mod report;
mod run;
mod server;
mod simulation;
mod size;
mod support;
mod survival;
mod tidy;
