//! What the journal keeps of an engine that yardstick started.

use serde::{Deserialize, Serialize};

/// A phase of a start, seen from outside; its instant is that of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartPhaseKind {
    /// A connection was accepted.
    PortOpen,
    /// The health route answered 200.
    Healthy,
    /// The model was in the list of models.
    ModelListed,
    /// An engine that slept says that it is awake.
    Awake,
}

/// How much of an engine's weight files was in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCache {
    /// Length of all files.
    pub bytes: u64,
    /// In memory before anything was done about it.
    pub before_bytes: u64,
    /// In memory as the engine was started.
    pub at_start_bytes: u64,
}

impl PageCache {
    /// Share of the weights that may be left for them to count as cold: a page or
    /// two of a header that somebody looked at cost nothing to read.
    const COLD_SHARE: f64 = 0.01;

    /// Share of the files that was in memory as the engine was started; `None` of no bytes.
    #[expect(clippy::cast_precision_loss, reason = "a share of bytes")]
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.at_start_bytes as f64 / self.bytes as f64)
    }

    /// Whether what was left is little enough.
    #[must_use]
    pub fn is_cold(&self) -> bool {
        self.share().is_none_or(|share| share <= Self::COLD_SHARE)
    }
}
