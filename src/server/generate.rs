//! Submits what was asked for and follows its samples. Knows no JSON.

use std::collections::VecDeque;

use axum::http::StatusCode;

use super::error::ApiError;
use super::request::{Ask, Input};
use crate::infer::host::TokenLogprobs;
use crate::infer::{
    EngineHost, Generation, GenerationEvent, InferError, InferRequest, SamplingParams, StopReason,
    Tokenizer,
};

/// Text above which tokenizing leaves the thread that serves everyone: a few
/// milliseconds' worth.
const LARGE_TEXT_BYTES: usize = 16 << 10;

/// Counts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) num_prompt_tokens: usize,
    pub(super) num_output_tokens: usize,
    /// Known at the end only.
    pub(super) num_cached_tokens: Option<usize>,
}

/// What happens to a request, in order: its prompt, tokens, then an end or a failure.
#[derive(Debug)]
pub(super) enum Step {
    /// The prompt can be shown, with its scores if they were asked for; comes
    /// if these or an echo were.
    Prompt { logprobs: Vec<TokenLogprobs> },
    /// Text of a sample that can be shown, maybe none, and the token that completed it.
    Text { sample: usize, text: String, token: Option<(u32, TokenLogprobs)> },
    /// A sample ended.
    SampleEnd { sample: usize, reason: &'static str },
    /// All samples ended.
    End,
    /// It failed.
    Failed(ApiError),
}

/// A running request.
pub(super) struct Follower {
    /// Dropping it aborts the request; gone once it ended.
    generation: Option<Generation>,
    /// Steps that are known already.
    ready: VecDeque<Step>,
    /// Samples that never draw a token, and so end with the request.
    num_without_tokens: usize,
    pub(super) prompt_ids: Vec<u32>,
    pub(super) counts: Counts,
}

/// Tokenizes, checks and submits.
///
/// # Errors
/// 400 for a prompt that can never fit, 503 when the queue is full.
pub(super) async fn submit(
    host: &EngineHost,
    ask: Ask,
    fallback_seed: u64,
) -> Result<Follower, ApiError> {
    let prompt_ids = prompt_ids(host.tokenizer(), ask.input).await?;
    let max_tokens = ask.max_tokens.unwrap_or(usize::MAX);
    // An echo with log-probabilities has those of the prompt too.
    let echoed = if ask.echo { ask.logprobs } else { None };
    let wanted = ask.prompt_logprobs.max(echoed);
    // Where nothing is generated, to score the prompt is what the engine does.
    let scored = if max_tokens == 0 { Some(wanted.unwrap_or(0)) } else { wanted };
    let counts = Counts { num_prompt_tokens: prompt_ids.len(), ..Counts::default() };
    let generation = host.submit(InferRequest {
        sampling: SamplingParams { seed: ask.seed.unwrap_or(fallback_seed), ..ask.sampling },
        ignore_eos: ask.ignore_eos,
        logprobs: ask.logprobs,
        n: ask.n,
        stop: ask.stop,
        prompt_logprobs: scored,
        ..InferRequest::new(prompt_ids.clone(), max_tokens)
    })?;
    let mut ready = VecDeque::new();
    if ask.echo && scored.is_none() {
        ready.push_back(Step::Prompt { logprobs: Vec::new() });
    }
    let num_without_tokens = if max_tokens == 0 { ask.n } else { 0 };
    Ok(Follower { generation: Some(generation), ready, num_without_tokens, prompt_ids, counts })
}

async fn prompt_ids(tokenizer: &Tokenizer, input: Input) -> Result<Vec<u32>, ApiError> {
    match input {
        Input::Ids(ids) => Ok(ids),
        // The tokenizer adds what the model wants at the start of a sequence.
        Input::Text(text) => encode(tokenizer, text, true).await,
        // The template says all that is to be said.
        Input::Chat(messages) => {
            let text = tokenizer
                .apply_chat_template(&messages)
                .map_err(|error| ApiError::bad_request(error.to_string()))?;
            encode(tokenizer, text, false).await
        }
    }
}

async fn encode(tokenizer: &Tokenizer, text: String, special: bool) -> Result<Vec<u32>, ApiError> {
    let bad = |error: InferError| ApiError::bad_request(error.to_string());
    if text.len() < LARGE_TEXT_BYTES {
        return tokenizer.encode(&text, special).map_err(bad);
    }
    let tokenizer = tokenizer.clone();
    match tokio::task::spawn_blocking(move || tokenizer.encode(&text, special)).await {
        Ok(encoded) => encoded.map_err(bad),
        Err(error) => Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the tokenizer failed: {error}"),
        )),
    }
}

impl Follower {
    /// The next step; `None` after the end or a failure.
    pub(super) async fn next(&mut self) -> Option<Step> {
        if let Some(step) = self.ready.pop_front() {
            return Some(step);
        }
        let event = self.generation.as_mut()?.next().await;
        match event {
            Some(GenerationEvent::PromptLogprobs { logprobs, .. }) => {
                Some(Step::Prompt { logprobs })
            }
            Some(GenerationEvent::Token { sample, id, text, logprobs, stop, .. }) => {
                self.counts.num_output_tokens += 1;
                if let Some(reason) = stop {
                    match word(reason) {
                        Ok(reason) => self.ready.push_back(Step::SampleEnd { sample, reason }),
                        Err(error) => return self.fail(error),
                    }
                }
                let token = logprobs.map(|logprobs| (id, logprobs));
                Some(Step::Text { sample, text, token })
            }
            Some(GenerationEvent::Done {
                reason, num_output_tokens, num_cached_tokens, ..
            }) => {
                self.counts.num_output_tokens = num_output_tokens;
                self.counts.num_cached_tokens = Some(num_cached_tokens);
                self.done(reason)
            }
            Some(GenerationEvent::Failed(error)) => self.fail(error.into()),
            None => self.fail(ended("the engine ended without an answer")),
        }
    }

    fn done(&mut self, reason: StopReason) -> Option<Step> {
        let reason = match word(reason) {
            Ok(reason) => reason,
            Err(error) => return self.fail(error),
        };
        self.generation = None;
        let ends = 0..self.num_without_tokens;
        self.ready.extend(ends.map(|sample| Step::SampleEnd { sample, reason }));
        self.ready.push_back(Step::End);
        self.ready.pop_front()
    }

    fn fail(&mut self, error: ApiError) -> Option<Step> {
        self.generation = None;
        self.ready.clear();
        Some(Step::Failed(error))
    }
}

/// A reason as clients read it.
fn word(reason: StopReason) -> Result<&'static str, ApiError> {
    match reason {
        StopReason::Stop => Ok("stop"),
        StopReason::Length => Ok("length"),
        StopReason::Aborted => Err(ended("the engine gave the request up")),
    }
}

fn ended(message: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
}
