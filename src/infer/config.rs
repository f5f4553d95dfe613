//! What a user may set on the embedded engine, with its defaults.

use std::fmt;

use super::InferError;
use super::weights::StoredDtype;

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
    /// What the linear layers compute in; `None` is what goes with the weights,
    /// see [`ComputeDtype::resolve`].
    pub dtype: Option<ComputeDtype>,
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
            dtype: None,
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

impl ComputeDtype {
    /// What weights stored as `stored` are computed in where `asked` was asked
    /// for; nothing asked is as they are stored. No bit of a weight is lost
    /// then: f16, whose fraction is longer than that of bf16, is widened to f32.
    /// Noise stands for a checkpoint, and published ones are bf16.
    ///
    /// # Errors
    /// [`InferError::Config`] for `quantized` of weights that are in no blocks.
    pub fn resolve(asked: Option<Self>, stored: &StoredDtype) -> Result<Self, InferError> {
        match (asked, stored) {
            (Some(dtype @ (Self::F32 | Self::Bf16)), _) => Ok(dtype),
            (None | Some(Self::Quantized), StoredDtype::Blocks(_)) => Ok(Self::Quantized),
            (Some(Self::Quantized), _) => Err(InferError::Config(format!(
                "dtype quantized multiplies GGUF blocks as they are, and the weights are {}: \
                 choose auto, f32 or bf16",
                match stored {
                    StoredDtype::Noise => "noise".to_owned(),
                    stored => format!("stored as {stored}"),
                }
            ))),
            (None, StoredDtype::F32 | StoredDtype::F16) => Ok(Self::F32),
            (None, StoredDtype::Bf16 | StoredDtype::Noise) => Ok(Self::Bf16),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_asked_and_stored_has_its_dtype() {
        use ComputeDtype::{Bf16, F32, Quantized};
        let blocks = StoredDtype::Blocks("Q4_1".to_owned());
        // What comes of auto, and of quantized.
        let table = [
            (StoredDtype::F32, F32, None),
            (StoredDtype::F16, F32, None),
            (StoredDtype::Bf16, Bf16, None),
            (blocks, Quantized, Some(Quantized)),
            (StoredDtype::Noise, Bf16, None),
        ];
        for (stored, auto, quantized) in table {
            let resolve = |asked| ComputeDtype::resolve(asked, &stored);
            assert_eq!(resolve(None).ok(), Some(auto), "{stored}");
            assert_eq!(resolve(Some(Quantized)).ok(), quantized, "{stored}");
            for explicit in [F32, Bf16] {
                assert_eq!(resolve(Some(explicit)).ok(), Some(explicit), "{stored}");
            }
        }
    }

    #[test]
    fn quantized_weights_that_are_none_are_refused_by_what_they_are() {
        let refusal = |stored| {
            ComputeDtype::resolve(Some(ComputeDtype::Quantized), &stored).unwrap_err().to_string()
        };
        assert!(refusal(StoredDtype::Bf16).contains("stored as BF16"));
        assert!(refusal(StoredDtype::Noise).contains("are noise"));
    }
}
