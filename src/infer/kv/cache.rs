//! The K and V tensors, one pair a layer. Which slot belongs to whom is the
//! block manager's business.

use candle_core::{DType, Device, Tensor};
use half::bf16;
use half::vec::HalfBitsVecExt;

use super::KvSizing;
use super::sizing::KvElement;
use crate::infer::{InferError, ModelConfig};
use crate::units::format_bytes;

/// K, `[num_blocks, num_kv_heads, head_dim, block_size]`, and V, `[num_blocks,
/// num_kv_heads, block_size, head_dim]`, of every layer: each in the order in
/// which attention runs through it.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// Zeroed tensors for the pool that `sizing` describes. The system hands
    /// out their pages when they are first written.
    ///
    /// # Errors
    /// [`InferError::Config`] when the machine has no such memory.
    pub fn new(
        sizing: &KvSizing,
        model: &ModelConfig,
        device: &Device,
    ) -> Result<Self, InferError> {
        reserve_all(sizing)?;
        let layers = model.num_hidden_layers;
        let (blocks, heads) = (sizing.num_blocks, model.num_key_value_heads);
        // One allocation for all layers: the system has the pages of a large
        // one ready zeroed, those of many middling ones the allocator may write.
        let zeros = |rows, columns| match sizing.element {
            KvElement::F32 => {
                Tensor::zeros((layers, blocks, heads, rows, columns), DType::F32, device)
            }
            // Zeroed integers come from the system untouched; candle would write every bf16.
            KvElement::Bf16 => {
                let bits = vec![0_u16; layers * blocks * heads * rows * columns];
                let shape = (layers, blocks, heads, rows, columns);
                Tensor::from_vec(bits.reinterpret_into::<bf16>(), shape, device)
            }
            KvElement::F16 => candle_core::bail!("the CPU keeps no K and V in f16"),
        };
        let k = zeros(model.head_dim, sizing.block_size)?;
        let v = zeros(sizing.block_size, model.head_dim)?;
        let layers = (0..layers)
            .map(|layer| Ok((k.get(layer)?, v.get(layer)?)))
            .collect::<Result<_, candle_core::Error>>()?;
        Ok(Self { layers })
    }

    /// K and V of a layer.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<(&Tensor, &Tensor)> {
        self.layers.get(layer).map(|(k, v)| (k, v))
    }
}

/// Asks for the whole pool once and gives it back: a tensor that cannot be
/// allocated would end the process, a failed reservation is an error.
fn reserve_all(sizing: &KvSizing) -> Result<(), InferError> {
    let bytes = usize::try_from(sizing.total_bytes).unwrap_or(usize::MAX);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| {
        InferError::Config(format!(
            "no memory for a KV pool of {} blocks ({}): lower kv_blocks or kv_memory",
            sizing.num_blocks,
            format_bytes(sizing.total_bytes),
        ))
    })
}
