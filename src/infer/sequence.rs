//! A request inside the engine, from its parameters to its tokens and blocks.

use std::ops::Range;

use super::InferError;
use super::kv::BlockTable;
use crate::clock::Timestamp;

/// Most likely tokens that may be asked for with each drawn or scored one.
pub const MAX_LOGPROBS: usize = 100;

/// Samples that may be asked for of one prompt.
pub const MAX_SAMPLES: usize = 128;

/// A request for the embedded engine: token ids in, token ids out.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// Prompt as token ids, at least one.
    pub prompt_ids: Vec<u32>,
    /// Bound on generated tokens. At least one, unless the prompt is to be
    /// scored: then none means that nothing but scores is wanted.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Go on past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Report this many most likely tokens with each drawn one.
    pub logprobs: Option<usize>,
    /// Samples drawn from the same prompt, 1 to [`MAX_SAMPLES`]. Sample `i` is
    /// seeded with `sampling.seed + i`; each counts as a sequence.
    pub n: usize,
    /// Teacher-forced scoring: report this many most likely tokens at every
    /// prompt position after the first, beside the prompt's own token. The
    /// prompt is scored once, whatever `n` is, and computed in full.
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
        if self.max_tokens == 0 && self.prompt_logprobs.is_none() {
            return refuse(
                "max_tokens is 0: it must be at least 1, unless prompt_logprobs is set".to_owned(),
            );
        }
        if self.n == 0 || self.n > MAX_SAMPLES {
            return refuse(format!("n is {}: it must be from 1 to {MAX_SAMPLES}", self.n));
        }
        if self.max_tokens == 0 && self.n > 1 {
            return refuse(format!(
                "n is {} and max_tokens is 0: a prompt that is only scored has one sample",
                self.n
            ));
        }
        let counts = [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)];
        for (name, count) in counts {
            if let Some(count) = count.filter(|count| *count > MAX_LOGPROBS) {
                return refuse(format!("{name} is {count}: at most {MAX_LOGPROBS} are given"));
            }
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

/// One sample of a request that was accepted, with what it has come to.
#[derive(Debug)]
pub struct Sequence {
    /// Name of its request.
    pub id: SequenceId,
    /// Which of the request's samples.
    pub sample: usize,
    /// Prompt, then what was generated.
    pub token_ids: Vec<u32>,
    /// How many of them are the prompt.
    pub num_prompt_tokens: usize,
    /// Tokens whose K and V are in the cache.
    pub num_computed_tokens: usize,
    /// Prompt tokens that came from the prefix cache when it was first
    /// admitted; `None` before.
    pub num_cached_tokens: Option<usize>,
    /// Tokens at which it ends with [`StopReason::Length`].
    pub max_len: usize,
    /// Its blocks. Empty while it waits.
    pub block_table: BlockTable,
    /// How tokens are drawn, its own seed included.
    pub sampling: SamplingParams,
    /// Go on past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Report this many most likely tokens.
    pub logprobs: Option<usize>,
    /// Report this many most likely tokens at every prompt position.
    pub prompt_logprobs: Option<usize>,
    /// Rows of the prompt that have been scored. Row `i` scores token `i + 1`.
    pub num_scored_rows: usize,
    /// When it first took part in a step.
    pub first_scheduled_at: Option<Timestamp>,
}

impl Sequence {
    /// Sample `sample` of `request`, waiting, with nothing computed. The first
    /// one scores the prompt.
    #[must_use]
    pub fn new(
        id: SequenceId,
        sample: usize,
        request: &InferRequest,
        max_len: usize,
        block_size: usize,
    ) -> Self {
        let seed = request.sampling.seed.wrapping_add(sample as u64);
        Self {
            id,
            sample,
            num_prompt_tokens: request.prompt_ids.len(),
            token_ids: request.prompt_ids.clone(),
            num_computed_tokens: 0,
            num_cached_tokens: None,
            max_len,
            block_table: BlockTable::new(block_size),
            sampling: SamplingParams { seed, ..request.sampling },
            ignore_eos: request.ignore_eos,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs.filter(|_| sample == 0),
            num_scored_rows: 0,
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

    /// Whether K and V of the whole prompt are in the cache.
    #[must_use]
    pub const fn is_prompt_computed(&self) -> bool {
        self.num_computed_tokens >= self.num_prompt_tokens
    }

    /// Whether it ends with its prompt: only scores are wanted.
    #[must_use]
    pub const fn is_score_only(&self) -> bool {
        self.max_len == self.num_prompt_tokens
    }

    /// Whether rows of its prompt are still to be scored.
    #[must_use]
    pub const fn wants_scores(&self) -> bool {
        self.prompt_logprobs.is_some() && self.num_scored_rows + 1 < self.num_prompt_tokens
    }

    /// Positions among the next `num_tokens` whose logits score the token that
    /// follows them. None twice: a preempted sequence goes on where it was.
    #[must_use]
    pub fn scored_rows(&self, num_tokens: usize) -> Range<usize> {
        if !self.wants_scores() {
            return 0..0;
        }
        let start = self.num_computed_tokens.max(self.num_scored_rows);
        let end = (self.num_computed_tokens + num_tokens).min(self.num_prompt_tokens - 1);
        start..end.max(start)
    }

    /// Tokens at the front that may come from blocks of others: at least one
    /// is computed, for its logits, and so is whatever is to be scored.
    #[must_use]
    pub const fn max_shared_tokens(&self) -> usize {
        if self.wants_scores() { self.num_scored_rows } else { self.token_ids.len() - 1 }
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
        let score_only = InferRequest { max_tokens: 0, prompt_logprobs: Some(0), ..good.clone() };
        assert!(score_only.check(3).is_ok());
        let sampling = |sampling| InferRequest { sampling, ..good.clone() };
        let default = SamplingParams::default();
        for (request, name) in [
            (InferRequest { prompt_ids: vec![], ..good.clone() }, "prompt"),
            (InferRequest { prompt_ids: vec![3], ..good.clone() }, "prompt token 3"),
            (InferRequest { max_tokens: 0, ..good.clone() }, "max_tokens"),
            (InferRequest { logprobs: Some(101), ..good.clone() }, "logprobs"),
            (InferRequest { prompt_logprobs: Some(101), ..good.clone() }, "prompt_logprobs is 101"),
            (InferRequest { n: 0, ..good.clone() }, "n is 0"),
            (InferRequest { n: 129, ..good.clone() }, "n is 129"),
            (InferRequest { n: 2, ..score_only.clone() }, "n is 2"),
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

    #[test]
    fn every_row_but_the_last_scores_its_successor_once() {
        let request = InferRequest { prompt_logprobs: Some(1), ..InferRequest::new(vec![1; 6], 2) };
        let mut sequence = Sequence::new(0, 0, &request, 8, 4);
        assert_eq!(sequence.scored_rows(4), 0..4);
        assert_eq!(sequence.scored_rows(6), 0..5);
        sequence.num_scored_rows = 3;
        assert_eq!(sequence.scored_rows(2), 3..3, "scored before it was preempted");
        assert_eq!(sequence.scored_rows(6), 3..5);
        assert_eq!(sequence.max_shared_tokens(), 3);
        sequence.num_scored_rows = 5;
        assert!(sequence.scored_rows(6).is_empty());
        assert_eq!(sequence.max_shared_tokens(), 5);
        assert!(Sequence::new(0, 1, &request, 8, 4).scored_rows(6).is_empty());
    }
}
