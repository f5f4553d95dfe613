//! Where weights come from: safetensors, GGUF, or a seeded generator. A source
//! answers to Hugging Face tensor names; how a file spells them stays inside.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::QTensor;

use super::{InferError, ModelConfig, Tokenizer};

/// A model on this machine.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSource {
    /// A GGUF file: weights, tokenizer and config in one.
    Gguf(PathBuf),
    /// A folder with `config.json`, `tokenizer.json` and safetensors, single or sharded with an index.
    Folder(PathBuf),
    /// Seeded noise of `config`'s shapes: for measuring shapes whose weights are not at hand.
    Dummy {
        /// The shapes.
        config: Box<ModelConfig>,
        /// Seed of the noise.
        seed: u64,
        /// A `tokenizer.json`, if there is one; else token ids have made-up texts.
        tokenizer: Option<PathBuf>,
    },
}

/// One weight, dense or in the blocks of its file.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Dense, f32, contiguous.
    Dense(Tensor),
    /// GGML blocks, `[out, in]`.
    Quantized(Arc<QTensor>),
}

/// Tensors by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`).
pub trait WeightSource: Send {
    /// The named tensor. `shape` is checked. With `keep_quantized` a
    /// block-quantized matrix stays as it is; everything else is widened to f32.
    ///
    /// # Errors
    /// [`InferError::Load`] names the file, the tensor, and expected against got.
    fn load(&self, name: &str, shape: &[usize], keep_quantized: bool)
    -> Result<Weight, InferError>;

    /// How the weights are stored, such as `Q4_1` or `BF16`: the type that holds most bytes.
    fn stored_dtype(&self) -> String;

    /// Bytes of all tensors as stored.
    fn stored_bytes(&self) -> u64;
}

/// A model whose config and tokenizer are read and whose weights can be.
pub struct OpenModel {
    /// Shapes.
    pub config: ModelConfig,
    /// Tokenizer with chat template.
    pub tokenizer: Tokenizer,
    /// Weights, not yet read.
    pub weights: Box<dyn WeightSource>,
}

/// Opens a model: reads headers, config and tokenizer, checks them against
/// each other, and leaves the weights on disk.
///
/// # Errors
/// [`InferError::Load`] for a file that is damaged, truncated, of an unknown
/// kind, or that does not match its neighbours.
pub fn open(source: &ModelSource) -> Result<OpenModel, InferError> {
    let _ = source;
    unimplemented!()
}
