//! A shape from the metadata of a GGUF file.

use super::{Family, Shape, Sliding, StoredWeights};
use crate::infer::weights::GgufSummary;

impl Shape {
    /// The shape that a GGUF file declares; `name` is what the model is called.
    ///
    /// # Errors
    /// A sentence naming the key: an architecture that is not known, with those that
    /// are, a number that is missing, or numbers that no model has.
    pub fn from_gguf(name: &str, summary: &GgufSummary) -> Result<Self, String> {
        let family = Family::of_gguf(&summary.architecture)?;
        let number =
            |key: &str| summary.numbers.get(&format!("{}.{key}", summary.architecture)).copied();
        let required = |key: &str| {
            let missing = || format!("metadata `{}.{key}` is missing", summary.architecture);
            number(key).ok_or_else(missing)
        };
        let hidden_size = required("embedding_length")?;
        let num_attention_heads = required("attention.head_count")?;
        let num_layers = required("block_count")?;
        let head_dim = match number("attention.key_length") {
            Some(length) => length,
            None if num_attention_heads > 0 => hidden_size / num_attention_heads,
            None => return Err("attention.head_count is 0, expected 1 to 1024".to_owned()),
        };
        let window = number("attention.sliding_window").filter(|window| *window > 0);
        let layers_with_window = match family {
            Family::Gemma2 => num_layers.div_ceil(2),
            Family::Gemma3 => num_layers - num_layers / 6,
            _ => num_layers,
        };
        Self {
            name: name.to_owned(),
            family,
            vocab_size: summary
                .vocab_size
                .ok_or_else(|| "tensor `token_embd.weight` is missing".to_owned())?,
            hidden_size,
            intermediate_size: required("feed_forward_length")?,
            num_layers,
            num_attention_heads,
            num_kv_heads: number("attention.head_count_kv").unwrap_or(num_attention_heads),
            head_dim,
            rotary_dim: number("rope.dimension_count").unwrap_or(head_dim).min(head_dim),
            sliding: window
                .map(|window_tokens| Sliding { window_tokens, num_layers: layers_with_window }),
            max_position_embeddings: required("context_length")?,
            tied: summary.tied,
            num_parameters: summary.num_parameters,
            stored: StoredWeights::File {
                dtype: summary.stored.to_string(),
                file_bytes: summary.file_bytes,
            },
        }
        .check()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::infer::weights::StoredDtype;

    fn summary(architecture: &str) -> GgufSummary {
        let numbers = [
            ("block_count", 26),
            ("embedding_length", 1152),
            ("feed_forward_length", 6912),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 256),
            ("attention.sliding_window", 512),
            ("context_length", 32768),
        ];
        GgufSummary {
            architecture: architecture.to_owned(),
            numbers: numbers
                .iter()
                .map(|(key, value)| (format!("{architecture}.{key}"), *value))
                .collect::<BTreeMap<_, _>>(),
            num_parameters: 999_885_952,
            file_bytes: 806_058_240,
            vocab_size: Some(262_144),
            tied: true,
            stored: StoredDtype::Blocks("Q4_K".to_owned()),
        }
    }

    #[test]
    fn gemma_3_of_a_file_slides_in_five_of_six_layers() {
        let shape = Shape::from_gguf("x", &summary("gemma3")).unwrap();
        assert_eq!(shape.sliding, Some(Sliding { window_tokens: 512, num_layers: 22 }));
        assert_eq!(shape.num_parameters, shape.family.num_parameters(&shape));
        assert_eq!(shape.num_full_layers(), 4);
    }

    #[test]
    fn what_a_file_lacks_and_families_that_are_not_known_are_named() {
        let refused = |summary: &GgufSummary| Shape::from_gguf("x", summary).unwrap_err();
        assert!(refused(&summary("mamba")).contains("`mamba` is not known"));
        let mut lacking = summary("llama");
        lacking.numbers.remove("llama.block_count");
        assert_eq!(refused(&lacking), "metadata `llama.block_count` is missing");
        let mut zero = summary("llama");
        zero.numbers.insert("llama.attention.head_count_kv".to_owned(), 0);
        assert!(refused(&zero).contains("num_key_value_heads is 0"));
    }
}
