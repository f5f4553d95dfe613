//! The experiments, by the names of the original study.

use std::fmt;
use std::str::FromStr;

use super::PlanError;

/// A load put on an engine in a known state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Experiment {
    /// One request after another, the first against a cold engine.
    SequentialCold,
    /// All at once against a cold engine.
    ConcurrentCold,
    /// All at once against a warm engine.
    ConcurrentWarm,
    /// 1, 2, ... up to the concurrency at once against a warm engine.
    BatchedWarm,
}

impl Experiment {
    /// Every experiment, in the order in which they run.
    pub const ALL: [Self; 4] =
        [Self::SequentialCold, Self::ConcurrentCold, Self::ConcurrentWarm, Self::BatchedWarm];

    /// The name used on the command line and in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SequentialCold => "sequential-cold",
            Self::ConcurrentCold => "concurrent-cold",
            Self::ConcurrentWarm => "concurrent-warm",
            Self::BatchedWarm => "batched-warm",
        }
    }

    /// One line about it.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::SequentialCold => {
                "10 requests one after another, the first against a cold engine"
            }
            Self::ConcurrentCold => "10 requests at once against a cold engine",
            Self::ConcurrentWarm => "10 requests at once against a warm engine",
            Self::BatchedWarm => "1, 2, ... 10 requests at once against a warm engine",
        }
    }

    /// Whether the engine is made cold before it.
    #[must_use]
    pub const fn is_cold(self) -> bool {
        matches!(self, Self::SequentialCold | Self::ConcurrentCold)
    }

    /// All names, for messages.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Experiment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Experiment {
    type Err = PlanError;

    fn from_str(name: &str) -> Result<Self, PlanError> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == name)
            .ok_or_else(|| PlanError::UnknownExperiment { name: name.to_owned() })
    }
}
