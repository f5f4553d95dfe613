//! What a step reports: tokens, scores and counts. Plain values; whoever
//! listens decides what becomes of them.

use super::host::TokenLogprobs;
use super::scheduler::StepWork;
use super::sequence::SequenceId;
use super::{InferError, StopReason};
use crate::clock::Timestamp;

/// What one step did.
#[derive(Debug)]
pub struct StepReport {
    /// When it began, before scheduling.
    pub started_at: Timestamp,
    /// When it ended, on the engine's clock.
    pub at: Timestamp,
    /// Tokens computed, prompts included.
    pub num_tokens: usize,
    /// Of those, tokens of prompts, or of what a preempted sequence computes
    /// again: all but the one token that a decoding sequence feeds back.
    pub num_prefill_tokens: usize,
    /// Sequences that took part.
    pub num_seqs: usize,
    /// What was computed, counted.
    pub work: StepWork,
    /// Prompt positions scored in this step.
    pub scores: Vec<PromptScores>,
    /// One entry for every sequence that drew a token or failed.
    pub outputs: Vec<StepOutput>,
}

/// Teacher-forced log-probabilities of a stretch of one prompt. A request is
/// scored in one or several steps, in order, each position once.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptScores {
    /// Whose prompt.
    pub id: SequenceId,
    /// When the request first took part in a step.
    pub first_scheduled_at: Timestamp,
    /// Position of the first entry: entry `i` scores the prompt's token at
    /// `first_position + i` given all before it.
    pub first_position: usize,
    /// One entry a position; none for a prompt of a single token.
    pub logprobs: Vec<TokenLogprobs>,
    /// Set when scores were all that was asked for (`max_tokens` 0) and these
    /// were the last: the request has left the engine, without a [`StepOutput`].
    pub stop: Option<StopReason>,
}

/// What a step did for one sequence.
#[derive(Debug)]
pub struct StepOutput {
    /// Which request.
    pub id: SequenceId,
    /// Which of its samples, from zero.
    pub sample: usize,
    /// When it first took part in a step.
    pub first_scheduled_at: Timestamp,
    /// Prompt tokens that came from the prefix cache when it was first
    /// admitted. A sample that shares its sibling's blocks took none from there.
    pub num_cached_tokens: usize,
    /// Its token, or why there is none; it has left the engine then.
    pub result: Result<DrawnToken, InferError>,
}

/// A token and what is known about it.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnToken {
    /// The token.
    pub id: u32,
    /// Its probability and the most likely tokens, if asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set when it was the last: the sequence has left the engine.
    pub stop: Option<StopReason>,
}

/// A snapshot of queue and pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreStats {
    /// Sequences in the batch.
    pub num_running: usize,
    /// Sequences in the queue.
    pub num_waiting: usize,
    /// Blocks that nobody holds, those with cached content included.
    pub num_free_blocks: usize,
    /// Of the free blocks, those whose content a prompt could still use.
    pub num_cached_blocks: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Slots of held blocks that hold no token: internal fragmentation.
    pub num_waste_slots: usize,
    /// Prompt tokens looked up in the prefix cache since the start, each
    /// sequence once.
    pub prefix_query_tokens: u64,
    /// Of those, tokens that were found and not computed.
    pub prefix_hit_tokens: u64,
    /// Sequences sent back to the queue since the start.
    pub num_preemptions: u64,
}
