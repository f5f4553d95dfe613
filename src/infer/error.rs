//! How the embedded engine fails, typed: callers tell a bad request from a bad
//! file from a full queue.

use std::any::Any;
use std::path::PathBuf;

use thiserror::Error;

/// A failure of the embedded engine.
#[derive(Debug, Clone, Error)]
pub enum InferError {
    /// A weight file, config or tokenizer is damaged, absent or of an unknown kind.
    #[error("cannot load {}: {reason}", path.display())]
    Load {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, expected against got.
        reason: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// A setting that this model or machine cannot honour.
    #[error("{0}")]
    Config(String),
    /// A request that can never be served as it is.
    #[error("{0}")]
    Request(String),
    /// The waiting queue is full.
    #[error("engine is busy: {waiting} requests are waiting, at most {limit} may")]
    Busy {
        /// Requests waiting now.
        waiting: usize,
        /// Bound on the queue.
        limit: usize,
    },
    /// A fault of our own, or of the machine.
    #[error("embedded engine failed: {0}")]
    Internal(String),
}

impl From<candle_core::Error> for InferError {
    fn from(error: candle_core::Error) -> Self {
        Self::Internal(error.to_string())
    }
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
