//! `manifest.json`: what was measured where, written before the first request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::{EngineInfo, EngineSpec};

/// Everything about a run that is known before its first request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`super::SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Version of yardstick that measured.
    pub yardstick_version: String,
    /// Name of the run, part of its folder's name.
    pub name: String,
    /// Wall clock at the start, RFC 3339, UTC; a label, never subtracted.
    pub started_at: String,
    /// Where it ran.
    pub machine: Machine,
    /// Model card name or path that was asked for.
    pub model: String,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// The whole plan, as TOML.
    pub plan: String,
    /// SHA-256 of `plan`, in hex.
    pub plan_sha256: String,
    /// The engines, in plan order.
    pub engines: Vec<EngineRecord>,
    /// The cases in the order in which they run; `RequestRecord::case` indexes this.
    pub cases: Vec<CaseRecord>,
}

/// One engine of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineRecord {
    /// As asked for.
    pub spec: EngineSpec,
    /// As the engine described itself; absent if it could not be asked.
    pub info: Option<EngineInfo>,
    /// Why it could not be asked.
    pub error: Option<String>,
}

/// One case: an engine under one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseRecord {
    /// Name of the engine, as in `engines[].spec.name`.
    pub engine: String,
    /// Name of the experiment, such as `concurrent-warm`.
    pub experiment: String,
    /// Which repetition of the plan, from 0.
    #[serde(default)]
    pub round: u32,
    /// Whether it repeats, within its round, the same engine under the same load:
    /// the second arm of a comparison of the engine with itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Requests in the case, warm-up not counted.
    pub num_requests: u32,
    /// Whether the engine is made cold before it.
    pub cold: bool,
    /// Why it is not measured at all; `None` if it is.
    pub absent: Option<String>,
    /// The load, where it is none of the four experiments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<super::LoadRecord>,
    /// What is required of it, as `ttft_p90<500ms@99%`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<String>,
    /// Whether its load ends once all of that is decided; verdicts are then
    /// those of a sequential test.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_when_decided: bool,
}

/// Facts of the machine that measured; absent where they could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Operating system and architecture.
    pub os: String,
    /// Processor name.
    pub cpu: Option<String>,
    /// Logical processors this process may use.
    pub num_cpus: u32,
    /// Installed memory in bytes.
    pub memory_bytes: Option<u64>,
    /// One-minute load average at the start, times 100.
    pub load_average_percent: Option<u32>,
    /// SIMD sets that matter for CPU inference.
    pub cpu_features: Vec<String>,
    /// GPUs, by name; empty with a reason in `gpu_absent`.
    pub gpus: Vec<String>,
    /// Why no GPU is listed.
    pub gpu_absent: Option<String>,
    /// Anything else worth keeping, sorted.
    pub notes: BTreeMap<String, String>,
}
