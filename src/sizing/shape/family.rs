//! Families of models: what tells them apart in memory, and how many parameters
//! a shape of each has.

use std::fmt;

use serde::Serialize;

use super::Shape;

/// A family whose formulas are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 1 to 3, SmolLM, TinyLlama, and whoever else took the shape.
    Llama,
    /// Llama with a window in older versions.
    Mistral,
    /// Biases on q, k and v.
    Qwen2,
    /// Norms on q and k.
    Qwen3,
    /// Phi-2: two matrices an MLP, biases everywhere.
    Phi,
    /// Phi-3 and Phi-4: Llama with fused matrices.
    Phi3,
    /// Tied, wide heads.
    Gemma,
    /// Every second layer looks back over a window.
    Gemma2,
    /// Five of six layers look back over a window.
    Gemma3,
}

impl Family {
    /// All, in the order of errors.
    pub const ALL: [Self; 9] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Phi,
        Self::Phi3,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
    ];

    /// As `architectures` of `config.json` spells it.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Phi => "PhiForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Gemma => "GemmaForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    /// As `model_type` of `config.json` spells it.
    const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi => "phi",
            Self::Phi3 => "phi3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// As `general.architecture` of a GGUF file spells it; Mistral's files say `llama`.
    const fn gguf(self) -> &'static str {
        match self {
            Self::Phi => "phi2",
            Self::Gemma3 => "gemma3",
            other => other.model_type(),
        }
    }

    /// The family of `architectures` or `model_type`.
    pub(super) fn of_hf(name: &str) -> Result<Self, String> {
        Self::find(name, |family| family.architecture() == name || family.model_type() == name)
    }

    /// The family of `general.architecture`.
    pub(super) fn of_gguf(name: &str) -> Result<Self, String> {
        Self::find(name, |family| family.gguf() == name)
    }

    fn find(name: &str, is: impl Fn(&Self) -> bool) -> Result<Self, String> {
        Self::ALL.into_iter().find(is).ok_or_else(|| {
            let known = Self::ALL.map(Self::architecture).join(", ");
            format!("architecture `{name}` is not known, expected one of {known}")
        })
    }

    /// Matrices of an MLP as wide as the MLP.
    #[must_use]
    pub const fn mlp_matrices(self) -> u64 {
        if matches!(self, Self::Phi) { 2 } else { 3 }
    }

    /// Parameters of the linear layers of one layer, without biases.
    #[must_use]
    pub const fn linear_parameters_of_a_layer(self, shape: &Shape) -> u64 {
        let queries = shape.num_attention_heads * shape.head_dim;
        let kv = shape.num_kv_heads * shape.head_dim;
        shape.hidden_size * (2 * queries + 2 * kv)
            + self.mlp_matrices() * shape.hidden_size * shape.intermediate_size
    }

    /// Parameters of the whole, tied embeddings counted once.
    #[must_use]
    pub const fn num_parameters(self, shape: &Shape) -> u64 {
        let (hidden, head) = (shape.hidden_size, shape.head_dim);
        let (queries, kv) = (shape.num_attention_heads * head, shape.num_kv_heads * head);
        let (vectors_of_a_layer, of_the_end) = match self {
            Self::Llama | Self::Mistral | Self::Phi3 | Self::Gemma => (2 * hidden, hidden),
            Self::Qwen2 => (2 * hidden + queries + 2 * kv, hidden),
            Self::Qwen3 => (2 * hidden + 2 * head, hidden),
            Self::Gemma2 => (4 * hidden, hidden),
            Self::Gemma3 => (4 * hidden + 2 * head, hidden),
            // Norms have a bias, and so has the head.
            Self::Phi => (
                2 * hidden + queries + 2 * kv + hidden + shape.intermediate_size + hidden,
                2 * hidden + shape.vocab_size,
            ),
        };
        shape.embedding_parameters()
            + shape.num_layers * (self.linear_parameters_of_a_layer(shape) + vectors_of_a_layer)
            + of_the_end
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.architecture())
    }
}
