//! A request inside the engine, from its parameters to its tokens and blocks.

use super::InferError;
use super::kv::BlockTable;
use crate::clock::Timestamp;

/// Most likely tokens that may be asked for with each drawn one.
pub const MAX_LOGPROBS: usize = 100;

/// A request for the embedded engine: token ids in, token ids out.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// Prompt as token ids, at least one.
    pub prompt_ids: Vec<u32>,
    /// Bound on generated tokens, at least one.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Go on past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Report this many most likely tokens with each drawn one.
    pub logprobs: Option<usize>,
    /// Samples drawn from the same prompt, at least one. Sample `i` is seeded
    /// with `sampling.seed + i`.
    pub n: usize,
    /// Teacher-forced scoring: report this many most likely tokens at every
    /// prompt position after the first, beside the prompt's own token.
    pub prompt_logprobs: Option<usize>,
    /// Texts that end the output; they are not part of it.
    pub stop: Vec<String>,
}

impl InferRequest {
    /// A greedy request that stops at end-of-sequence tokens.
    #[must_use]
    pub fn new(prompt_ids: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt_ids,
            max_tokens,
            sampling: SamplingParams::default(),
            ignore_eos: false,
            logprobs: None,
            n: 1,
            prompt_logprobs: None,
            stop: Vec::new(),
        }
    }

    /// Checks what can be said without knowing the pool.
    ///
    /// # Errors
    /// [`InferError::Request`] names the field and its range.
    pub fn check(&self, vocab_size: usize) -> Result<(), InferError> {
        if self.prompt_ids.is_empty() {
            return refuse("prompt has no tokens: at least one is needed".to_owned());
        }
        if let Some(id) = self.prompt_ids.iter().find(|id| **id as usize >= vocab_size) {
            return refuse(format!("prompt token {id} is not in a vocabulary of {vocab_size}"));
        }
        if self.max_tokens == 0 {
            return refuse("max_tokens is 0: it must be at least 1".to_owned());
        }
        if let Some(count) = self.logprobs.filter(|count| *count > MAX_LOGPROBS) {
            return refuse(format!("logprobs is {count}: at most {MAX_LOGPROBS} are given"));
        }
        self.sampling.check()
    }
}

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus mass; 1 keeps everything.
    pub top_p: f64,
    /// Keep the k most likely; `None` keeps all.
    pub top_k: Option<usize>,
    /// Seed of this sequence's generator.
    pub seed: u64,
}

impl SamplingParams {
    fn check(&self) -> Result<(), InferError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse(format!(
                "temperature is {}: it must be a number from 0 up",
                self.temperature
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(format!("top_p is {}: it must lie in (0, 1]", self.top_p));
        }
        if self.top_k == Some(0) {
            return refuse("top_k is 0: it must be at least 1, or absent".to_owned());
        }
        Ok(())
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// An end-of-sequence token was drawn.
    Stop,
    /// `max_tokens` or `max_model_len` was reached.
    Length,
    /// It was aborted.
    Aborted,
}

/// Names a sequence for as long as the engine lives; later requests have larger ids.
pub type SequenceId = u64;

/// A request that was accepted, with what it has come to.
#[derive(Debug)]
pub struct Sequence {
    /// Its name.
    pub id: SequenceId,
    /// Prompt, then what was generated.
    pub token_ids: Vec<u32>,
    /// How many of them are the prompt.
    pub num_prompt_tokens: usize,
    /// Tokens whose K and V are in the cache.
    pub num_computed_tokens: usize,
    /// Tokens at which it ends with [`StopReason::Length`].
    pub max_len: usize,
    /// Its blocks. Empty while it waits.
    pub block_table: BlockTable,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Go on past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Report this many most likely tokens.
    pub logprobs: Option<usize>,
    /// When it first took part in a step.
    pub first_scheduled_at: Option<Timestamp>,
}

impl Sequence {
    /// A sequence that waits, with nothing computed.
    #[must_use]
    pub fn new(id: SequenceId, request: InferRequest, max_len: usize, block_size: usize) -> Self {
        Self {
            id,
            num_prompt_tokens: request.prompt_ids.len(),
            token_ids: request.prompt_ids,
            num_computed_tokens: 0,
            max_len,
            block_table: BlockTable::new(block_size),
            sampling: request.sampling,
            ignore_eos: request.ignore_eos,
            logprobs: request.logprobs,
            first_scheduled_at: None,
        }
    }

    /// Tokens whose K and V are still to be computed: the rest of the prompt,
    /// or the one token drawn last.
    #[must_use]
    pub const fn num_uncomputed_tokens(&self) -> usize {
        self.token_ids.len() - self.num_computed_tokens
    }

    /// Whether all that is left to compute is the token drawn last.
    #[must_use]
    pub const fn is_decoding(&self) -> bool {
        self.num_output_tokens() > 0 && self.num_uncomputed_tokens() == 1
    }

    /// Slots of its blocks that hold no token yet.
    #[must_use]
    pub const fn num_waste_slots(&self) -> usize {
        self.block_table.capacity().saturating_sub(self.num_computed_tokens)
    }

    /// Tokens generated so far.
    #[must_use]
    pub const fn num_output_tokens(&self) -> usize {
        self.token_ids.len() - self.num_prompt_tokens
    }
}

fn refuse(message: String) -> Result<(), InferError> {
    Err(InferError::Request(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_out_of_range_are_named() {
        let good = InferRequest::new(vec![1, 2], 1);
        assert!(good.check(3).is_ok());
        let sampling = |sampling| InferRequest { sampling, ..good.clone() };
        let default = SamplingParams::default();
        for (request, name) in [
            (InferRequest { prompt_ids: vec![], ..good.clone() }, "prompt"),
            (InferRequest { prompt_ids: vec![3], ..good.clone() }, "prompt token 3"),
            (InferRequest { max_tokens: 0, ..good.clone() }, "max_tokens"),
            (InferRequest { logprobs: Some(101), ..good.clone() }, "logprobs"),
            (sampling(SamplingParams { temperature: f64::NAN, ..default }), "temperature"),
            (sampling(SamplingParams { temperature: -1.0, ..default }), "temperature"),
            (sampling(SamplingParams { top_p: 0.0, ..default }), "top_p"),
            (sampling(SamplingParams { top_p: f64::NAN, ..default }), "top_p"),
            (sampling(SamplingParams { top_k: Some(0), ..default }), "top_k"),
        ] {
            let message = request.check(3).unwrap_err().to_string();
            assert!(message.contains(name), "{name} is not in: {message}");
        }
    }
}
