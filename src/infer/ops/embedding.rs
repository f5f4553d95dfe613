//! Token ids to rows of the embedding, from a plain table or from the packed
//! output head that shares its weights.

use candle_core::{Device, Result, Tensor};

use super::linear::PackedMatrix;

/// The embedding of a model.
#[derive(Debug)]
pub enum Embedding {
    /// `[vocab, hidden]`.
    Table(Tensor),
    /// The output head: tied weights are kept once.
    Tied(PackedMatrix),
}

impl Embedding {
    /// `[num_tokens]` to `[num_tokens, hidden]`.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Table(table) => table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0),
            Self::Tied(matrix) => matrix.rows(ids),
        }
    }
}
