//! `yardstick size`: what fits, before it is tried.

mod pool;
mod pulse;
mod simulate;

use clap::Args;

use self::simulate::{EngineArgs, SimulationArgs};
use super::{ExitStatus, Global};

/// Say what a GPU and a model would do with a load, without either: simulated.
#[derive(Debug, Args)]
pub struct Size {
    /// Drive the embedded engine's scheduler and block manager on a virtual clock
    #[arg(long, required = true)]
    simulate: bool,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    simulation: SimulationArgs,
}

impl Size {
    /// Simulates, and prints.
    ///
    /// # Errors
    /// When an option is out of range, or a file cannot be read.
    pub fn execute(self, global: &Global) -> anyhow::Result<ExitStatus> {
        simulate::execute(&self.engine, &self.simulation, self.json, global)
    }
}
