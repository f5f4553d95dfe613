//! Bounds on a step, a sequence and the queue, and which requests they refuse.

use crate::infer::kv::KvSizing;
use crate::infer::{EngineConfig, InferError, InferRequest};

/// Prompt positions that are scored in one step: their logits are held all at
/// once, each a vocabulary wide.
const MAX_SCORED_ROWS: usize = 256;

/// Bounds on a step, a sequence and the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Sequences in one step.
    pub max_num_seqs: usize,
    /// Tokens in one step.
    pub max_num_batched_tokens: usize,
    /// Prompt positions scored in one step.
    pub max_scored_rows: usize,
    /// Tokens of one sequence, prompt and output.
    pub max_model_len: usize,
    /// Sequences beyond `max_num_seqs` that may wait.
    pub max_queue: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// Whether full blocks are found again by their content.
    pub enable_prefix_caching: bool,
}

impl SchedulerLimits {
    /// The bounds that `config` sets on a pool of `sizing`.
    #[must_use]
    pub const fn new(config: &EngineConfig, sizing: &KvSizing) -> Self {
        Self {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_scored_rows: MAX_SCORED_ROWS,
            max_model_len: sizing.max_model_len,
            max_queue: config.max_queue,
            num_blocks: sizing.num_blocks,
            block_size: sizing.block_size,
            enable_prefix_caching: config.enable_prefix_caching,
        }
    }

    /// Length at which `request` ends, `max_tokens` clipped by `max_model_len`.
    ///
    /// # Errors
    /// [`InferError::Request`] if it can never be served, however long it waits.
    pub fn max_len(&self, request: &InferRequest) -> Result<usize, InferError> {
        let prompt = request.prompt_ids.len();
        let is_score_only = request.max_tokens == 0;
        if is_score_only && prompt > self.max_model_len {
            return Err(InferError::Request(format!(
                "prompt of {prompt} tokens is longer than max_model_len, which is {}: shorten the \
                 prompt or raise max_model_len",
                self.max_model_len,
            )));
        }
        if !is_score_only && prompt >= self.max_model_len {
            return Err(InferError::Request(format!(
                "prompt of {prompt} tokens leaves no room for an output token: max_model_len is \
                 {}, shorten the prompt to {} or raise max_model_len",
                self.max_model_len,
                self.max_model_len.saturating_sub(1),
            )));
        }
        let max_len = prompt.saturating_add(request.max_tokens).min(self.max_model_len);
        // The token drawn last is never fed back, so it takes no slot.
        let num_slots = if is_score_only { prompt } else { max_len - 1 };
        let needed = num_slots.div_ceil(self.block_size);
        if needed > self.num_blocks {
            return Err(InferError::Request(format!(
                "request of {max_len} tokens needs {needed} KV blocks of {} tokens, the pool has \
                 {}: lower max_tokens or raise kv_blocks",
                self.block_size, self.num_blocks,
            )));
        }
        let max_live = self.max_num_seqs.saturating_add(self.max_queue);
        if request.n > max_live {
            return Err(InferError::Request(format!(
                "n is {}: at most {max_live} sequences may run and wait, lower n or raise \
                 max_queue",
                request.n,
            )));
        }
        Ok(max_len)
    }

    /// Refuses one more sequence when `num_live` run and wait already.
    ///
    /// # Errors
    /// [`InferError::Busy`].
    pub const fn check_queue(&self, num_live: usize) -> Result<(), InferError> {
        self.check_queue_for(num_live, 1)
    }

    /// Refuses `n` more sequences when `num_live` run and wait already and not
    /// all of them fit.
    ///
    /// # Errors
    /// [`InferError::Busy`].
    pub const fn check_queue_for(&self, num_live: usize, n: usize) -> Result<(), InferError> {
        let waiting = num_live.saturating_sub(self.max_num_seqs);
        if num_live.saturating_add(n) > self.max_num_seqs.saturating_add(self.max_queue) {
            return Err(InferError::Busy { waiting, limit: self.max_queue });
        }
        Ok(())
    }
}
