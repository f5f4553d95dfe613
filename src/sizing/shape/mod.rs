//! What a model keeps for a token and what it weighs: the numbers that memory is
//! sized by, from a model card, any `config.json`, or a GGUF file's metadata.
//! Needs less of a model than computing it does, and so knows more families than
//! the embedded engine.

mod family;
mod gguf;
mod hf;

pub use family::Family;

use serde::Serialize;

use super::settings::KvType;
use crate::infer::ModelConfig;

/// Layers that look back over a window only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sliding {
    /// Tokens that such a layer sees.
    pub window_tokens: u64,
    /// How many layers are such.
    pub num_layers: u64,
}

/// How the weights at hand are stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StoredWeights {
    /// Numbers of this many bytes each.
    Plain {
        /// Bytes of one.
        bytes_each: u64,
    },
    /// Linear layers in few bits, the rest in two bytes.
    Quantized {
        /// As `config.json` calls it.
        method: String,
        /// Bits of a weight.
        bits: u64,
        /// Weights that share a scale; `None` for one scale a matrix.
        group_size: Option<u64>,
    },
    /// A GGUF file.
    File {
        /// Type that holds most bytes, such as `Q4_K`.
        dtype: String,
        /// The whole file.
        file_bytes: u64,
    },
}

/// The numbers that memory is sized by.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shape {
    /// What it is called, for people.
    pub name: String,
    /// The family whose formulas hold.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: u64,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Width of the MLP.
    pub intermediate_size: u64,
    /// Transformer layers.
    pub num_layers: u64,
    /// Query heads.
    pub num_attention_heads: u64,
    /// Key and value heads.
    pub num_kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Elements of a head that rotate.
    pub rotary_dim: u64,
    /// Layers with a window, where there are any.
    pub sliding: Option<Sliding>,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: u64,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Parameters, tied embeddings counted once.
    pub num_parameters: u64,
    /// How the weights at hand are stored.
    pub stored: StoredWeights,
}

impl Shape {
    /// The shape of a model that the embedded engine computes.
    #[must_use]
    pub fn of_config(name: &str, config: &ModelConfig) -> Self {
        let head_dim = config.head_dim as u64;
        Self {
            name: name.to_owned(),
            family: if config.attention_bias { Family::Qwen2 } else { Family::Llama },
            vocab_size: config.vocab_size as u64,
            hidden_size: config.hidden_size as u64,
            intermediate_size: config.intermediate_size as u64,
            num_layers: config.num_hidden_layers as u64,
            num_attention_heads: config.num_attention_heads as u64,
            num_kv_heads: config.num_key_value_heads as u64,
            head_dim,
            rotary_dim: head_dim,
            sliding: None,
            max_position_embeddings: config.max_position_embeddings as u64,
            tied: config.tie_word_embeddings,
            num_parameters: config.num_parameters(),
            stored: StoredWeights::Plain { bytes_each: 2 },
        }
    }

    /// Bytes of K and V that one token takes in one layer: `2 * kv_heads * head_dim * bytes`.
    #[must_use]
    pub const fn kv_bytes_per_token_and_layer(&self, kv: KvType) -> u64 {
        let (bits, elements) = (kv.bits_per_32(), 2 * self.num_kv_heads * self.head_dim);
        elements * bits / (8 * 32)
    }

    /// Bytes of K and V that one token takes over all layers.
    #[must_use]
    pub const fn kv_bytes_per_token(&self, kv: KvType) -> u64 {
        self.num_layers * self.kv_bytes_per_token_and_layer(kv)
    }

    /// Layers that see everything.
    #[must_use]
    pub fn num_full_layers(&self) -> u64 {
        self.num_layers - self.sliding.map_or(0, |sliding| sliding.num_layers)
    }

    /// Parameters of the embedding, and of the head where it is another matrix.
    #[must_use]
    pub const fn embedding_parameters(&self) -> u64 {
        let one = self.vocab_size * self.hidden_size;
        if self.tied { one } else { 2 * one }
    }

    /// Refuses shapes that no model has. Files are hostile: everything that is
    /// multiplied later is bounded here.
    fn check(self) -> Result<Self, String> {
        let bounds = [
            ("vocab_size", self.vocab_size, 1 << 22),
            ("hidden_size", self.hidden_size, 1 << 18),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("num_key_value_heads", self.num_kv_heads, 1 << 10),
            ("head_dim", self.head_dim, 1 << 12),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 27),
        ];
        if let Some((name, value, max)) =
            bounds.iter().find(|(_, value, max)| !(1..=*max).contains(value))
        {
            return Err(format!("{name} is {value}, expected 1 to {max}"));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_kv_heads) {
            return Err(format!(
                "num_attention_heads {} is not divisible by num_key_value_heads {}",
                self.num_attention_heads, self.num_kv_heads
            ));
        }
        if let Some(sliding) = self.sliding
            && !((1..=1 << 27).contains(&sliding.window_tokens)
                && sliding.num_layers <= self.num_layers)
        {
            return Err(format!(
                "sliding_window is {} in {} of {} layers",
                sliding.window_tokens, sliding.num_layers, self.num_layers
            ));
        }
        Ok(self)
    }
}

#[cfg(test)]
pub(in crate::sizing) mod tests {
    use super::*;
    use crate::catalog::{cards, find_card};

    /// Llama 3.2 3B, by its card.
    pub(in crate::sizing) fn llama_3b() -> Shape {
        let card = find_card("llama-3.2-3b-instruct").unwrap();
        Shape::of_config(&card.name, &card.config)
    }

    /// Llama 3.1 8B, of which several logs were published.
    pub(in crate::sizing) fn llama_8b() -> Shape {
        Shape {
            hidden_size: 4096,
            intermediate_size: 14336,
            num_layers: 32,
            num_attention_heads: 32,
            tied: false,
            num_parameters: 8_030_261_248,
            ..llama_3b()
        }
    }

    #[test]
    fn a_cards_shape_has_the_cards_numbers() {
        for card in cards() {
            let shape = Shape::of_config(&card.name, &card.config);
            assert_eq!(shape.family.num_parameters(&shape), card.num_parameters, "{}", card.name);
        }
    }

    /// The numbers of the issue.
    #[test]
    fn a_token_of_llama_3_2_3b_takes_114688_bytes_and_131072_take_14_gib() {
        let card = find_card("llama-3.2-3b-instruct").unwrap();
        let shape = Shape::of_config(&card.name, &card.config);
        assert_eq!(shape.kv_bytes_per_token(KvType::Bf16), 114_688);
        assert_eq!(shape.kv_bytes_per_token(KvType::Fp8), 57_344);
        assert_eq!(shape.kv_bytes_per_token(KvType::Q8_0), 114_688 * 34 / 64);
        assert_eq!(131_072 * shape.kv_bytes_per_token(KvType::Bf16), 14 << 30);
    }
}
