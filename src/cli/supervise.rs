//! `yardstick supervise` and `supervise-exec`, which yardstick calls itself: the
//! process between it and an engine that it started. Not for people.

use clap::Args;

use super::{ExitStatus, Global};

/// Run one engine and end it with everything below it.
#[derive(Debug, Args)]
pub struct Supervise {}

/// Become an engine.
#[derive(Debug, Args)]
pub struct SuperviseExec {
    supervisor: i32,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Supervise {
    /// Serves the order on standard input.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn execute(self, _global: &Global) -> anyhow::Result<ExitStatus> {
        #[cfg(target_os = "linux")]
        crate::lifecycle::supervise::supervise()?;
        Ok(ExitStatus::Success)
    }
}

impl SuperviseExec {
    /// Executes the command in the place of this process.
    ///
    /// # Errors
    /// Why it cannot be executed.
    pub fn execute(self, _global: &Global) -> anyhow::Result<ExitStatus> {
        #[cfg(target_os = "linux")]
        if let Err(error) =
            crate::lifecycle::supervise::become_engine(self.supervisor, &self.command)
        {
            let program = self.command.first().map_or("", String::as_str);
            let message = format!("cannot execute `{program}`: {error}");
            return Err(super::Failure::new(message).into());
        }
        Ok(ExitStatus::Success)
    }
}
