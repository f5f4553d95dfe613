//! What was observed of one request, stamped as it arrived. Statistics are
//! derived elsewhere; nothing here is an average.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EngineError;
use crate::clock::Timestamp;

/// One event of a response stream. `at` is taken as `read` returns, before the
/// bytes are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenEvent {
    /// Arrival instant.
    pub at: Timestamp,
    /// What it carried.
    pub kind: EventKind,
    /// Generated tokens in it, where the engine says so or it is known from
    /// token ids; `None` where only usage at the end tells.
    pub num_tokens: Option<u32>,
}

/// What an event carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A chunk without generated text, such as the role-only first chunk: no token.
    Empty,
    /// Generated text that is shown to the user.
    Content,
    /// Generated text of a reasoning model's hidden part: also tokens.
    Reasoning,
    /// The chunk that carries the finish reason and no text.
    Finish,
    /// The usage chunk.
    Usage,
}

impl EventKind {
    /// Whether the event carries at least one generated token.
    #[must_use]
    pub const fn is_token(self) -> bool {
        matches!(self, Self::Content | Self::Reasoning)
    }
}

/// Why generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token or a stop string.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// Anything else, in the engine's own word.
    #[serde(untagged)]
    Other(String),
}

impl FinishReason {
    /// Reads the engine's word.
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "stop" => Self::Stop,
            "length" => Self::Length,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The word used in files and tables.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Other(word) => word,
        }
    }
}

/// Token counts as the engine reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, template included.
    pub num_prompt_tokens: Option<u32>,
    /// Generated tokens.
    pub num_output_tokens: Option<u32>,
    /// Prompt tokens that came from a prefix cache.
    pub num_cached_tokens: Option<u32>,
}

/// Everything observed of one request.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// As the first byte of the request is handed to the socket (or the
    /// in-process queue); `None` if nothing was sent.
    pub sent_at: Option<Timestamp>,
    /// Response headers.
    pub headers_at: Option<Timestamp>,
    /// First byte of the response body.
    pub first_byte_at: Option<Timestamp>,
    /// End of the response, or the instant of the failure.
    pub done_at: Timestamp,
    /// In order of arrival, bounded by [`MAX_EVENTS`].
    pub events: Vec<TokenEvent>,
    /// Events beyond [`MAX_EVENTS`], counted and not kept.
    pub num_events_dropped: u64,
    /// Why the engine stopped, if it said so.
    pub finish_reason: Option<FinishReason>,
    /// Counts as reported, if they were.
    pub usage: Option<Usage>,
    /// Generated text: content only.
    pub text: String,
    /// Generated reasoning text.
    pub reasoning: String,
    /// Durations and counts that the engine reports of itself, under its own
    /// field names (`load_duration`, `prompt_eval_duration`, ...).
    pub server: BTreeMap<String, f64>,
    /// `Err` if the request failed; what came before is kept.
    pub outcome: Result<(), EngineError>,
}

/// Bound on the events kept for one request.
pub const MAX_EVENTS: usize = 1 << 18;

impl Exchange {
    /// An exchange in which nothing has happened yet.
    #[must_use]
    pub fn begun(at: Timestamp) -> Self {
        Self {
            sent_at: None,
            headers_at: None,
            first_byte_at: None,
            done_at: at,
            events: Vec::new(),
            num_events_dropped: 0,
            finish_reason: None,
            usage: None,
            text: String::new(),
            reasoning: String::new(),
            server: BTreeMap::new(),
            outcome: Ok(()),
        }
    }

    /// An exchange that failed before anything was sent.
    #[must_use]
    pub fn failed(at: Timestamp, error: EngineError) -> Self {
        Self { outcome: Err(error), ..Self::begun(at) }
    }

    /// Keeps an event, or counts it where the bound is reached.
    pub fn push(&mut self, event: TokenEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        } else {
            self.num_events_dropped += 1;
        }
    }
}
