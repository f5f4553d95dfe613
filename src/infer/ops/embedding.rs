//! Token ids to rows of the embedding, which may be the output head's matrix.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::linear::Matrix;

/// The embedding of a model, `[vocab, hidden]`.
#[derive(Debug)]
pub struct Embedding(Arc<Matrix>);

impl Embedding {
    /// Rows of `table`; a tied output head multiplies with the same one.
    #[must_use]
    pub const fn new(table: Arc<Matrix>) -> Self {
        Self(table)
    }

    /// `[num_tokens]` to `[num_tokens, hidden]`, f32.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        self.0.rows(ids)
    }

    /// Bytes in memory.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }
}
