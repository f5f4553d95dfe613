//! A model's shape from GGUF metadata (`llama.*`, `qwen2.*`), as llama.cpp's
//! converter writes it.

use super::header::{Header, TensorInfo};
use super::metadata::{Metadata, required};
use crate::infer::ModelConfig;
use crate::infer::model::config::{RopeScaling, even_share};

/// Rotary base where the file has none, as in llama.cpp.
const DEFAULT_ROPE_BASE: f64 = 10_000.0;

/// The families that differ in how their files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Rows of q and k are interleaved for the rotary form of the original Llama.
    Llama,
    /// Rows as in Hugging Face files, biases on q, k and v.
    Qwen2,
}

impl Architecture {
    pub(super) fn of(metadata: &Metadata<'_>) -> Result<Self, String> {
        match required("general.architecture", metadata.str("general.architecture")?)? {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            other => {
                Err(format!("architecture `{other}` is not supported, expected llama or qwen2"))
            }
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }
}

/// The shape; `rope_factors` are the values of `rope_freqs.weight`, where the file has it.
pub(super) fn model_config(
    header: &Header,
    architecture: Architecture,
    rope_factors: Option<&[f32]>,
) -> Result<ModelConfig, String> {
    let metadata = Metadata(&header.metadata);
    let key = |name: &str| format!("{}.{name}", architecture.prefix());
    let size = |name: &str| -> Result<usize, String> {
        let key = key(name);
        required(&key, metadata.int(&key)?)
    };
    refuse_the_unimplemented(&metadata, &key)?;

    let hidden_size = size("embedding_length")?;
    let heads = size("attention.head_count")?;
    let head_dim = match metadata.int(&key("attention.key_length"))? {
        Some(length) => length,
        None => even_share(hidden_size, heads)?,
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        match metadata.int::<usize>(&key(name))? {
            Some(other) if other != head_dim => {
                return Err(format!("{} is {other}, expected the head size {head_dim}", key(name)));
            }
            _ => {}
        }
    }
    let embedding = header.tensors.get("token_embd.weight").map(|tensor| &tensor.shape);
    let vocab_size = match (metadata.int(&key("vocab_size"))?, embedding.and_then(|s| s.first())) {
        (_, Some(rows)) => *rows,
        (Some(rows), None) => rows,
        (None, None) => return Err("tensor `token_embd.weight` is missing".to_owned()),
    };
    // Up to the window's width sliding attention is full attention; 0 is none.
    let window = metadata.int(&key("attention.sliding_window"))?.filter(|width| *width > 0);
    let window: usize = window.unwrap_or(usize::MAX);
    let theta = metadata.float(&key("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_BASE);
    let model = ModelConfig {
        vocab_size,
        hidden_size,
        intermediate_size: size("feed_forward_length")?,
        num_hidden_layers: size("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: metadata.int(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: required(
            &key("attention.layer_norm_rms_epsilon"),
            metadata.float(&key("attention.layer_norm_rms_epsilon"))?,
        )?,
        rope_theta: theta,
        rope_scaling: None,
        max_position_embeddings: size("context_length")?.min(window),
        tie_word_embeddings: !header.tensors.contains_key("output.weight"),
        attention_bias: architecture == Architecture::Qwen2,
        eos_token_ids: end_tokens(&metadata)?,
        bos_token_id: None,
    };
    model.check()?;
    let rope_scaling = rope_factors.map(|factors| llama3_scaling(factors, &model)).transpose()?;
    Ok(ModelConfig { rope_scaling, ..model })
}

fn refuse_the_unimplemented(
    metadata: &Metadata<'_>,
    key: &dyn Fn(&str) -> String,
) -> Result<(), String> {
    if let Some(parts) = metadata.int::<u64>("split.count")?.filter(|parts| *parts > 1) {
        return Err(format!("one of {parts} parts of a split GGUF, which is not supported"));
    }
    if let Some(experts) = metadata.int::<u64>(&key("expert_count"))?.filter(|n| *n > 0) {
        return Err(format!("mixture of {experts} experts is not supported"));
    }
    match metadata.str(&key("rope.scaling.type"))? {
        None | Some("none") => Ok(()),
        Some(other) => Err(format!("rope scaling `{other}` is not supported")),
    }
}

/// Ends of sequence: what the file names, and the end-of-turn tokens that the
/// family's `generation_config.json` lists and GGUF has no field for.
fn end_tokens(metadata: &Metadata<'_>) -> Result<Vec<u32>, String> {
    let mut ends: Vec<u32> = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ends.extend(metadata.int::<u32>(key)?);
    }
    let names: &[&str] = match metadata.str("tokenizer.ggml.pre")? {
        Some("llama-bpe") => &["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        Some("qwen2") => &["<|endoftext|>", "<|im_end|>"],
        Some("smollm") => &["<|im_end|>"],
        _ => &[],
    };
    if !names.is_empty() {
        let tokens = metadata.strs("tokenizer.ggml.tokens")?.unwrap_or_default();
        let named = tokens.iter().zip(0..).filter(|(token, _)| names.contains(&token.as_str()));
        ends.extend(named.map(|(_, id)| id));
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// llama.cpp writes Llama 3's scaling as one divisor for each frequency. Every
/// published Llama 3 uses low 1, high 4 over 8192 positions; the factor is the
/// last divisor, and all others must then be what the formula gives.
fn llama3_scaling(factors: &[f32], model: &ModelConfig) -> Result<RopeScaling, String> {
    let scaling = RopeScaling {
        factor: f64::from(factors.last().copied().unwrap_or(0.0)),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let expected = llama3_divisors(&scaling, model.rope_theta, model.head_dim);
    let agrees = factors.len() == expected.len()
        && factors.iter().zip(&expected).all(|(got, want)| {
            let got = f64::from(*got);
            got.is_finite() && (got - want).abs() <= 1e-4 * want
        });
    if scaling.factor >= 1.0 && agrees {
        Ok(scaling)
    } else {
        Err("its `rope_freqs.weight` is not the scaling of Llama 3, which is the one supported"
            .to_owned())
    }
}

/// What each rotary frequency is divided by, `[head_dim / 2]`.
#[expect(clippy::cast_precision_loss, reason = "positions and head sizes are far below 2^52")]
fn llama3_divisors(scaling: &RopeScaling, theta: f64, head_dim: usize) -> Vec<f64> {
    let original = scaling.original_max_position_embeddings as f64;
    (0..head_dim / 2)
        .map(|pair| {
            let wavelength =
                std::f64::consts::TAU * theta.powf(2.0 * pair as f64 / head_dim as f64);
            let turns = original / wavelength;
            if turns > scaling.high_freq_factor {
                1.0
            } else if turns < scaling.low_freq_factor {
                scaling.factor
            } else {
                let smooth = (turns - scaling.low_freq_factor)
                    / (scaling.high_freq_factor - scaling.low_freq_factor);
                1.0 / ((1.0 - smooth) / scaling.factor + smooth)
            }
        })
        .collect()
}

/// Whether the tensor holds the divisors of Llama 3's scaling.
pub(super) fn rope_factors(header: &Header) -> Option<&TensorInfo> {
    header.tensors.get("rope_freqs.weight")
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "GGUF stores the divisors as f32")]
mod tests {
    use super::*;

    fn llama_3_2() -> ModelConfig {
        ModelConfig {
            vocab_size: 128_256,
            hidden_size: 3072,
            intermediate_size: 8192,
            num_hidden_layers: 28,
            num_attention_heads: 24,
            num_key_value_heads: 8,
            head_dim: 128,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: None,
            max_position_embeddings: 131_072,
            tie_word_embeddings: true,
            attention_bias: false,
            eos_token_ids: vec![],
            bos_token_id: None,
        }
    }

    fn divisors(factor: f64, original: usize) -> Vec<f32> {
        let scaling = RopeScaling {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: original,
        };
        llama3_divisors(&scaling, 500_000.0, 128).into_iter().map(|x| x as f32).collect()
    }

    #[test]
    fn rope_divisors_give_back_the_scaling_they_were_made_from() {
        let scaling = llama3_scaling(&divisors(32.0, 8192), &llama_3_2()).unwrap();
        assert!((scaling.factor - 32.0).abs() < 1e-9);
        assert_eq!(scaling.original_max_position_embeddings, 8192);
    }

    #[test]
    fn other_rope_divisors_are_refused() {
        let model = llama_3_2();
        assert!(llama3_scaling(&divisors(32.0, 4096), &model).is_err());
        assert!(llama3_scaling(&divisors(32.0, 8192)[1..], &model).is_err());
        assert!(llama3_scaling(&[], &model).is_err());
        assert!(llama3_scaling(&[f32::NAN; 64], &model).is_err());
        assert!(llama3_scaling(&[0.5; 64], &model).is_err());
    }
}
