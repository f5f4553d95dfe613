//! What a user may set on the embedded engine, with its defaults.

use std::fmt;

use super::InferError;
use super::device::ComputeDevice;
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
    /// What computes; `None` is the first CUDA device where there is one, else
    /// the processors.
    pub device: Option<ComputeDevice>,
    /// Share of a CUDA device's memory that may be in use, by this engine and
    /// everybody else, when [`KvBudget::Auto`] has taken what is left of it.
    pub gpu_memory_utilization: f64,
    /// Replay decode steps as CUDA graphs.
    pub cuda_graphs: bool,
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
            device: None,
            gpu_memory_utilization: 0.9,
            cuda_graphs: true,
            threads: None,
            dtype: None,
        }
    }
}

/// How large the KV pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvBudget {
    /// On the CPU enough for a few sequences of the model's length, at most 1 GiB;
    /// on a CUDA device what `gpu_memory_utilization` leaves.
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
    /// As bf16, in IEEE's half precision; on CUDA devices.
    F16,
    /// GGUF blocks multiplied as they are, activations rounded to 8 bits as
    /// llama.cpp does.
    Quantized,
}

impl ComputeDtype {
    /// What weights stored as `stored` are computed in on `device` where `asked`
    /// was asked for; nothing asked is as they are stored. No bit of a weight is
    /// lost then on the CPU: f16, whose fraction is longer than that of bf16, is
    /// widened to f32. Noise stands for a checkpoint, and published ones are bf16.
    /// A CUDA device has no kernels for GGUF blocks: they are widened to bf16.
    ///
    /// # Errors
    /// [`InferError::Config`] for what the device or the weights do not have.
    pub fn resolve(
        asked: Option<Self>,
        stored: &StoredDtype,
        device: ComputeDevice,
    ) -> Result<Self, InferError> {
        let refused = |why: String| Err(InferError::Config(why));
        match (asked, stored, device) {
            (Some(dtype @ (Self::F32 | Self::Bf16)), ..)
            | (Some(dtype @ Self::F16), _, ComputeDevice::Cuda(_)) => Ok(dtype),
            (Some(Self::F16), _, ComputeDevice::Cpu) => refused(
                "dtype f16 is there on CUDA devices only: choose auto, f32 or bf16".to_owned(),
            ),
            (Some(Self::Quantized), StoredDtype::Blocks(_), ComputeDevice::Cuda(_)) => refused(
                "dtype quantized is there on the CPU only: choose auto, bf16, f16 or f32, which \
                 widen the blocks as they are loaded"
                    .to_owned(),
            ),
            (None | Some(Self::Quantized), StoredDtype::Blocks(_), ComputeDevice::Cpu) => {
                Ok(Self::Quantized)
            }
            (Some(Self::Quantized), ..) => refused(format!(
                "dtype quantized multiplies GGUF blocks as they are, and the weights are {}: \
                 choose auto, f32 or bf16",
                match stored {
                    StoredDtype::Noise => "noise".to_owned(),
                    stored => format!("stored as {stored}"),
                }
            )),
            (None, StoredDtype::F16, ComputeDevice::Cuda(_)) => Ok(Self::F16),
            (None, StoredDtype::F32 | StoredDtype::F16, _) => Ok(Self::F32),
            (None, StoredDtype::Bf16 | StoredDtype::Noise | StoredDtype::Blocks(_), _) => {
                Ok(Self::Bf16)
            }
        }
    }
}

impl fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Quantized => "quantized",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_asked_and_stored_has_its_dtype() {
        use ComputeDtype::{Bf16, F16, F32, Quantized};
        let blocks = StoredDtype::Blocks("Q4_1".to_owned());
        // What comes of auto and of quantized on the CPU, and of auto on CUDA.
        let table = [
            (StoredDtype::F32, F32, None, F32),
            (StoredDtype::F16, F32, None, F16),
            (StoredDtype::Bf16, Bf16, None, Bf16),
            (blocks, Quantized, Some(Quantized), Bf16),
            (StoredDtype::Noise, Bf16, None, Bf16),
        ];
        for (stored, auto, quantized, cuda) in table {
            let resolve = |asked| ComputeDtype::resolve(asked, &stored, ComputeDevice::Cpu);
            let on_cuda = |asked| ComputeDtype::resolve(asked, &stored, ComputeDevice::Cuda(0));
            assert_eq!(resolve(None).ok(), Some(auto), "{stored}");
            assert_eq!(resolve(Some(Quantized)).ok(), quantized, "{stored}");
            assert_eq!(on_cuda(None).ok(), Some(cuda), "{stored}");
            assert!(on_cuda(Some(Quantized)).is_err() && resolve(Some(F16)).is_err(), "{stored}");
            for explicit in [F32, Bf16] {
                assert_eq!(resolve(Some(explicit)).ok(), Some(explicit), "{stored}");
                assert_eq!(on_cuda(Some(explicit)).ok(), Some(explicit), "{stored}");
            }
            assert_eq!(on_cuda(Some(F16)).ok(), Some(F16), "{stored}");
        }
    }

    #[test]
    fn quantized_weights_that_are_none_are_refused_by_what_they_are() {
        let refusal = |stored| {
            ComputeDtype::resolve(Some(ComputeDtype::Quantized), &stored, ComputeDevice::Cpu)
                .unwrap_err()
                .to_string()
        };
        assert!(refusal(StoredDtype::Bf16).contains("stored as BF16"));
        assert!(refusal(StoredDtype::Noise).contains("are noise"));
    }
}
