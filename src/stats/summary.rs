//! The shape of `summary.json`: what is derived from a run's raw lines. These
//! names are an interface that scripts lean on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::ErrorClass;

use super::capacity::Capacity;
use super::client_error::ClientErrors;
use super::cold_start::ColdStart;
use super::compare::Comparison;
use super::compare::cells::NotCompared;
use super::contract::Work;
use super::gates::Gate;
use super::inside::Inside;
use super::kv_capacity::KvCapacity;
use super::kv_sweep::KvSweep;
use super::open_loop::LoadSummary;
use super::resources::Resources;
use super::warnings::{Warning, WarningClass};
use super::window::CommonWindow;

/// Everything derived from one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Schema of the run files.
    pub schema_version: u32,
    /// Name of the run.
    pub name: String,
    /// Label from the manifest.
    pub started_at: String,
    /// Model that was asked for.
    pub model: String,
    /// `false` if the run was interrupted or crashed before its end.
    pub complete: bool,
    /// One entry a case that was measured, in the manifest's order.
    pub cases: Vec<CaseSummary>,
    /// The same with the rounds of each put together; empty where there is one round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over_rounds: Vec<CaseSummary>,
    /// Cases over the beginnings that their answers have in common; empty where all answers to a
    /// prompt have one length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub common_window: Vec<CommonWindow>,
    /// Whether the engines did the same work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contract: Vec<Work>,
    /// Cases that were not measured, each with its reason.
    pub absent: Vec<AbsentCase>,
    /// What HTTP adds: the embedded engine over HTTP against itself in process.
    pub http_cost: Vec<HttpCost>,
    /// Sweeps over rates, one an engine and load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capacity: Vec<Capacity>,
    /// What the KV memory of each engine holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv_capacity: Vec<KvCapacity>,
    /// Sweeps over KV settings, one an engine, load and curve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv_sweep: Vec<KvSweep>,
    /// Engines compared with the first one of their load, over the rounds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Comparison>,
    /// What is in no comparison, where there are rounds to compare over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_compared: Vec<NotCompared>,
    /// What was required, and whether it was shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Gate>,
    /// Cold starts by phase.
    #[serde(default)]
    pub cold_starts: Vec<ColdStart>,
    /// What engines in this process told of themselves.
    #[serde(default)]
    pub inside: Vec<Inside>,
    /// What our own client adds, as measured before and after the cases.
    #[serde(default)]
    pub client_error: Option<ClientErrors>,
    /// What was used meanwhile; absent in a run without a probe.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// What a reader must know before believing the numbers.
    pub warnings: Vec<Warning>,
}

impl Summary {
    /// What tables and verdicts are made of: the rounds of each case put together, without the
    /// second arms of engines compared with themselves.
    pub fn shown(&self) -> impl Iterator<Item = &CaseSummary> {
        let shown = if self.over_rounds.is_empty() { &self.cases } else { &self.over_rounds };
        shown.iter().filter(|case| !case.again)
    }
}

/// One engine under one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseSummary {
    /// Index in the manifest.
    pub case: u32,
    /// Engine name.
    pub engine: String,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Which repetition of the plan, from 0.
    #[serde(default)]
    pub round: u32,
    /// Rounds that were put together, invalid ones left out; absent for one round alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_rounds: Option<u32>,
    /// Whether it is the second arm of a comparison of the engine with itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// Why its numbers are no measurement of what was asked for; such a case is
    /// shown, and neither compared nor averaged with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invalid: Vec<Invalid>,
    /// Whether the engine was cold at the start.
    pub cold: bool,
    /// Measured requests, failed ones included; warm-up not.
    pub n: u64,
    /// Requests that completed: the latencies are over these.
    pub num_ok: u64,
    /// Failed requests by class.
    pub errors: BTreeMap<ErrorClass, u64>,
    /// Time to first token, from `sent_at`.
    pub ttft_ms: Distribution,
    /// Time per output token after the first, per request.
    pub tpot_ms: Distribution,
    /// Gaps between consecutive token-bearing events, pooled over requests.
    pub itl_ms: Distribution,
    /// End to end latency, from `sent_at`.
    pub e2el_ms: Distribution,
    /// 1 / TPOT, per stream.
    pub decode_tokens_per_s: Distribution,
    /// TTFT of the request that met the cold engine first; absent in warm cases.
    pub cold_ttft_ms: Option<f64>,
    /// Output tokens over the whole case, first send to last token.
    pub output_tokens_per_s: Option<f64>,
    /// The same over the window in which all `concurrency` streams were
    /// generating; absent where there is none, with the reason beside it.
    pub steady_output_tokens_per_s: Option<f64>,
    /// Why there is no steady window.
    pub steady_absent: Option<String>,
    /// Requests completed per second over the whole case.
    pub requests_per_s: Option<f64>,
    /// Last minus first `sent_at` of the opening burst; absent for one request at a time.
    pub send_spread_us: Option<f64>,
    /// Output tokens per token-bearing event: above 1, several tokens come in a chunk.
    pub tokens_per_event: Option<f64>,
    /// Mean of prompt tokens as counted.
    pub mean_prompt_tokens: Option<f64>,
    /// Mean of output tokens as counted.
    pub mean_output_tokens: Option<f64>,
    /// Share of one processor that this process used during the case. For the
    /// embedded engine that includes the engine.
    pub client_cpu_share: Option<f64>,
    /// The queueing staircase, where TTFT shows one: parallel slots and time per generation.
    pub staircase: Option<Staircase>,
    /// How the engine was warmed up just before it; absent where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUpSummary>,
    /// Why not all of its requests were sent; absent where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_early: Option<String>,
    /// What a load beside the four experiments adds.
    #[serde(flatten)]
    pub under_load: LoadSummary,
}

/// The warm-up before a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WarmUpSummary {
    /// Bursts, after one request alone.
    pub num_bursts: u32,
    /// Requests in all.
    pub num_requests: u64,
    /// How long it took.
    pub took_ms: f64,
    /// Whether it was flat at its end; null where nobody asked.
    pub settled: Option<bool>,
    /// Why it was not.
    pub reason: Option<String>,
}

/// Why a case's numbers mean nothing beside others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalid {
    /// Of which kind the reason is.
    pub class: WarningClass,
    /// The fact with its numbers.
    pub reason: String,
}

/// A set of values with its size and how sure we are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Number of values.
    pub n: u64,
    /// Arithmetic mean; absent for n = 0.
    pub mean: Option<f64>,
    /// Median, by linear interpolation; absent for n = 0.
    pub p50: Option<f64>,
    /// Absent where n is too small for an interval.
    pub p90: Option<f64>,
    /// Absent where n is too small for an interval.
    pub p99: Option<f64>,
    /// Smallest value.
    pub min: Option<f64>,
    /// Largest value.
    pub max: Option<f64>,
    /// Interval of the median.
    pub interval: Option<Interval>,
    /// Interval of the 90th percentile.
    pub p90_interval: Option<Interval>,
    /// Interval of the 99th percentile.
    pub p99_interval: Option<Interval>,
    /// Field name to the reason why it is null.
    pub reasons: BTreeMap<String, String>,
}

/// A distribution-free confidence interval from order statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// `p50`, `p90` or `p99`.
    pub of: String,
    /// Coverage asked for, 0.95.
    pub level: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// A case that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbsentCase {
    /// Engine name.
    pub engine: String,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Why.
    pub reason: String,
}

/// The embedded engine over HTTP minus itself in process, medians of the same case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpCost {
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Engine in process.
    pub in_process: String,
    /// The same engine over HTTP.
    pub over_http: String,
    /// Difference of the TTFT medians.
    pub ttft_ms: Option<f64>,
    /// Difference of the TPOT medians.
    pub tpot_ms: Option<f64>,
    /// Difference of the E2EL medians.
    pub e2el_ms: Option<f64>,
    /// Whether the TTFT intervals of the two overlap, so that the difference may be noise; null
    /// for bursts, whose requests are no independent sample.
    pub ttft_intervals_overlap: Option<bool>,
}

/// TTFT in steps of a whole generation: a fixed number of parallel slots with a queue before them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Staircase {
    /// Requests served at once.
    pub slots: u32,
    /// Height of a step in milliseconds: one generation.
    pub step_ms: f64,
}
