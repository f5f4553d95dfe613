//! What `manifest.json` says of a load beside the four experiments.

use serde::{Deserialize, Serialize};

/// When requests of a case arrived, and what they held. Fields that mean
/// nothing to a load are absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRecord {
    /// Its name in the plan; cases of a sweep share it.
    pub name: String,
    /// `constant`, `poisson`, `gamma`, `trace` or `closed`.
    pub arrival: String,
    /// Whether it goes through several rates, a case each.
    pub sweep: bool,
    /// Arrivals a second that were asked for, at the beginning of a ramp.
    pub rate_per_s: Option<f64>,
    /// The same at the end of the ramp.
    pub ramp_to_per_s: Option<f64>,
    /// Length of the ramp in seconds.
    pub ramp_s: Option<f64>,
    /// Shape of gamma gaps.
    pub burstiness: Option<f64>,
    /// Bound on arrivals.
    pub requests: Option<u32>,
    /// No arrival after so many seconds.
    pub duration_s: Option<f64>,
    /// How many times faster than recorded a trace was replayed.
    pub speed: Option<f64>,
    /// Bound on requests in flight.
    pub max_in_flight: Option<u32>,
    /// Distribution of prompt lengths in tokens.
    pub prompt_tokens: Option<String>,
    /// Distribution of answer lengths in tokens.
    pub output_tokens: Option<String>,
    /// Number of distinct shared prefixes.
    pub prefix_groups: Option<u32>,
    /// Length of each in tokens.
    pub prefix_tokens: Option<u32>,
    /// Turns of each conversation.
    pub turns: Option<u32>,
    /// Format of the file that requests were taken from.
    pub source: Option<String>,
    /// Service-level objectives.
    #[serde(default)]
    pub slos: Vec<String>,
}

impl LoadRecord {
    /// Whether requests arrive whatever the engine has not answered yet.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.arrival != "closed"
    }
}
