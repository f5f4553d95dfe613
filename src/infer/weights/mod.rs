//! Where weights come from: safetensors, GGUF, or a seeded generator. A source
//! answers to Hugging Face tensor names; how a file spells them stays inside.

mod dense;
mod dummy;
mod finite;
mod gguf;
mod mapping;
pub mod page_cache;
mod safetensors;
mod weight;

pub use self::gguf::GgufSummary;
pub use weight::{Bf16Rows, QuantizedRows, Weight};

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use self::dummy::DummyWeights;
use self::gguf::GgufFile;
use self::safetensors::SafetensorsFolder;
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

/// What a caller can take besides f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightForm {
    /// Nothing: everything is widened.
    F32,
    /// Matrices that are stored as bf16 stay so.
    Bf16,
    /// Matrices of bf16 and of quantized blocks stay as they are.
    Stored,
}

/// How weights are stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoredDtype {
    /// Single precision.
    F32,
    /// Half precision of IEEE.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// GGML blocks of the type of this name, such as `Q4_1`.
    Blocks(String),
    /// Nowhere: they are seeded noise.
    Noise,
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Blocks(name) => name,
            Self::Noise => "dummy",
        })
    }
}

/// Tensors by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`).
pub trait WeightSource: Send {
    /// The named tensor. `shape` is checked. What is no matrix, and what `form`
    /// does not name, is widened to f32.
    ///
    /// # Errors
    /// [`InferError::Load`] names the file, the tensor, and expected against got.
    fn load(&self, name: &str, shape: &[usize], form: WeightForm)
    -> Result<Weight<'_>, InferError>;

    /// How the weights are stored: the type that holds most bytes.
    fn stored_dtype(&self) -> StoredDtype;

    /// Bytes of all tensors as stored.
    fn stored_bytes(&self) -> u64;

    /// Lets go of the memory in which stored bytes lie since they were read. What is
    /// loaded next is read again.
    fn release(&self) {}
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
    let (mut config, tokenizer, weights, path): (_, _, Box<dyn WeightSource>, _) = match source {
        ModelSource::Gguf(path) => {
            let file = GgufFile::open(path)?;
            let tokenizer = Tokenizer::from_gguf(file.vocabulary()?)
                .map_err(|reason| load_error(path, reason))?;
            (file.config().clone(), tokenizer, Box::new(file), path.clone())
        }
        ModelSource::Folder(folder) => {
            let config = read_hf_config(folder)?;
            let weights = SafetensorsFolder::open(folder, &config)?;
            let path = folder.join("tokenizer.json");
            (config, Tokenizer::from_file(&path)?, Box::new(weights), path)
        }
        ModelSource::Dummy { config, seed, tokenizer } => {
            let config = config.as_ref().clone();
            config.check().map_err(InferError::Config)?;
            let (read, path) = match tokenizer {
                Some(path) => (Tokenizer::from_file(path)?, path.clone()),
                None => (Tokenizer::made_up(&config), PathBuf::new()),
            };
            let weights = DummyWeights::new(config.clone(), *seed);
            (config, read, Box::new(weights), path)
        }
    };
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(load_error(
            &path,
            format!(
                "the tokenizer has {} tokens, the model's embedding {} rows: they do not belong \
                 together",
                tokenizer.vocab_size(),
                config.vocab_size
            ),
        ));
    }
    config.bos_token_id = tokenizer.added_bos();
    Ok(OpenModel { config, tokenizer, weights })
}

/// The shape of the model at `source`, without its tokenizer; headers and
/// shapes of its weights are checked where it has any.
///
/// # Errors
/// As [`open`].
pub fn read_config(source: &ModelSource) -> Result<ModelConfig, InferError> {
    match source {
        ModelSource::Gguf(path) => Ok(GgufFile::open(path)?.config().clone()),
        ModelSource::Folder(folder) => read_hf_config(folder),
        ModelSource::Dummy { config, .. } => Ok(config.as_ref().clone()),
    }
}

/// The shape that the bytes of a GGUF file declare, each of its tensors found
/// among them. What [`open`] does before it turns to the tokenizer, without a file.
///
/// # Errors
/// A sentence saying what is damaged, missing or not supported.
pub fn gguf_config(bytes: &[u8]) -> Result<ModelConfig, String> {
    gguf::config_of(bytes)
}

/// Whether `bytes` are a safetensors file with every tensor of a model of this shape.
///
/// # Errors
/// A sentence saying what is damaged, missing or not supported.
pub fn check_safetensors(bytes: &[u8], config: &ModelConfig) -> Result<(), String> {
    safetensors::check(bytes, config)
}

fn read_hf_config(folder: &Path) -> Result<ModelConfig, InferError> {
    let path = folder.join("config.json");
    let generation = folder.join("generation_config.json");
    let text = read_text(&path)?;
    let generation_text = generation.exists().then(|| read_text(&generation)).transpose()?;
    ModelConfig::from_hf(&text, generation_text.as_deref())
        .map_err(|reason| load_error(folder, reason))
}

/// Longest JSON beside a model; the largest tokenizers take 40 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// A text file of bounded size.
pub(super) fn read_text(path: &Path) -> Result<String, InferError> {
    let failed = |e: std::io::Error| load_error(path, e.to_string());
    let file = File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(MAX_TEXT_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        return Err(load_error(path, format!("longer than {MAX_TEXT_BYTES} bytes")));
    }
    Ok(text)
}

pub(super) fn load_error(path: &Path, reason: impl Into<String>) -> InferError {
    InferError::Load { path: path.to_owned(), reason: reason.into(), hint: None }
}

/// The type that holds most bytes, of tensors by type and size.
fn majority(tensors: impl Iterator<Item = (StoredDtype, u64)>) -> StoredDtype {
    let mut bytes = BTreeMap::new();
    for (dtype, size) in tensors {
        *bytes.entry(dtype).or_insert(0) += size;
    }
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    most.map_or(StoredDtype::F32, |(dtype, _)| dtype)
}
