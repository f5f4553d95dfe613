//! The engine on a thread of its own: submit requests from anywhere, receive
//! tokens over a channel, load and unload the weights.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    EngineConfig, InferError, InferRequest, ModelConfig, ModelSource, StopReason, Tokenizer,
};
use crate::clock::{Clock, Timestamp};

/// A model that is loaded when it is first needed and runs on its own thread.
/// Cloned handles share it; the thread ends with the last handle.
#[derive(Clone)]
pub struct EngineHost {}

impl EngineHost {
    /// Opens the model's config and tokenizer (cheap), checks `config` against
    /// them, and starts the thread. Weights are loaded by [`EngineHost::load`]
    /// or by the first request.
    ///
    /// # Errors
    /// When the files are damaged or the settings do not fit the model.
    pub fn open(
        source: &ModelSource,
        config: EngineConfig,
        clock: Clock,
    ) -> Result<Self, InferError> {
        let _ = (source, config, clock);
        Err(InferError::Internal("stub".to_owned()))
    }

    /// Loads the weights now, unless they are; blocks until they are.
    ///
    /// # Errors
    /// When a weight file is damaged or memory is short.
    pub fn load(&self) -> Result<(), InferError> {
        unimplemented!()
    }

    /// Aborts what runs, frees weights and KV pool; blocks until they are gone.
    pub fn unload(&self) {
        unimplemented!()
    }

    /// Queues a request. Never blocks: a full queue is an error.
    /// Dropping the [`Generation`] aborts the request and frees its blocks.
    ///
    /// # Errors
    /// [`InferError::Request`] for one that can never fit, [`InferError::Busy`] when full.
    pub fn submit(&self, request: InferRequest) -> Result<Generation, InferError> {
        let _ = request;
        unimplemented!()
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        unimplemented!()
    }

    /// The model's architecture.
    #[must_use]
    pub fn model_config(&self) -> &ModelConfig {
        unimplemented!()
    }

    /// The settings in force, numbers resolved: `max_model_len`, `block_size`,
    /// `num_blocks`, `dtype`, `weights` (as stored), `kv_bytes`, `weight_bytes` ...
    /// `num_blocks` and bytes are known without loading.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        unimplemented!()
    }

    /// Longest sequence it accepts, in tokens.
    #[must_use]
    pub fn max_model_len(&self) -> usize {
        unimplemented!()
    }

    /// Name of the precision the weights are computed in, such as `f32 (from Q4_1)`.
    #[must_use]
    pub fn precision(&self) -> String {
        unimplemented!()
    }

    /// Whether the weights are seeded noise.
    #[must_use]
    pub fn is_dummy(&self) -> bool {
        unimplemented!()
    }

    /// What it is doing now.
    #[must_use]
    pub fn status(&self) -> HostStatus {
        unimplemented!()
    }

    /// The clock of its timestamps.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        unimplemented!()
    }
}

/// A snapshot of the engine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostStatus {
    /// Weights are in memory.
    pub loaded: bool,
    /// Sequences in the running batch.
    pub num_running: usize,
    /// Sequences waiting.
    pub num_waiting: usize,
    /// KV blocks free.
    pub num_free_blocks: usize,
    /// KV blocks in the pool.
    pub num_blocks: usize,
}

/// A running request. Dropping it aborts the request.
pub struct Generation {
    events: mpsc::Receiver<GenerationEvent>,
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

/// What a running request reports.
#[derive(Debug, Clone)]
pub enum GenerationEvent {
    /// A token was drawn.
    Token {
        /// When the step that drew it ended, on the engine's clock.
        at: Timestamp,
        /// The token.
        id: u32,
        /// Text that became complete with it; may be empty inside a character
        /// that spans tokens. End-of-sequence tokens have none.
        text: String,
        /// Natural-log probability of `id` and of the most likely tokens, if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// It ended.
    Done {
        /// When.
        at: Timestamp,
        /// Why.
        reason: StopReason,
        /// Prompt tokens.
        num_prompt_tokens: usize,
        /// Generated tokens, the end-of-sequence token included.
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
    /// Of the token that was drawn.
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
    /// First scheduled to first token.
    pub prefill: Duration,
    /// First token to last.
    pub decode: Duration,
}
