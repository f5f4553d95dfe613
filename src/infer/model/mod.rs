//! The model: its config, and one forward over candle tensors and our ops.

pub mod config;
pub mod llama;

pub use llama::Llama;

use candle_core::{Result, Tensor};

use super::batch::Batch;
use super::kv::KvCache;

/// What the engine asks of a model. Llama is the one there is; a null model
/// stands in where only the engine around it is measured.
pub trait Model: Send + Sync {
    /// Computes all rows of `batch`, writes their K and V to `cache`, and
    /// returns the logits of `batch.logit_rows`, f32 in host memory and
    /// contiguous: `[logit_rows, vocab]`; `None` if there are no such rows.
    ///
    /// # Errors
    /// When the batch does not fit the cache or the model.
    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Option<Tensor>>;
}

impl Model for Llama {
    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Option<Tensor>> {
        Self::forward(self, batch, cache)
    }
}
