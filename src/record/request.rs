//! One line of `requests.jsonl`: a request, every token event, its outcome.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::engine::{ErrorClass, EventKind, FinishReason};

/// One request as it happened. Offsets (`*_ns` without `at`) count from
/// `sent_at_ns`; instants (`*_at_ns`) count from the run's clock origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestRecord {
    /// Index of the case in the manifest.
    pub case: u32,
    /// Index of the request within its case.
    pub index: u32,
    /// `true` for requests that only warm the engine up: never in statistics.
    pub warmup: bool,
    /// `true` for requests released while the engine was cold.
    pub cold: bool,
    /// Asked-for prompt length in tokens, where the prompt was synthetic.
    pub requested_prompt_tokens: Option<u32>,
    /// Asked-for upper bound on output tokens.
    pub max_tokens: u32,
    /// SHA-256 of the prompt as sent, in hex: equal prompts are visible without keeping them.
    pub prompt_sha256: String,
    /// When the driver meant to send it.
    pub intended_at_ns: Timestamp,
    /// `true` where it left late because as many as allowed were in flight.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// Which turn of its conversation, from 0, where there are conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<u32>,
    /// As its first byte was handed to the socket or queue; absent if nothing was sent.
    pub sent_at_ns: Option<Timestamp>,
    /// Response headers.
    pub headers_ns: Option<u64>,
    /// First byte of the response body.
    pub first_byte_ns: Option<u64>,
    /// End of the response or instant of the failure.
    pub done_ns: u64,
    /// Every event of the stream, in order.
    pub events: Vec<EventRecord>,
    /// Events beyond the bound, not kept.
    pub num_events_dropped: u64,
    /// Prompt tokens, template included.
    pub num_prompt_tokens: Option<u32>,
    /// Generated tokens.
    pub num_output_tokens: Option<u32>,
    /// Who counted.
    pub count_source: CountSource,
    /// Prompt tokens that the engine took from its prefix cache, where it says so.
    pub num_cached_tokens: Option<u32>,
    /// Why the engine stopped.
    pub finish_reason: Option<FinishReason>,
    /// How it ended.
    pub outcome: Outcome,
    /// Durations and counts the engine reports of itself, under its own names.
    pub server: BTreeMap<String, f64>,
    /// Generated text, content only.
    pub text: String,
}

/// One event: `[offset_ns, kind, num_tokens]` on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord(
    /// Nanoseconds since `sent_at_ns`.
    pub u64,
    /// What it carried.
    pub EventKind,
    /// Tokens in it, where known per event.
    pub Option<u32>,
);

/// Who counted the output tokens. Never the requested length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountSource {
    /// The engine's usage report.
    Server,
    /// The model's own tokenizer, over the generated text.
    Tokenizer,
    /// Nobody: counts are absent.
    None,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// The stream was complete.
    Ok,
    /// It failed; the events before the failure are kept.
    Error {
        /// Counted per case.
        class: ErrorClass,
        /// Names the thing, expected against got.
        message: String,
    },
}

impl Outcome {
    /// Whether the stream was complete.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        matches!(self, Self::Ok)
    }
}
