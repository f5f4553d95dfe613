//! Which tensors a model of this shape consists of, by their Hugging Face
//! names. The one list behind file checks and parameter counts.

use super::ModelConfig;

/// Name of the token embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the output head; absent where it is the embedding.
pub const OUTPUT_HEAD: &str = "lm_head.weight";

impl ModelConfig {
    /// Every weight with its shape, `[out, in]` for matrices; the output head
    /// is left out where it is the embedding.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let mut tensors = vec![(EMBEDDING.to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let mut push = |name: &str, shape: Vec<usize>| {
                tensors.push((format!("model.layers.{layer}.{name}"), shape));
            };
            push("input_layernorm.weight", vec![hidden]);
            for (projection, rows) in self.qkv_projections() {
                push(&format!("{projection}.weight"), vec![rows, hidden]);
                if self.attention_bias {
                    push(&format!("{projection}.bias"), vec![rows]);
                }
            }
            push("self_attn.o_proj.weight", vec![hidden, self.query_width()]);
            push("post_attention_layernorm.weight", vec![hidden]);
            push("mlp.gate_proj.weight", vec![ffn, hidden]);
            push("mlp.up_proj.weight", vec![ffn, hidden]);
            push("mlp.down_proj.weight", vec![hidden, ffn]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            tensors.push((OUTPUT_HEAD.to_owned(), vec![self.vocab_size, hidden]));
        }
        tensors
    }

    /// The projections to q, k and v of a layer, in the order in which they lie
    /// side by side, each with its rows.
    #[must_use]
    pub fn qkv_projections(&self) -> [(&'static str, usize); 3] {
        let (q, kv) = (self.query_width(), self.key_value_width());
        [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)]
    }

    /// Parameters, tied embeddings counted once.
    #[must_use]
    pub fn num_parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }
}
