//! The K and V tensors, one pair a layer. Which slot belongs to whom is the
//! block manager's business.

use candle_core::{DType, Device, Tensor};

use super::KvSizing;
use super::sizing::KV_ELEMENT_BYTES;
use crate::infer::{InferError, ModelConfig};
use crate::units::format_bytes;

/// K and V of every layer, each `[num_blocks, block_size, num_kv_heads, head_dim]`, f32.
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
        let shape =
            (sizing.num_blocks, sizing.block_size, model.num_key_value_heads, model.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        let layers = (0..model.num_hidden_layers)
            .map(|_| Ok((zeros()?, zeros()?)))
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
    let elements = usize::try_from(sizing.total_bytes).unwrap_or(usize::MAX) / KV_ELEMENT_BYTES;
    Vec::<f32>::new().try_reserve_exact(elements).map_err(|_| {
        InferError::Config(format!(
            "no memory for a KV pool of {} blocks ({}): lower kv_blocks or kv_memory",
            sizing.num_blocks,
            format_bytes(sizing.total_bytes),
        ))
    })
}
