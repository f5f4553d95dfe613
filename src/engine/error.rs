//! How a request or an engine fails: a class that survives into the records,
//! a message that names the thing, and the remedy where there is one.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Kind of failure, counted per case in `summary.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// No connection: name not found, no route, connection refused or reset before anything was sent.
    Unreachable,
    /// No answer, or no next byte, within the limit.
    Timeout,
    /// The bytes are not what the protocol says: HTML, bad JSON, an oversized line.
    Protocol,
    /// The engine answered with an error status or an error event.
    Rejected,
    /// The engine is full and says so (429, 503, "server busy").
    Busy,
    /// The stream ended before it was complete.
    Truncated,
    /// Cancelled by the user.
    Cancelled,
    /// A fault inside the engine that was not caused by the request.
    Engine,
}

impl ErrorClass {
    /// The word used in files and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Rejected => "rejected",
            Self::Busy => "busy",
            Self::Truncated => "truncated",
            Self::Cancelled => "cancelled",
            Self::Engine => "engine",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure of a request or of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct EngineError {
    /// Counted in summaries.
    pub class: ErrorClass,
    /// Lower case, no full stop, naming the thing, expected against got.
    pub message: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl EngineError {
    /// A failure without a remedy.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: None }
    }

    /// The same failure with its remedy.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
