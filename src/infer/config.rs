//! What a user may set on the embedded engine, with its defaults.

use std::fmt;

/// Settings of the embedded engine. Checked against the model when it is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Longest sequence in tokens; `None` is the model's own limit, cut to
    /// what the KV pool can hold.
    pub max_model_len: Option<usize>,
    /// Tokens in a KV block.
    pub block_size: usize,
    /// Size of the KV pool.
    pub kv: KvBudget,
    /// Sequences in one step.
    pub max_num_seqs: usize,
    /// Tokens in one step, prompts included.
    pub max_num_batched_tokens: usize,
    /// Requests that may wait; one more is refused as busy.
    pub max_queue: usize,
    /// Keep full blocks of K and V after their sequence has ended, for prompts
    /// that begin alike.
    pub enable_prefix_caching: bool,
    /// Threads that compute; `None` is one for each core.
    pub threads: Option<usize>,
    /// What the linear layers compute in.
    pub dtype: ComputeDtype,
}

impl EngineConfig {
    /// Threads that compute, the engine's own included.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_model_len: None,
            block_size: 16,
            kv: KvBudget::Auto,
            max_num_seqs: 64,
            max_num_batched_tokens: 2048,
            max_queue: 512,
            enable_prefix_caching: true,
            threads: None,
            dtype: ComputeDtype::F32,
        }
    }
}

/// How large the KV pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvBudget {
    /// Enough for a few sequences of the model's length, at most 1 GiB.
    Auto,
    /// This many blocks.
    Blocks(usize),
    /// As many blocks as fit in this many bytes.
    Bytes(u64),
}

/// What the linear layers compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDtype {
    /// Weights widened to f32 at load: exact, four bytes a weight.
    F32,
    /// Weights and activations rounded to bf16, sums in f32, K and V in bf16.
    Bf16,
    /// GGUF blocks multiplied as they are, activations rounded to 8 bits as
    /// llama.cpp does.
    Quantized,
}

impl fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Quantized => "quantized",
        })
    }
}
