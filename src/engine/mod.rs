//! A thing that is compared: one trait, one adapter per kind. Adapters turn an
//! engine's wire into [`TokenEvent`]s; they know no experiment, no statistic
//! and no other adapter.

pub mod api;
pub mod connect;
pub mod credential;
pub mod discover;
pub mod embedded;
pub mod error;
pub mod event;
mod http;
pub mod info;
mod line;
mod link;
mod ndjson;
mod ollama;
mod openai;
mod parked;
mod patience;
pub mod replay;
pub(crate) mod reply;
pub mod scrape;
pub mod scripted;
mod socket;
pub mod spec;
mod sse;
mod stream;
pub(crate) mod words;

use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::infer::telemetry::{ResidentBytes, Telemetry};

pub use connect::{ModelHint, connect};
pub use error::{EngineError, ErrorClass};
pub use event::{EventKind, Exchange, FinishReason, TokenEvent, Usage};
pub use info::{Capabilities, Capability, EngineInfo};
pub use spec::{EngineKind, EngineSpec};

/// What one request asks for, in client vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// What is sent.
    pub prompt: Prompt,
    /// Upper bound on generated tokens.
    pub max_tokens: u32,
    /// How the next token is drawn.
    pub sampling: Sampling,
    /// Ask the engine to run to `max_tokens` even past an end-of-sequence
    /// token. Engines that cannot say so in their [`Capabilities`].
    pub ignore_eos: bool,
}

/// A prompt in the form in which it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// One user message; the engine applies its chat template.
    Chat(String),
    /// A conversation so far, the last message a user's; the engine applies its chat template.
    Dialogue(Vec<Message>),
    /// Continued as it stands, without a chat template.
    Raw(String),
    /// Token-exact: `ids` where the engine takes them, else `text`, which
    /// tokenizes to the same ids under the model's own tokenizer.
    Tokens {
        /// Token ids, without template or special tokens added.
        ids: Vec<u32>,
        /// The same prompt as text.
        text: String,
    },
}

impl Prompt {
    /// Role and content of its messages; `None` where it is no chat.
    #[must_use]
    pub fn messages(&self) -> Option<Vec<(&'static str, &str)>> {
        match self {
            Self::Chat(content) => Some(vec![("user", content)]),
            Self::Dialogue(messages) => {
                Some(messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect())
            }
            Self::Raw(_) | Self::Tokens { .. } => None,
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Whose.
    pub role: Role,
    /// What was said.
    pub content: String,
}

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one who asks.
    User,
    /// The engine.
    Assistant,
}

impl Role {
    /// The word that every protocol uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// How the next token is drawn from the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus mass; 1 keeps everything.
    pub top_p: f64,
    /// Keep the k most likely tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Seed of the engine's own generator.
    pub seed: u64,
}

impl Sampling {
    /// The low 31 bits of the seed: llama.cpp and Ollama hold seeds in 32 bits,
    /// the highest value of which means "random", and every engine must be
    /// given the same one.
    #[must_use]
    pub const fn short_seed(&self) -> u64 {
        self.seed & 0x7fff_ffff
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 }
    }
}

/// An inference engine, seen from the load side.
#[async_trait]
pub trait Engine: Send + Sync {
    /// The specification it was made from.
    fn spec(&self) -> &EngineSpec;

    /// Asks the engine who it is: version, model, settings, capabilities.
    ///
    /// # Errors
    /// When it cannot be reached, does not speak its protocol, or lacks the model.
    async fn describe(&self) -> Result<EngineInfo, EngineError>;

    /// Makes everything ready that must not be timed: the connection is open,
    /// the body is serialised, nothing has been sent.
    ///
    /// # Errors
    /// When no connection can be made.
    async fn prepare(&self, request: &GenerateRequest) -> Result<Box<dyn Prepared>, EngineError>;

    /// Makes the engine cold, so that the next request pays for loading, and
    /// returns once that is verified.
    ///
    /// # Errors
    /// When the engine refuses or does not become cold in time. Not called
    /// where [`Capabilities::cold`] says no.
    async fn make_cold(&self) -> Result<Duration, EngineError>;

    /// Has an engine in this process tell of its own steps and loading from now
    /// on; `None` for one that runs elsewhere. `resident` reads this process's memory.
    fn observe(&self, _resident: ResidentBytes) -> Option<Telemetry> {
        None
    }
}

/// A request that waits for its release.
#[async_trait]
pub trait Prepared: Send {
    /// Sends it and follows the answer to its end, or to `cancel`. Never
    /// fails: an error is the [`Exchange`]'s outcome, beside the events that
    /// came before it.
    async fn run(self: Box<Self>, cancel: CancellationToken) -> Exchange;
}
