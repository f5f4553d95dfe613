//! What a caller sees of a running request: its events, in order, to the end.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{InferError, StopReason};
use crate::clock::Timestamp;

/// A running request. Dropping it aborts the request.
pub struct Generation {
    pub(super) events: mpsc::Receiver<GenerationEvent>,
}

impl Generation {
    /// The next event; `None` after [`GenerationEvent::Done`] or an error.
    pub async fn next(&mut self) -> Option<GenerationEvent> {
        self.events.recv().await
    }

    /// The next event, blocking this thread: for callers without a runtime.
    pub fn blocking_next(&mut self) -> Option<GenerationEvent> {
        self.events.blocking_recv()
    }
}

/// What a running request reports: the prompt's scores if they were asked for,
/// then the tokens of all samples as they are drawn, then one end or failure.
#[derive(Debug, Clone)]
pub enum GenerationEvent {
    /// The prompt is scored; once, before any token.
    PromptLogprobs {
        /// When the step that completed it ended, on the engine's clock.
        at: Timestamp,
        /// Entry `i` scores prompt token `i + 1` given all before it; the first
        /// token has nothing before it.
        logprobs: Vec<TokenLogprobs>,
    },
    /// A token was drawn.
    Token {
        /// When the step that drew it ended, on the engine's clock.
        at: Timestamp,
        /// Which sample it belongs to, from zero.
        sample: usize,
        /// The token.
        id: u32,
        /// Text that was decided with it: none inside a character that spans
        /// tokens or within what may become a stop text, and then that of
        /// several tokens at once. End-of-sequence tokens have none.
        text: String,
        /// Natural-log probability of `id` and of the most likely tokens, if asked for.
        logprobs: Option<TokenLogprobs>,
        /// Why the sample ended, if this was its last token.
        stop: Option<StopReason>,
    },
    /// All samples ended.
    Done {
        /// When.
        at: Timestamp,
        /// Why: [`StopReason::Aborted`] if it was given up, else the reason of
        /// the sample that ended last.
        reason: StopReason,
        /// Prompt tokens.
        num_prompt_tokens: usize,
        /// Of those, tokens whose K and V came from the prefix cache.
        num_cached_tokens: usize,
        /// Tokens drawn over all samples, end-of-sequence tokens and those of a
        /// stop text included.
        num_output_tokens: usize,
        /// Where the time went.
        timings: RequestTimings,
    },
    /// It failed.
    Failed(InferError),
}

/// Log-probabilities at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that was drawn, or that stands there in a scored prompt.
    pub logprob: f32,
    /// Most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Where a request's time went, on the engine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestTimings {
    /// Submitted to first scheduled; includes loading if it met a cold engine.
    pub queue: Duration,
    /// Of that, waiting for the weights to load.
    pub load: Duration,
    /// First scheduled to first token, or to the last score where none is drawn.
    pub prefill: Duration,
    /// First token to last.
    pub decode: Duration,
}
