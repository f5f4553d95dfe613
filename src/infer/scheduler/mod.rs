//! Continuous batching: which sequences take part in the next step, and with
//! how many tokens. Owns the sequences and their blocks; knows no tensors.
//!
//! One step mixes decodes and chunks of prompts under one token budget, the
//! running sequences first and in the order of their arrival. When blocks run
//! out, the sequence that arrived last gives all of its own back and waits at
//! the head of the queue, to be computed again: from the prefix cache, as far
//! as nobody took its blocks meanwhile. The samples of a request are sequences
//! of their own. They enter when the first of them has computed the prompt,
//! and share its full blocks.

mod admission;
mod budget;
mod integrity;
mod limits;
mod work;

use std::collections::VecDeque;

use super::InferError;
use super::kv::prefix::{ChainHash, chain_hash};
use super::kv::{BlockError, BlockManager};
use super::sequence::{InferRequest, Sequence, SequenceId, StopReason};
use budget::Budget;
pub use limits::SchedulerLimits;
pub use work::StepWork;

/// A running sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Index into [`Scheduler::running`].
    pub index: usize,
    /// Tokens from `num_computed_tokens` on.
    pub num_tokens: usize,
    /// Of those, rows that score the prompt token after them.
    pub num_scored_rows: usize,
    /// Whether these are all that is left, so that a token is drawn, unless
    /// only scores are wanted.
    pub is_last: bool,
}

impl Chunk {
    /// Whether a token of `sequence`, whose chunk it is, is drawn from its last row.
    #[must_use]
    pub const fn draws(&self, sequence: &Sequence) -> bool {
        self.is_last && !sequence.is_score_only()
    }
}

/// Waiting and running sequences, and the pool they share.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    blocks: BlockManager,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    num_preemptions: u64,
    prefix_query_tokens: u64,
    prefix_hit_tokens: u64,
}

impl Scheduler {
    /// An idle scheduler over a free pool.
    #[must_use]
    pub fn new(limits: SchedulerLimits) -> Self {
        Self::with_hash(limits, chain_hash)
    }

    /// The same over a prefix cache that hashes by `hash`.
    #[must_use]
    pub fn with_hash(limits: SchedulerLimits, hash: ChainHash) -> Self {
        let mut blocks = BlockManager::new(limits.num_blocks, limits.block_size);
        if limits.enable_prefix_caching {
            blocks = blocks.with_prefix_caching(hash);
        }
        Self {
            limits,
            blocks,
            waiting: VecDeque::new(),
            running: Vec::new(),
            num_preemptions: 0,
            prefix_query_tokens: 0,
            prefix_hit_tokens: 0,
        }
    }

    /// Queues all samples of a request under `id`, which must be larger than
    /// all before it.
    ///
    /// # Errors
    /// [`InferError::Request`] if it can never fit, [`InferError::Busy`] if
    /// the queue has no room for all of its samples.
    pub fn add(&mut self, id: SequenceId, request: &InferRequest) -> Result<(), InferError> {
        let max_len = self.limits.max_len(request)?;
        self.limits.check_queue_for(self.running.len() + self.waiting.len(), request.n)?;
        let block_size = self.limits.block_size;
        let sample = |sample| Sequence::new(id, sample, request, max_len, block_size);
        self.waiting.extend((0..request.n).map(sample));
        Ok(())
    }

    /// Chooses the next step and reserves its blocks: running sequences first,
    /// then the head of the queue for as long as tokens, seats and blocks last.
    ///
    /// # Errors
    /// [`BlockError`] when the block accounting is broken.
    pub fn schedule(&mut self) -> Result<Vec<Chunk>, BlockError> {
        let mut chunks = Vec::with_capacity(self.running.len());
        let mut budget = Budget::new(&self.limits);
        let preempted_before = self.num_preemptions;
        let mut index = 0;
        while index < self.running.len() && !budget.is_spent() {
            let num_tokens = budget.chunk_len(&self.running[index]);
            if num_tokens > 0 {
                if !self.make_room(index, num_tokens)? {
                    break;
                }
                chunks.push(self.reserve(index, &mut budget)?);
            }
            index += 1;
        }
        // Whoever was just sent back would take the blocks of those who stayed.
        if self.num_preemptions == preempted_before {
            self.admit(&mut chunks, &mut budget)?;
        }
        Ok(chunks)
    }

    /// Notes that K and V of a chunk are in the cache, and its rows scored.
    pub fn advance(&mut self, chunk: Chunk) {
        let Some(sequence) = self.running.get_mut(chunk.index) else { return };
        let rows = sequence.scored_rows(chunk.num_tokens);
        sequence.num_scored_rows = sequence.num_scored_rows.max(rows.end);
        sequence.num_computed_tokens += chunk.num_tokens;
        let Sequence { block_table, token_ids, num_computed_tokens, .. } = sequence;
        self.blocks.note_computed(block_table, token_ids, *num_computed_tokens);
    }

    /// Appends a drawn token; says whether the sequence has reached its length.
    /// It keeps its blocks until it is removed.
    pub fn push_token(&mut self, index: usize, token: u32) -> Option<StopReason> {
        let sequence = self.running.get_mut(index)?;
        sequence.token_ids.push(token);
        (sequence.token_ids.len() >= sequence.max_len).then_some(StopReason::Length)
    }

    /// Takes all samples of a request out, running or waiting, and frees their
    /// blocks; false if there are none.
    ///
    /// # Errors
    /// [`BlockError`] when the block accounting is broken.
    pub fn remove(&mut self, id: SequenceId) -> Result<bool, BlockError> {
        self.remove_where(|sequence| sequence.id == id)
    }

    /// Takes one sample of a request out, as [`Scheduler::remove`] does all.
    ///
    /// # Errors
    /// [`BlockError`] when the block accounting is broken.
    pub fn remove_sample(&mut self, id: SequenceId, sample: usize) -> Result<bool, BlockError> {
        // Both are in the order of arrival, so that thousands who wait cost nothing.
        let name = |sequence: &Sequence| (sequence.id, sequence.sample);
        if let Ok(index) = self.running.binary_search_by_key(&(id, sample), name) {
            let mut sequence = self.running.remove(index);
            self.blocks.free(&mut sequence.block_table)?;
            return Ok(true);
        }
        let waiting = self.waiting.binary_search_by_key(&(id, sample), name);
        Ok(waiting.is_ok_and(|index| self.waiting.remove(index).is_some()))
    }

    /// Sequences in the batch, oldest first.
    #[must_use]
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// A running sequence, to note facts that do not concern scheduling.
    pub(super) fn running_mut(&mut self, index: usize) -> Option<&mut Sequence> {
        self.running.get_mut(index)
    }

    /// Sequences in the queue, next one first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Sequence> {
        self.waiting.iter()
    }

    /// The pool.
    #[must_use]
    pub const fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// The bounds in force.
    #[must_use]
    pub const fn limits(&self) -> &SchedulerLimits {
        &self.limits
    }

    /// Sequences sent back to the queue since the start.
    #[must_use]
    pub const fn num_preemptions(&self) -> u64 {
        self.num_preemptions
    }

    /// Prompt tokens that were looked up in the prefix cache when their
    /// sequence was first admitted, since the start.
    #[must_use]
    pub const fn prefix_query_tokens(&self) -> u64 {
        self.prefix_query_tokens
    }

    /// Of those, tokens that were found.
    #[must_use]
    pub const fn prefix_hit_tokens(&self) -> u64 {
        self.prefix_hit_tokens
    }

    /// Whether a step would do anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !(self.running.is_empty() && self.waiting.is_empty())
    }

    /// Preempts from the back until the sequence at `index` can have
    /// `num_tokens` more; false if it had to go itself.
    fn make_room(&mut self, index: usize, num_tokens: usize) -> Result<bool, BlockError> {
        while let Some(sequence) = self.running.get(index) {
            let len = sequence.num_computed_tokens + num_tokens;
            if self.blocks.can_append(&sequence.block_table, len) {
                return Ok(true);
            }
            self.preempt_last()?;
        }
        Ok(false)
    }

    fn preempt_last(&mut self) -> Result<(), BlockError> {
        if let Some(mut sequence) = self.running.pop() {
            self.blocks.free(&mut sequence.block_table)?;
            sequence.num_computed_tokens = 0;
            self.waiting.push_front(sequence);
            self.num_preemptions += 1;
        }
        Ok(())
    }

    fn reserve(&mut self, index: usize, budget: &mut Budget) -> Result<Chunk, BlockError> {
        let sequence = &mut self.running[index];
        let num_tokens = budget.chunk_len(sequence);
        let num_scored_rows = sequence.scored_rows(num_tokens).len();
        let len = sequence.num_computed_tokens + num_tokens;
        self.blocks.append(&mut sequence.block_table, len)?;
        budget.take(num_tokens, num_scored_rows);
        let is_last = num_tokens == sequence.num_uncomputed_tokens();
        Ok(Chunk { index, num_tokens, num_scored_rows, is_last })
    }

    fn remove_where(&mut self, is_gone: impl Fn(&Sequence) -> bool) -> Result<bool, BlockError> {
        let mut result = Ok(false);
        let blocks = &mut self.blocks;
        let mut keep = |sequence: &mut Sequence| {
            let is_gone = is_gone(sequence);
            if is_gone {
                match (blocks.free(&mut sequence.block_table), &mut result) {
                    (Ok(()), Ok(found)) => *found = true,
                    (Err(error), Ok(_)) => result = Err(error),
                    (_, Err(_)) => {}
                }
            }
            !is_gone
        };
        self.running.retain_mut(&mut keep);
        self.waiting.retain_mut(&mut keep);
        result
    }
}

#[cfg(test)]
mod state_machine;
#[cfg(test)]
mod tests;
