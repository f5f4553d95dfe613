//! What a model's weights take: on a GPU in vLLM, and in a file that Ollama loads.

use super::amount::{Amount, Source, truncated};
use super::settings::Question;
use super::shape::{Shape, StoredWeights};

/// How far the size of quantized weights may be from its formula.
const QUANTIZED_MARGIN: f64 = 0.02;
/// Bits of a weight of a GGML type, with its scales.
const Q4_K_BITS: f64 = 4.5;
const Q6_K_BITS: f64 = 6.5625;
/// Metadata and vocabulary of a GGUF file, about 60 bytes a token.
const GGUF_BYTES_PER_TOKEN: f64 = 60.0;
/// How far the size of a file that is not at hand may be from its formula.
const FILE_MARGIN: f64 = 0.03;

/// Bytes that vLLM loads: the parameters, and the table of the rotary embedding,
/// `positions * rotary_dim * 2`. For Llama 3.1 8B that is the 14.9888 GiB that it logs.
#[must_use]
pub fn in_vllm(question: &Question<'_>) -> Amount {
    if let Some(bytes) = question.settings.weights_bytes {
        return Amount::exact(bytes, Source::Given, "--weights-gib");
    }
    let shape = question.shape;
    let rope = shape.max_position_embeddings * shape.rotary_dim * 2;
    match (&shape.stored, question.settings.dtype_bytes) {
        (StoredWeights::Quantized { method, bits, group_size }, None) => {
            quantized(shape, method, *bits, *group_size, rope)
        }
        (stored, asked) => {
            let bytes = match (stored, asked) {
                (_, Some(bytes)) => bytes,
                // vLLM loads a checkpoint of f32 in bf16.
                (StoredWeights::Plain { .. }, None)
                | (StoredWeights::File { .. } | StoredWeights::Quantized { .. }, None) => 2,
            };
            Amount::exact(
                shape.num_parameters.saturating_mul(bytes).saturating_add(rope),
                Source::Computed,
                format!("{} parameters of {bytes} bytes, rotary table", shape.num_parameters),
            )
        }
    }
}

/// Linear layers in `bits` with a scale of two bytes and a zero point a group; the
/// rest in two bytes.
fn quantized(shape: &Shape, method: &str, bits: u64, group: Option<u64>, rope: u64) -> Amount {
    let linear = shape.num_layers * shape.family.linear_parameters_of_a_layer(shape);
    let rest = shape.num_parameters.saturating_sub(linear);
    let scales = group.map_or(0.0, |group| (16.0 + bits as f64) / group as f64);
    let bytes = linear as f64 * (bits as f64 + scales) / 8.0 + rest as f64 * 2.0 + rope as f64;
    estimate(bytes, QUANTIZED_MARGIN, format!("{method} of {bits} bits, the rest in 2 bytes"))
}

/// The same model with its linear layers in 4 bits, as AWQ stores them.
#[must_use]
pub fn as_awq(shape: &Shape) -> Shape {
    let stored =
        StoredWeights::Quantized { method: "awq".to_owned(), bits: 4, group_size: Some(128) };
    Shape { stored, ..shape.clone() }
}

/// The GGUF file that Ollama loads: the one at hand, else what its library has for
/// most models, Q4_K_M.
///
/// There, the head and half of the layers' value and down projections are Q6_K, all else Q4_K.
#[must_use]
pub fn in_ollama(shape: &Shape) -> Amount {
    if let StoredWeights::File { dtype, file_bytes } = &shape.stored {
        let basis = format!("the file, {dtype}");
        return Amount::exact(*file_bytes, Source::Given, basis);
    }
    let embedding = (shape.vocab_size * shape.hidden_size) as f64;
    let in_q6 = shape.num_layers as f64 / 2.0
        * (shape.hidden_size * (shape.num_kv_heads * shape.head_dim + shape.intermediate_size))
            as f64;
    let in_q4 = (shape.num_parameters as f64 - in_q6 - embedding).max(0.0);
    let bits = (embedding + in_q6) * Q6_K_BITS + in_q4 * Q4_K_BITS;
    let header = shape.vocab_size as f64 * GGUF_BYTES_PER_TOKEN;
    estimate(bits / 8.0 + header, FILE_MARGIN, "a Q4_K_M file, by its formula".to_owned())
}

fn estimate(bytes: f64, margin: f64, basis: String) -> Amount {
    let of = |factor: f64| u64::try_from(truncated(bytes * factor)).unwrap_or(0);
    Amount::between([of(1.0 - margin), of(1.0), of(1.0 + margin)], Source::Estimated, basis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sizing::amount::as_gib;
    use crate::sizing::gpu::GpuMemory;
    use crate::sizing::settings::Settings;
    use crate::sizing::shape::tests::{llama_3b, llama_8b};

    fn loaded(shape: &Shape) -> Amount {
        let gpu = GpuMemory::given(1 << 40);
        in_vllm(&Question { shape, gpu: &gpu, settings: &Settings::default() })
    }

    /// `Loading model weights took`, of published logs.
    #[test]
    fn weights_are_what_vllm_logs() {
        let llama = llama_3b();
        assert!((as_gib(loaded(&llama).expected_bytes) - 6.0155).abs() < 1e-3);
        // Llama 3.1 8B, 14.9888 GB in github.com/vllm-project/vllm/issues/10517.
        let eight = llama_8b();
        assert!((as_gib(loaded(&eight).expected_bytes) - 14.9888).abs() < 1e-4);
        // Qwen2.5 7B AWQ, 5.2032 GB in github.com/vllm-project/vllm/issues/13882.
        let qwen = Shape {
            vocab_size: 152_064,
            hidden_size: 3584,
            intermediate_size: 18944,
            num_layers: 28,
            num_attention_heads: 28,
            num_kv_heads: 4,
            max_position_embeddings: 32768,
            tied: false,
            num_parameters: 7_615_616_512,
            ..llama
        };
        let awq = loaded(&as_awq(&qwen));
        let logged = (5.2032 * (1_u64 << 30) as f64) as i64;
        assert!(awq.low_bytes <= logged && logged <= awq.high_bytes, "{awq:?}");
    }

    /// `llama3.2:3b` of Ollama's library has 2.02 GB.
    #[test]
    fn a_q4_k_m_file_of_llama_3_2_3b_has_two_gigabytes() {
        let file = in_ollama(&llama_3b());
        assert!((file.expected_bytes - 2_020_000_000).abs() < 10_000_000, "{file:?}");
        assert_eq!(file.source, Source::Estimated);
    }
}
