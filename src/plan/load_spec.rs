//! How a load is spelled, in a plan's `[[load]]` table and on the command line
//! alike. Nothing here is checked: [`super::LoadPlan::new`] does that.

use serde::{Deserialize, Serialize};

/// A `[[load]]` table.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadSpec {
    /// Name of the experiment that it becomes.
    pub name: Option<String>,
    /// `poisson`, `constant`, `gamma`, `trace` or `closed`.
    pub arrival: Option<String>,
    /// Arrivals a second.
    pub rate: Option<f64>,
    /// Rates to go through one after another, or `auto` to look for the capacity.
    pub sweep: Option<SweepSpec>,
    /// Shape of gamma gaps.
    pub burstiness: Option<f64>,
    /// Rate at the end of a ramp that begins at `rate`.
    pub ramp_to: Option<f64>,
    /// Length of the ramp; without it the whole duration.
    pub ramp_s: Option<f64>,
    /// Number of arrivals (conversations, where there are turns).
    pub requests: Option<u32>,
    /// No arrival after it.
    pub duration_s: Option<f64>,
    /// Bound on requests in flight in an open loop.
    pub max_in_flight: Option<u32>,
    /// Requests in flight in a closed loop.
    pub concurrency: Option<u32>,
    /// Prompt lengths.
    pub prompt_tokens: Option<LengthSpec>,
    /// Answer lengths.
    pub output_tokens: Option<LengthSpec>,
    /// Number of distinct shared prefixes.
    pub prefix_groups: Option<u32>,
    /// Length of each in tokens.
    pub prefix_tokens: Option<u32>,
    /// Turns of each conversation.
    pub turns: Option<u32>,
    /// Pause between an answer and the next turn.
    pub think_s: Option<f64>,
    /// ShareGPT-format file to take conversations from.
    pub dataset: Option<String>,
    /// Trace to replay.
    pub trace: Option<String>,
    /// `mooncake`, `burstgpt` or `requests`.
    pub trace_format: Option<String>,
    /// How many times faster than recorded a trace is replayed.
    pub speed: Option<f64>,
    /// Service-level objectives, with commas between them.
    pub slo: Option<String>,
}

/// Rates of a sweep.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum SweepSpec {
    /// These.
    Rates(Vec<f64>),
    /// `auto`.
    Word(String),
}

/// A length or a distribution of lengths.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum LengthSpec {
    /// Always as many tokens.
    Fixed(u32),
    /// See [`super::Lengths`].
    Text(String),
}

impl LengthSpec {
    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Fixed(tokens) => tokens.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}
