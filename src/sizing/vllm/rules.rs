//! How each version of vLLM divides a GPU's memory.

use crate::sizing::gpu::GpuMemory;
use crate::sizing::settings::{Settings, Version};
use crate::units::GIB;

use super::activation::ProfiledBatch;

/// V1 is the default from 0.8.
const V1_FROM: Version = Version::new(0, 8);
/// CUDA graphs are estimated and counted: "default since v0.21.0", as its log says.
const GRAPHS_COUNTED_FROM: Version = Version::new(0, 21);
/// 0.92 instead of 0.9 (#38284, on the main branch by 24 April 2026; the first
/// release with it is taken to be 0.20).
const UTILIZATION_0_92_FROM: Version = Version::new(0, 20);
/// `--kv-cache-memory-bytes` (#21489, merged in September 2025).
const KV_MEMORY_FROM: Version = Version { major: 0, minor: 10, patch: 2 };
/// `model's` instead of `models's`.
const MODELS_UNTIL: Version = Version::new(0, 14);
/// Chunked prefill profiles 2048 tokens instead of 512.
const CHUNKS_OF_2048_FROM: Version = Version { major: 0, minor: 6, patch: 5 };
/// V0 splits prompts into chunks above this length (#10517).
const V0_CHUNKED_ABOVE: u64 = 32768;
/// From here on defaults are those of large GPUs, but for A100.
const LARGE_GPU_BYTES: u64 = 70 * GIB;
/// Sequences in a step unless asked otherwise, on GPUs that are not large.
pub const MAX_NUM_SEQS: u64 = 256;

/// What a version does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Which version.
    pub version: Version,
    /// Whether the engine is V1.
    pub v1: bool,
    /// `gpu_memory_utilization` where nothing else is asked for.
    pub utilization: f64,
    /// Whether CUDA graphs are paid for by the budget.
    pub graphs_in_budget: bool,
    /// Whether the pool can be given in bytes.
    pub takes_kv_memory: bool,
    /// How the error spells it.
    pub says_models: bool,
}

impl Rules {
    /// The rules of `version`.
    #[must_use]
    pub fn of(version: Version) -> Self {
        Self {
            version,
            v1: version >= V1_FROM,
            utilization: if version >= UTILIZATION_0_92_FROM { 0.92 } else { 0.9 },
            graphs_in_budget: version >= GRAPHS_COUNTED_FROM,
            takes_kv_memory: version >= KV_MEMORY_FROM,
            says_models: version < MODELS_UNTIL,
        }
    }

    /// Tokens of a step of V0 where prompts are split into chunks.
    #[must_use]
    pub fn v0_chunk_tokens(&self) -> u64 {
        if self.version >= CHUNKS_OF_2048_FROM { 2048 } else { 512 }
    }

    /// The batch that the profiling run takes: `max_num_batched_tokens` tokens and
    /// `max_num_seqs` rows, whose defaults depend on the length in V0 and on the
    /// GPU in V1.
    #[must_use]
    pub fn profiled(
        &self,
        gpu: &GpuMemory,
        settings: &Settings,
        max_model_len: u64,
    ) -> ProfiledBatch {
        let large = self.v1
            && !gpu.is_a100
            && gpu.cuda_total.expected_bytes >= i64::try_from(LARGE_GPU_BYTES).unwrap_or(i64::MAX);
        let tokens = match (self.v1, large) {
            (true, true) => 8192,
            (true, false) => 2048,
            (false, _) if max_model_len <= V0_CHUNKED_ABOVE => max_model_len.max(2048),
            (false, _) => self.v0_chunk_tokens(),
        };
        ProfiledBatch {
            tokens: settings.max_num_batched_tokens.unwrap_or(tokens),
            seqs: settings.max_num_seqs.unwrap_or(if large { 1024 } else { MAX_NUM_SEQS }),
        }
    }
}
