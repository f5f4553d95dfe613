//! Architecture numbers of a Llama-family model, read from `config.json`, GGUF
//! metadata or a model card, and checked once.

mod check;
mod hf;
mod tensors;

pub(crate) use hf::even_share;
pub use tensors::{EMBEDDING, OUTPUT_HEAD};

use serde::{Deserialize, Serialize};

/// A Llama-architecture model's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Llama 3 frequency scaling, where the model has it.
    pub rope_scaling: Option<RopeScaling>,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v projections have a bias (Qwen2).
    pub attention_bias: bool,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Token that begins one, where the tokenizer adds it.
    pub bos_token_id: Option<u32>,
}

/// Llama 3 rotary frequency scaling (`rope_type: "llama3"`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Below this many turns over the original context: fully scaled.
    pub low_freq_factor: f64,
    /// Above this many turns: not scaled.
    pub high_freq_factor: f64,
    /// Context length before scaling.
    pub original_max_position_embeddings: usize,
}

impl ModelConfig {
    /// Bytes of K and V that one token takes: `2 * layers * kv_heads * head_dim * bytes`.
    #[must_use]
    pub const fn kv_bytes_per_token(&self, bytes_per_element: usize) -> usize {
        2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_element
    }
}

impl ModelConfig {
    /// Two small layers with grouped queries, for tests and benches that need a
    /// model and no answer: its weights are seeded noise.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            vocab_size: 97,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: None,
            max_position_embeddings: 128,
            tie_word_embeddings: true,
            attention_bias: false,
            eos_token_ids: vec![3],
            bos_token_id: None,
        }
    }
}
