//! What a device's memory goes to: how large a pool `gpu_memory_utilization`
//! leaves, before anything is loaded, and what was taken in the end. Arithmetic
//! over numbers that others measured.

use super::Element;
use super::buffers::{Buffers, Capacity};
use super::weights::Weights;
use crate::infer::kv::KvSizing;
use crate::infer::scheduler::SchedulerLimits;
use crate::infer::telemetry::GpuMemory;
use crate::infer::{ComputeDtype, EngineConfig, InferError, KvBudget, ModelConfig};
use crate::units::{MIB, format_bytes};

/// What is kept aside for what cannot be known before it is there: cuBLAS's
/// workspace (32 MiB), code of kernels and libraries, graphs, and the rounding of
/// allocations.
const RESERVED_BYTES: u64 = 512 * MIB;

/// Free and total bytes of a device that an otherwise empty context stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Free.
    pub free: u64,
    /// As the driver counts them.
    pub total: u64,
}

/// Bytes for K and V: `gpu_memory_utilization` of all memory, less what is in
/// use (the context, other processes), weights, activations, and a reserve. As
/// vLLM's, except that others' memory counts as used: a card is not promised twice.
///
/// # Errors
/// [`InferError::Config`] when nothing is left, or a share is no share.
pub fn kv_share(
    memory: DeviceMemory,
    config: &EngineConfig,
    dtype: ComputeDtype,
    model: &ModelConfig,
) -> Result<u64, InferError> {
    let utilization = config.gpu_memory_utilization;
    if !(utilization > 0.0 && utilization <= 1.0) {
        return Err(InferError::Config(format!(
            "gpu_memory_utilization is {utilization}: it must lie in (0, 1]"
        )));
    }
    let element = Element::of(dtype)?;
    check_shape(config, model)?;
    let max_len = config.max_model_len.unwrap_or(model.max_position_embeddings);
    let weights = Weights::num_bytes(model, element, max_len);
    let activations = activation_bytes(config, dtype, model, max_len)?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a memory is no more precise"
    )]
    let allowed = (memory.total as f64 * utilization) as u64;
    let in_use = memory.total.saturating_sub(memory.free);
    let taken = [in_use, weights, activations, RESERVED_BYTES];
    match allowed.checked_sub(taken.iter().sum()) {
        Some(left) => Ok(left),
        None if config.kv != KvBudget::Auto => Ok(0),
        None => Err(InferError::Config(format!(
            "no memory is left for K and V: gpu_memory_utilization {utilization} allows {} of {}, \
             {} are in use, weights take {}, activations {}, and {} are kept aside: raise \
             gpu_memory_utilization, free the GPU, or lower max_num_batched_tokens or max_num_seqs",
            format_bytes(allowed),
            format_bytes(memory.total),
            format_bytes(in_use),
            format_bytes(weights),
            format_bytes(activations),
            format_bytes(RESERVED_BYTES),
        ))),
    }
}

/// Refuses, before anything is loaded, what the kernels do not take.
fn check_shape(config: &EngineConfig, model: &ModelConfig) -> Result<(), InferError> {
    let sizes = [
        ("block_size", config.block_size, 8, 256),
        ("head_dim", model.head_dim, 16, 256),
        ("hidden_size", model.hidden_size, 8, usize::MAX),
        ("intermediate_size", model.intermediate_size, 8, usize::MAX),
    ];
    for (name, size, step, max) in sizes {
        if size == 0 || size % step != 0 || size > max {
            let most = if max == usize::MAX { String::new() } else { format!(" up to {max}") };
            return Err(InferError::Config(format!(
                "{name} is {size}: on a CUDA device it must be a multiple of {step}{most}, choose \
                 another or --device cpu"
            )));
        }
    }
    Ok(())
}

/// `parts` with what is in use beyond them.
#[must_use]
pub const fn with_other(parts: GpuMemory) -> GpuMemory {
    let in_use = parts.total_bytes.saturating_sub(parts.free_bytes);
    let known = parts.weight_bytes
        + parts.kv_bytes
        + parts.activation_bytes
        + parts.graph_bytes
        + parts.context_bytes;
    GpuMemory { other_bytes: in_use.cast_signed() - known.cast_signed(), ..parts }
}

/// What steps write, for a pool that is not known yet: sized as if it held a full
/// sequence for every seat.
fn activation_bytes(
    config: &EngineConfig,
    dtype: ComputeDtype,
    model: &ModelConfig,
    max_len: usize,
) -> Result<u64, InferError> {
    let blocks = max_len.div_ceil(config.block_size.max(1));
    let assumed = EngineConfig {
        kv: KvBudget::Blocks(blocks.max(1)),
        max_model_len: Some(max_len),
        ..config.clone()
    };
    let sizing = KvSizing::new(&assumed, dtype, model, None)?;
    let limits = SchedulerLimits::new(&assumed, &sizing);
    Ok(Buffers::num_bytes(model, Element::of(dtype)?, &Capacity::new(&limits)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn llama() -> ModelConfig {
        ModelConfig {
            vocab_size: 128_256,
            hidden_size: 3072,
            intermediate_size: 8192,
            num_hidden_layers: 28,
            num_attention_heads: 24,
            num_key_value_heads: 8,
            head_dim: 128,
            max_position_embeddings: 131_072,
            ..ModelConfig::tiny()
        }
    }

    /// An L4, of which a context takes 300 MiB.
    const L4: DeviceMemory = DeviceMemory { free: 23_034 * MIB - 300 * MIB, total: 23_034 * MIB };

    fn share(config: &EngineConfig) -> Result<u64, InferError> {
        kv_share(L4, config, ComputeDtype::Bf16, &llama())
    }

    #[test]
    fn pool_of_llama_3_2_3b_on_an_l4_is_what_the_rest_leaves() {
        let left = share(&EngineConfig::default()).unwrap();
        // 0.9 * 22.5 GiB - 0.3 context - 6.0 weights - 0.5 aside - activations.
        let expected = 20.24 - 0.29 - 5.98 - 0.06 - 0.5;
        #[expect(clippy::cast_precision_loss, reason = "compared in GiB")]
        let activations = expected - left as f64 / GIB as f64;
        assert!((0.2..0.6).contains(&activations), "{activations}");
    }

    #[test]
    fn others_on_the_card_leave_less_and_at_last_nothing() {
        let with = |free| {
            let memory = DeviceMemory { free, ..L4 };
            kv_share(memory, &EngineConfig::default(), ComputeDtype::Bf16, &llama())
        };
        let whole = with(L4.free).unwrap();
        assert_eq!(with(L4.free - GIB).unwrap(), whole - GIB);
        let error = with(2 * GIB).unwrap_err().to_string();
        assert!(error.contains("raise gpu_memory_utilization") && error.contains("free the GPU"));
        for share_of_nothing in [0.0, 1.5, f64::NAN] {
            let config =
                EngineConfig { gpu_memory_utilization: share_of_nothing, ..Default::default() };
            assert!(share(&config).is_err());
        }
    }

    #[test]
    fn shapes_that_no_kernel_takes_are_refused_before_loading() {
        let refused = |config: EngineConfig, model: ModelConfig| {
            kv_share(L4, &config, ComputeDtype::Bf16, &model).unwrap_err().to_string()
        };
        let odd = EngineConfig { block_size: 12, ..EngineConfig::default() };
        assert!(refused(odd, llama()).starts_with("block_size is 12"));
        let narrow = ModelConfig { head_dim: 8, ..llama() };
        assert!(refused(EngineConfig::default(), narrow).starts_with("head_dim is 8"));
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let parts = with_other(GpuMemory {
            total_bytes: 1000,
            weight_bytes: 300,
            kv_bytes: 200,
            activation_bytes: 50,
            graph_bytes: 20,
            num_graphs: 3,
            context_bytes: 30,
            other_bytes: 0,
            free_bytes: 390,
        });
        assert_eq!(parts.other_bytes, 10);
        assert_eq!(with_other(GpuMemory { free_bytes: 410, ..parts }).other_bytes, -10);
    }
}
