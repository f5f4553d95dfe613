//! One line of `events.jsonl`: what happened to the run beside its requests.

use serde::{Deserialize, Serialize};

use super::start::{PageCache, StartPhaseKind};
use crate::clock::Timestamp;
use crate::infer::telemetry::{GpuMemory, LoadPhaseKind};
use crate::plan::Cold;

use super::{GpuIdentity, ResourceSource};

/// An entry of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// When, on the run's clock.
    pub at_ns: Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: JournalEvent,
}

/// What can happen to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JournalEvent {
    /// The first line.
    RunStarted,
    /// An engine was made cold before a case.
    MadeCold {
        /// The case.
        case: u32,
        /// How long that took; not part of any latency.
        took_ns: u64,
        /// What the next request does not find in place; empty for the model alone.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cold: Vec<Cold>,
        /// What was seen that proves it, where it was not asked of the engine itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<String>,
    },
    /// An engine was warmed up before a case.
    WarmedUp {
        /// The case.
        case: u32,
        /// Bursts, after one request alone.
        num_bursts: u32,
        /// Requests in all.
        num_requests: u64,
        /// How long that took; not part of any latency.
        took_ns: u64,
        /// Whether its speed was flat at the end; `None` where the plan gives a number of bursts.
        settled: Option<bool>,
        /// Why it was not.
        reason: Option<String>,
    },
    /// A case began to measure.
    CaseStarted {
        /// The case.
        case: u32,
    },
    /// A case was measured to its end.
    CaseFinished {
        /// The case.
        case: u32,
        /// Processor time of this process during the case, user and system.
        client_cpu_ns: u64,
    },
    /// A case could not be measured, or not to its end.
    CaseFailed {
        /// The case.
        case: u32,
        /// Why.
        message: String,
    },
    /// Not all of a case's requests were sent, since nothing was left to decide.
    StoppedEarly {
        /// The case, which is complete.
        case: u32,
        /// Requests that were measured.
        num_requests: u64,
        /// What was decided.
        reason: String,
    },
    /// A case was left out as the run went.
    CaseSkipped {
        /// The case.
        case: u32,
        /// Why.
        reason: String,
    },
    /// A phase between a cold engine in this process and its first token;
    /// `at_ns` is its beginning.
    LoadPhase {
        /// Index of the engine in the manifest.
        engine: u32,
        /// Which phase.
        phase: LoadPhaseKind,
        /// How long it took.
        took_ns: u64,
        /// Bytes it went through, where that means something.
        bytes: Option<u64>,
    },
    /// Memory by part, as an engine in this process had loaded.
    Memory {
        /// Index of the engine in the manifest.
        engine: u32,
        /// Weights as the kernels compute with them.
        weight_bytes: u64,
        /// The KV pool.
        kv_bytes: u64,
        /// Resident memory of the whole process before loading.
        rss_before_bytes: Option<u64>,
        /// Resident memory of the whole process after loading.
        rss_after_bytes: Option<u64>,
    },
    /// Memory of a GPU by part, as an engine in this process had loaded on it.
    GpuMemory {
        /// Index of the engine in the manifest.
        engine: u32,
        /// The parts.
        #[serde(flatten)]
        memory: GpuMemory,
    },
    /// Steps or phases were not fetched in time and are in no file.
    TelemetryLost {
        /// Index of the engine in the manifest.
        engine: u32,
        /// How many.
        num_events: u64,
    },
    /// The client was measured against a scripted server; its requests are in `calibration.jsonl`.
    Calibrated {
        /// `before` or `after` the cases, or a scenario's name.
        part: String,
        /// Requests at once.
        concurrency: u32,
        /// How long that took.
        took_ns: u64,
        /// Processor time of this process meanwhile, the server's thread left out.
        client_cpu_ns: Option<u64>,
    },
    /// The client was not measured.
    NotCalibrated {
        /// `before` or `after` the cases, or a scenario's name.
        part: String,
        /// Why.
        reason: String,
    },
    /// An engine was started, or woken; `at_ns` is the instant before that.
    EngineStarted {
        /// Index of the engine in the manifest.
        engine: u32,
        /// The case that it was started for; absent for the start before the first case.
        case: Option<u32>,
        /// What it did not find in place.
        cold: Vec<Cold>,
        /// How much of its weight files was in the page cache, where the plan names them.
        page_cache: Option<PageCache>,
    },
    /// A phase of that start ended.
    StartPhase {
        /// Index of the engine in the manifest.
        engine: u32,
        /// As that of the start.
        case: Option<u32>,
        /// Which phase.
        phase: StartPhaseKind,
    },
    /// A phase inside an engine, as its log tells; `at_ns` is when the log was read.
    LogPhase {
        /// Index of the engine in the manifest.
        engine: u32,
        /// As that of the start.
        case: Option<u32>,
        /// Which phase, such as `weights` or `graph capture`.
        phase: String,
        /// How long it took, as the engine says.
        took_ns: u64,
    },
    /// An engine was stopped, put to sleep or unloaded; `at_ns` is when that was done.
    EngineStopped {
        /// Index of the engine in the manifest.
        engine: u32,
        /// How long it took.
        took_ns: u64,
        /// Whether it had to be killed.
        killed: bool,
    },
    /// An engine's process ended though nobody had asked it to; `at_ns` is when that was seen.
    EngineExited {
        /// Index of the engine in the manifest.
        engine: u32,
        /// Exit status, unless a signal ended it.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
        /// The last 64 KiB, at most, of its log.
        log_tail: String,
    },
    /// The probe began to look at resources.
    ProbeStarted {
        /// Time between two looks that was asked for.
        interval_ns: u64,
        /// The GPUs that it looks at.
        gpus: Vec<GpuIdentity>,
    },
    /// The probe cannot read something, from now on.
    ResourceAbsent {
        /// Where it would come from.
        source: ResourceSource,
        /// Index of the engine in the manifest that it is about, if one.
        engine: Option<u32>,
        /// What it is, in a few words.
        what: String,
        /// Why.
        reason: String,
    },
    /// The user asked to stop; what was measured is kept.
    Interrupted,
    /// The last line of a run that ended by itself.
    RunFinished,
}
