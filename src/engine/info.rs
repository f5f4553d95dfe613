//! What an engine says of itself, and what it can and cannot do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Identity and settings as the engine reports them; absent where it does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// Version string.
    pub version: Option<String>,
    /// The model's name as this engine knows it.
    pub model: String,
    /// Type of the weights in memory as the engine reports it: `f32`, `bf16`, `Q4_K_M`, ...
    pub precision: Option<String>,
    /// Longest sequence it accepts, in tokens.
    pub max_model_len: Option<u32>,
    /// `true` if the weights are seeded noise of the right shapes, not a trained model.
    pub dummy_weights: bool,
    /// Everything else it reports of itself, in its own words, sorted.
    pub settings: BTreeMap<String, String>,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What an engine can do; each "no" has a reason that is shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Takes prompts as token ids.
    pub token_id_prompts: Capability,
    /// Runs to `max_tokens` past an end-of-sequence token.
    pub ignore_eos: Capability,
    /// Can be made cold by yardstick.
    pub cold: Capability,
    /// Reports durations of its own.
    pub server_timings: Capability,
}

/// Present, or absent with a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "available", rename_all = "snake_case")]
pub enum Capability {
    /// It can.
    Yes,
    /// It cannot, and why.
    No {
        /// Shown to the user.
        reason: String,
    },
}

impl Capability {
    /// Absent, because of `reason`.
    pub fn no(reason: impl Into<String>) -> Self {
        Self::No { reason: reason.into() }
    }

    /// Whether it can.
    #[must_use]
    pub const fn is_yes(&self) -> bool {
        matches!(self, Self::Yes)
    }

    /// Why it cannot.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Yes => None,
            Self::No { reason } => Some(reason),
        }
    }
}
