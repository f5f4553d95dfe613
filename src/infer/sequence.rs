//! A request inside the engine.

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
