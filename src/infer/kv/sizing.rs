//! How large the KV pool is and how long a sequence may be: arithmetic over
//! the model's shape and the user's settings. Allocates nothing.

use crate::infer::{ComputeDtype, EngineConfig, InferError, KvBudget, ModelConfig};
use crate::units::{GIB, format_bytes};

/// What K and V are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvElement {
    /// As they are computed.
    F32,
    /// Rounded: half the memory, and half of what attention reads.
    Bf16,
    /// Rounded to IEEE's half precision; on CUDA devices.
    F16,
}

impl KvElement {
    /// What goes with linear layers of `dtype`: a cache is no more precise
    /// than what fills it.
    #[must_use]
    pub const fn of(dtype: ComputeDtype) -> Self {
        match dtype {
            ComputeDtype::F32 => Self::F32,
            ComputeDtype::Bf16 | ComputeDtype::Quantized => Self::Bf16,
            ComputeDtype::F16 => Self::F16,
        }
    }

    /// Bytes of one.
    #[must_use]
    pub const fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// What `KvBudget::Auto` takes at most, unless one sequence of an explicit
/// `max_model_len` needs more.
const AUTO_BYTES_MAX: u64 = GIB;

/// Sequences of full length that `KvBudget::Auto` makes room for.
const AUTO_SEQS_MAX: usize = 16;

/// The pool and the limits that follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSizing {
    /// Longest sequence in tokens, prompt and output.
    pub max_model_len: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// What K and V are stored as.
    pub element: KvElement,
    /// K and V of one token over all layers, in bytes.
    pub bytes_per_token: u64,
    /// The pool in bytes.
    pub total_bytes: u64,
}

impl KvSizing {
    /// Sizes the pool of `model` under `config`, for linear layers of `dtype`.
    /// `device_share` are the bytes that `gpu_memory_utilization` leaves for it on
    /// a CUDA device.
    ///
    /// # Errors
    /// [`InferError::Config`] for a setting that is zero, a `max_model_len`
    /// above the model's, or a pool that cannot hold one such sequence.
    pub fn new(
        config: &EngineConfig,
        dtype: ComputeDtype,
        model: &ModelConfig,
        device_share: Option<u64>,
    ) -> Result<Self, InferError> {
        check_ranges(config)?;
        let limit = model.max_position_embeddings;
        if let Some(asked) = config.max_model_len.filter(|asked| *asked > limit) {
            return Err(InferError::Config(format!(
                "max_model_len {asked} is above the model's max_position_embeddings {limit}: \
                 choose at most {limit}"
            )));
        }
        let block_size = config.block_size;
        let element = KvElement::of(dtype);
        let bytes_per_token = model.kv_bytes_per_token(element.num_bytes()) as u64;
        let bytes_per_block = bytes_per_token.saturating_mul(block_size as u64);
        let num_blocks = num_blocks(config, limit, bytes_per_block, device_share)?;
        let max_model_len = match config.max_model_len {
            Some(asked) => asked,
            None => limit.min(num_blocks.saturating_mul(block_size)),
        };
        let needed = max_model_len.div_ceil(block_size);
        if needed > num_blocks {
            return Err(InferError::Config(format!(
                "max_model_len {max_model_len} needs {needed} KV blocks of {block_size} tokens \
                 ({}), the pool has {num_blocks} ({}): lower max_model_len to {}, {}or raise \
                 kv_blocks to {needed} or kv_memory to {}",
                format_bytes(bytes_per_block.saturating_mul(needed as u64)),
                format_bytes(bytes_per_block.saturating_mul(num_blocks as u64)),
                num_blocks.saturating_mul(block_size),
                if device_share.is_some() && config.kv == KvBudget::Auto {
                    "raise gpu_memory_utilization, "
                } else {
                    ""
                },
                bytes_per_block.saturating_mul(needed as u64),
            )));
        }
        if max_model_len < 2 {
            return Err(InferError::Config(format!(
                "max_model_len {max_model_len} leaves no room for a prompt token and an output \
                 token: it must be at least 2"
            )));
        }
        let total_bytes = bytes_per_block.saturating_mul(num_blocks as u64);
        Ok(Self { max_model_len, block_size, num_blocks, element, bytes_per_token, total_bytes })
    }

    /// One block over all layers, in bytes.
    #[must_use]
    pub const fn bytes_per_block(&self) -> u64 {
        self.bytes_per_token.saturating_mul(self.block_size as u64)
    }
}

fn num_blocks(
    config: &EngineConfig,
    model_limit: usize,
    bytes_per_block: u64,
    device_share: Option<u64>,
) -> Result<usize, InferError> {
    let in_bytes =
        |bytes: u64| usize::try_from(bytes / bytes_per_block.max(1)).unwrap_or(usize::MAX);
    let blocks = match config.kv {
        KvBudget::Blocks(blocks) => blocks,
        KvBudget::Bytes(bytes) => in_bytes(bytes),
        KvBudget::Auto if device_share.is_some() => in_bytes(device_share.unwrap_or_default()),
        KvBudget::Auto => {
            let len = config.max_model_len.unwrap_or(model_limit);
            let one = len.div_ceil(config.block_size);
            let wanted = one.saturating_mul(config.max_num_seqs.min(AUTO_SEQS_MAX));
            let capped = wanted.min(in_bytes(AUTO_BYTES_MAX));
            if config.max_model_len.is_some() { capped.max(one) } else { capped }
        }
    };
    if blocks == 0 {
        return Err(InferError::Config(format!(
            "the KV pool has no block: one block of {} tokens takes {bytes_per_block} bytes ({}), \
             raise kv_memory to at least that or kv_blocks to at least 1",
            config.block_size,
            format_bytes(bytes_per_block),
        )));
    }
    let bytes = bytes_per_block.checked_mul(blocks as u64);
    if u32::try_from(blocks).is_err() || bytes.is_none_or(|bytes| bytes > isize::MAX as u64) {
        return Err(InferError::Config(format!(
            "a KV pool of {blocks} blocks of {} is more than this machine can address: lower \
             kv_blocks or kv_memory",
            format_bytes(bytes_per_block),
        )));
    }
    Ok(blocks)
}

/// Refuses zeros, and numbers so large that queues and batches of their size
/// would not be bounds.
fn check_ranges(config: &EngineConfig) -> Result<(), InferError> {
    let settings = [
        ("block_size", config.block_size, 1 << 16),
        ("max_num_seqs", config.max_num_seqs, 1 << 16),
        ("max_num_batched_tokens", config.max_num_batched_tokens, 1 << 24),
        ("max_queue", config.max_queue, 1 << 16),
        ("threads", config.num_threads(), 1 << 10),
    ];
    match settings.iter().find(|(_, value, max)| *value == 0 || value > max) {
        Some((name, value, max)) => {
            Err(InferError::Config(format!("{name} is {value}: it must be from 1 to {max}")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smollm2() -> ModelConfig {
        ModelConfig {
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 1e5,
            rope_scaling: None,
            max_position_embeddings: 8192,
            tie_word_embeddings: true,
            attention_bias: false,
            eos_token_ids: vec![2],
            bos_token_id: Some(1),
        }
    }

    fn size(max_model_len: Option<usize>, kv: KvBudget) -> Result<KvSizing, InferError> {
        let config = EngineConfig { max_model_len, kv, ..EngineConfig::default() };
        KvSizing::new(&config, ComputeDtype::F32, &smollm2(), None)
    }

    #[test]
    fn auto_is_capped_at_a_gibibyte() {
        let sizing = size(None, KvBudget::Auto).unwrap();
        assert_eq!(sizing.bytes_per_token, 46_080);
        assert_eq!(sizing.bytes_per_block(), 737_280);
        assert_eq!(sizing.num_blocks, 1456);
        assert_eq!(sizing.max_model_len, 8192);
        assert!(sizing.total_bytes <= GIB);
    }

    #[test]
    fn auto_makes_room_for_sixteen_short_sequences_and_no_more() {
        assert_eq!(size(Some(256), KvBudget::Auto).unwrap().num_blocks, 16 * 16);
    }

    #[test]
    fn a_small_pool_shortens_an_unset_max_model_len() {
        assert_eq!(size(None, KvBudget::Blocks(4)).unwrap().max_model_len, 64);
        assert_eq!(size(None, KvBudget::Bytes(4 * 737_280 + 1)).unwrap().num_blocks, 4);
    }

    #[test]
    fn a_pool_below_an_explicit_max_model_len_is_refused_with_numbers_and_ways_out() {
        let message = size(Some(8192), KvBudget::Blocks(8)).unwrap_err().to_string();
        for part in ["8192", "512", "8 (", "max_model_len to 128", "kv_blocks", "kv_memory"] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }

    #[test]
    fn max_model_len_above_the_models_names_both() {
        let message = size(Some(9000), KvBudget::Auto).unwrap_err().to_string();
        assert!(message.contains("9000") && message.contains("8192"), "{message}");
    }

    #[test]
    fn what_a_gpu_leaves_is_the_pool_and_too_little_names_the_ways_out() {
        let config = EngineConfig { max_model_len: Some(4096), ..EngineConfig::default() };
        let size = |share| KvSizing::new(&config, ComputeDtype::Bf16, &smollm2(), Some(share));
        let sizing = size(GIB).unwrap();
        assert!(sizing.total_bytes <= GIB && sizing.total_bytes + sizing.bytes_per_block() > GIB);
        let refused = size(16 << 20).unwrap_err().to_string();
        for way in ["lower max_model_len to", "raise gpu_memory_utilization", "kv_memory to"] {
            assert!(refused.contains(way), "{refused}");
        }
    }

    #[test]
    fn nothing_and_everything_are_refused() {
        assert!(size(None, KvBudget::Blocks(0)).is_err());
        assert!(size(None, KvBudget::Bytes(1000)).is_err());
        assert!(size(None, KvBudget::Blocks(usize::MAX)).is_err());
        let default = EngineConfig::default;
        for (config, name) in [
            (EngineConfig { block_size: 0, ..default() }, "block_size"),
            (EngineConfig { threads: Some(0), ..default() }, "threads"),
            (EngineConfig { threads: Some(5000), ..default() }, "threads"),
        ] {
            let refused = KvSizing::new(&config, ComputeDtype::F32, &smollm2(), None);
            assert!(refused.unwrap_err().to_string().contains(name));
        }
    }
}
