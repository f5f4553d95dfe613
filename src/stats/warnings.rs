//! Facts a reader must know before believing a number, as values: found here,
//! rendered in one place, each with advice.

use serde::{Deserialize, Serialize};

/// One warning about a run, an engine or a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// What kind of fact.
    pub class: WarningClass,
    /// Engine it is about, if one.
    pub engine: Option<String>,
    /// Experiment it is about, if one.
    pub experiment: Option<String>,
    /// The fact with its numbers.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

/// Kinds of warning; the words are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarningClass {
    /// Too few requests for a tail percentile.
    FewSamples,
    /// Some requests failed: latencies are those of the survivors.
    Failures,
    /// Engines differ in weight precision.
    UnequalPrecision,
    /// The engine serves another model than the run's.
    OtherModel,
    /// Answers ended before `max_tokens`.
    ShortOutputs,
    /// Engines counted different prompt lengths for the same prompts.
    UnequalPrompts,
    /// Prompts reached the engine's model shorter than they were.
    ContextTruncated,
    /// Engines accept sequences of different length.
    UnequalContext,
    /// The engine serves fewer requests at once than it was sent.
    FewerSlots,
    /// Cases that measured something else than was asked for.
    InvalidCases,
    /// The engine reused cached prompt tokens.
    PrefixCacheHit,
    /// Several tokens a chunk: gaps are not token gaps.
    MultiTokenChunks,
    /// Output tokens were counted by us or by nobody.
    CountSource,
    /// Weights are noise: speeds are real, texts are not.
    DummyWeights,
    /// The GPU was emulated: times mean nothing.
    EmulatedGpu,
    /// Decode steps on a GPU were submitted operation by operation.
    NoCudaGraphs,
    /// The opening burst was spread more than 1 % of the median TTFT.
    SendSpread,
    /// The machine was busy when the run began.
    BusyMachine,
    /// The engine's speed was not flat when a warm case began.
    NotSettled,
    /// Something held a GPU's clocks down while a case was measured.
    Throttled,
    /// Another engine held memory while one was measured.
    SharedMemory,
    /// A cold start found its weights in the page cache.
    PageCacheWarm,
    /// The client used most of its processor.
    ClientSaturated,
    /// Requests of an open loop left later than they were to.
    LateArrivals,
    /// Requests of an open loop waited here, as many as allowed being in flight.
    InFlightBound,
    /// The run did not reach its end.
    Incomplete,
}
