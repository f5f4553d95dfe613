//! Submits what was asked for and follows its tokens, stop strings applied.
//! Knows no JSON.

use axum::http::StatusCode;

use super::error::ApiError;
use super::request::{Ask, Input};
use super::stop::{Shown, StopStrings};
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
}

/// What happens to a request, in order: tokens, then an end or a failure.
#[derive(Debug)]
pub(super) enum Step {
    /// Text that can be shown, maybe none, and the token that completed it.
    Text { text: String, token: Option<(u32, TokenLogprobs)> },
    /// The end.
    End { reason: &'static str },
    /// It failed.
    Failed(ApiError),
}

/// A running request.
pub(super) struct Follower {
    /// Dropping it aborts the request; gone once it ended.
    generation: Option<Generation>,
    stop: StopStrings,
    end: Option<&'static str>,
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
    let num_prompt_tokens = prompt_ids.len();
    let generation = host.submit(InferRequest {
        sampling: SamplingParams { seed: ask.seed.unwrap_or(fallback_seed), ..ask.sampling },
        ignore_eos: ask.ignore_eos,
        logprobs: ask.logprobs,
        ..InferRequest::new(prompt_ids, ask.max_tokens.unwrap_or(usize::MAX))
    })?;
    Ok(Follower {
        generation: Some(generation),
        stop: StopStrings::new(ask.stop),
        end: None,
        counts: Counts { num_prompt_tokens, num_output_tokens: 0 },
    })
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
        if let Some(reason) = self.end.take() {
            self.generation = None;
            return Some(Step::End { reason });
        }
        let event = self.generation.as_mut()?.next().await;
        match event {
            Some(GenerationEvent::Token { id, text, logprobs, .. }) => {
                self.counts.num_output_tokens += 1;
                let Shown { text, stopped } = self.stop.push(&text);
                if stopped {
                    self.end = Some("stop");
                }
                Some(Step::Text { text, token: logprobs.map(|logprobs| (id, logprobs)) })
            }
            Some(GenerationEvent::Done { reason, num_output_tokens, .. }) => {
                self.counts.num_output_tokens = num_output_tokens;
                self.done(reason)
            }
            Some(GenerationEvent::Failed(error)) => self.fail(error.into()),
            None => self.fail(ended("the engine ended without an answer")),
        }
    }

    fn done(&mut self, reason: StopReason) -> Option<Step> {
        let reason = match reason {
            StopReason::Stop => "stop",
            StopReason::Length => "length",
            StopReason::Aborted => return self.fail(ended("the engine gave the request up")),
        };
        let held = self.stop.finish();
        if held.is_empty() {
            self.generation = None;
            return Some(Step::End { reason });
        }
        self.end = Some(reason);
        Some(Step::Text { text: held, token: None })
    }

    fn fail(&mut self, error: ApiError) -> Option<Step> {
        self.generation = None;
        Some(Step::Failed(error))
    }
}

fn ended(message: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
}
