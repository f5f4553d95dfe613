//! One line of `steps.jsonl`: a step of an engine that runs in this process.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// One step as the engine told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// Index of the engine in the manifest.
    pub engine: u32,
    /// When it began, before scheduling.
    pub at_ns: Timestamp,
    /// Scheduling, forward and sampling.
    pub took_ns: u64,
    /// Tokens computed.
    pub num_tokens: u64,
    /// Of those, tokens of prompts, or computed again after a preemption.
    pub num_prefill_tokens: u64,
    /// Sequences that took part.
    pub num_seqs: u64,
    /// Tokens whose K and V the decoding sequences read, their own included; null
    /// where an older yardstick wrote the line.
    #[serde(default)]
    pub num_decode_kv_tokens: Option<u64>,
    /// Pairs of a prompt token and a token that it attends to, itself included;
    /// likewise.
    #[serde(default)]
    pub num_prefill_pairs: Option<u64>,
    /// Sequences that wait after it.
    pub num_waiting: u64,
    /// KV blocks that sequences hold after it.
    pub num_used_blocks: u64,
    /// KV blocks that nobody holds.
    pub num_free_blocks: u64,
    /// Of the free blocks, those whose content a prompt could still use.
    pub num_cached_blocks: u64,
    /// Slots of held blocks that hold no token.
    pub num_waste_slots: u64,
    /// Sequences that it sent back to the queue.
    pub num_preemptions: u64,
    /// Resident memory of the whole process after it; null where it was read
    /// less than a tenth of a second before.
    pub rss_bytes: Option<u64>,
}
