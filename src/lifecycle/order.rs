//! What passes between yardstick and the supervisor of an engine: an order, a
//! word to go or to stop, and what became of it, one JSON line each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a supervisor runs. It comes on its standard input, so that no secret
/// stands in a command line that everybody can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where it runs.
    pub cwd: Option<PathBuf>,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
    /// Takes its output, appended.
    pub log: PathBuf,
    /// Number of the signal that asks it to stop.
    pub stop_signal: i32,
    /// Milliseconds until it is killed.
    pub stop_grace_ms: u64,
    /// Run once everything has ended: takes away what is no process of ours, a container.
    pub cleanup: Vec<String>,
}

/// A line to the supervisor after the order. The end of the input means that
/// yardstick is gone, and everything is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Execute the command.
    Go,
    /// Ask it to stop.
    Stop,
}

/// A line from the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// A process waits for [`Word::Go`], then becomes the engine.
    Armed {
        /// Its process id, and its group's.
        pid: u32,
    },
    /// The engine's process ended.
    Exited {
        /// Exit status, unless a signal ended it.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// Nothing that it started lives any more.
    Over {
        /// Whether something had to be killed after it was asked to stop.
        killed: bool,
    },
    /// It could not be started.
    Failed {
        /// Why.
        message: String,
    },
}
