//! Parts that several modules share.

pub mod browser;
pub mod cloud_run;
pub mod nvml;
pub mod scripted;
#[cfg(target_os = "linux")]
pub mod served;
pub mod wire;

use std::process::Command;

/// The binary under test.
pub fn yardstick() -> Command {
    Command::new(env!("CARGO_BIN_EXE_yardstick"))
}
