//! Weights, shape and vocabulary of a GGUF file. Speaks Hugging Face names and
//! row order outwards; what llama.cpp's converter did to a file is undone here.

mod architecture;
mod header;
mod metadata;
mod names;
mod reader;
mod rows;
mod summary;
mod tensor_type;

use std::path::Path;

use candle_core::{Device, Tensor};

use self::architecture::Architecture;
use self::header::{Header, TensorInfo};
use self::metadata::{Metadata, required};
use self::rows::RowOrder;
pub use self::summary::GgufSummary;
use self::tensor_type::TensorType;
use super::finite::{Exponent, first_block_not_finite, first_not_finite};
use super::mapping::MappedFile;
use super::{
    Bf16Rows, InferError, QuantizedRows, StoredDtype, Weight, WeightForm, WeightSource, load_error,
    majority,
};
use crate::infer::ModelConfig;
use crate::infer::model::config::OUTPUT_HEAD;
use crate::infer::tokenizer::GgufVocabulary;

/// A GGUF file whose header is read and whose tensors are where it says.
pub(super) struct GgufFile {
    file: MappedFile,
    header: Header,
    architecture: Architecture,
    config: ModelConfig,
}

impl GgufFile {
    /// Maps the file, reads its header, and checks that every tensor of the
    /// model is there in a type that can be read and in the shape it must have.
    pub(super) fn open(path: &Path) -> Result<Self, InferError> {
        let file = MappedFile::open(path)?;
        let (header, architecture, config) =
            read_header(file.bytes()).map_err(|reason| load_error(path, reason))?;
        let gguf = Self { file, header, architecture, config };
        for (name, shape) in gguf.config.tensors() {
            gguf.find(&name, &shape)?;
        }
        Ok(gguf)
    }

    /// The model's shape.
    pub(super) const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the file says about its tokenizer.
    pub(super) fn vocabulary(&self) -> Result<GgufVocabulary, InferError> {
        read_vocabulary(&Metadata(&self.header.metadata))
            .map_err(|reason| load_error(self.file.path(), reason))
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, InferError> {
        find(&self.header, name, shape).map_err(|Refusal { reason, hint }| InferError::Load {
            path: self.file.path().to_owned(),
            reason,
            hint: hint.map(str::to_owned),
        })
    }

    fn row_order(&self, name: &str) -> RowOrder {
        let rotary = name.contains(".q_proj.") || name.contains(".k_proj.");
        if rotary && self.architecture == Architecture::Llama {
            RowOrder::Interleaved { head_dim: self.config.head_dim }
        } else {
            RowOrder::Stored
        }
    }

    /// Tensors of the model, not whatever else the file carries.
    fn stored(&self) -> impl Iterator<Item = &TensorInfo> {
        self.config
            .tensors()
            .into_iter()
            .filter_map(|(name, _)| self.header.tensors.get(&names::gguf_name(&name)?))
    }
}

impl WeightSource for GgufFile {
    fn load(
        &self,
        name: &str,
        shape: &[usize],
        form: WeightForm,
    ) -> Result<Weight<'_>, InferError> {
        let name = if name == OUTPUT_HEAD && self.config.tie_word_embeddings {
            crate::infer::model::config::EMBEDDING
        } else {
            name
        };
        let info = self.find(name, shape)?;
        let order = self.row_order(name);
        let failed = |reason| load_error(self.file.path(), format!("tensor `{name}`: {reason}"));
        check_finite(raw(self.file.bytes(), info), info.dtype).map_err(failed)?;
        if let [rows, columns] = *shape {
            let bytes = || rows::in_order(raw(self.file.bytes(), info), rows, order);
            let shape = [rows, columns];
            if info.dtype == TensorType::Bf16 && form != WeightForm::F32 {
                let rows = Bf16Rows::new(bytes(), shape).map_err(|e| failed(e.to_string()))?;
                return Ok(Weight::Bf16(rows));
            }
            if let (WeightForm::Stored, Some(ggml)) = (form, info.dtype.ggml()) {
                let rows =
                    QuantizedRows::new(ggml, bytes(), shape).map_err(|e| failed(e.to_string()))?;
                return Ok(Weight::Quantized(rows));
            }
        }
        let values = widen(self.file.bytes(), info, order).map_err(failed)?;
        Ok(Weight::Dense(Tensor::from_vec(values, shape, &Device::Cpu)?))
    }

    fn stored_dtype(&self) -> StoredDtype {
        majority(self.stored().map(|info| (info.dtype.into(), info.num_bytes as u64)))
    }

    fn stored_bytes(&self) -> u64 {
        self.stored().map(|info| info.num_bytes as u64).sum()
    }

    fn release(&self) {
        self.file.release();
    }
}

/// Why a tensor cannot be used, and what to do about it where something can be.
struct Refusal {
    reason: String,
    hint: Option<&'static str>,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { reason, hint: None }
    }
}

/// What the bytes of a whole file say about the model in it, and where its tensors are.
fn read_header(bytes: &[u8]) -> Result<(Header, Architecture, ModelConfig), String> {
    let header = Header::parse(bytes)?;
    let architecture = Architecture::of(&Metadata(&header.metadata))?;
    let factors = architecture::rope_factors(&header)
        .map(|info| widen(bytes, info, RowOrder::Stored))
        .transpose()
        .map_err(|e| format!("tensor `rope_freqs.weight`: {e}"))?;
    let config = architecture::model_config(&header, architecture, factors.as_deref())?;
    Ok((header, architecture, config))
}

/// See [`super::gguf_config`].
pub(super) fn config_of(bytes: &[u8]) -> Result<ModelConfig, String> {
    let (header, _, config) = read_header(bytes)?;
    for (name, shape) in config.tensors() {
        find(&header, &name, &shape).map_err(|refusal| refusal.reason)?;
    }
    Ok(config)
}

fn find<'a>(header: &'a Header, name: &str, shape: &[usize]) -> Result<&'a TensorInfo, Refusal> {
    let stored =
        names::gguf_name(name).ok_or_else(|| format!("no GGUF has a tensor for `{name}`"))?;
    let Some(info) = header.tensors.get(&stored) else {
        return Err(format!("tensor `{stored}` (`{name}`) is missing").into());
    };
    if info.shape != shape {
        let reason = format!("tensor `{stored}` has shape {:?}, expected {shape:?}", info.shape);
        return Err(reason.into());
    }
    match info.dtype {
        TensorType::Other(_) => Err(Refusal {
            reason: format!(
                "tensor `{stored}` is stored as {}, which is not supported",
                info.dtype
            ),
            hint: Some("use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or a K-quant"),
        }),
        _ => Ok(info),
    }
}

/// In bounds: the header's parser checked it against the file's length.
fn raw<'a>(bytes: &'a [u8], info: &TensorInfo) -> &'a [u8] {
    &bytes[info.start..info.start + info.num_bytes]
}

/// Refuses floats and scales that are no numbers.
fn check_finite(raw: &[u8], dtype: TensorType) -> Result<(), String> {
    let (what, at) = match dtype {
        TensorType::F32 => ("element", first_not_finite(raw, Exponent::F32)),
        TensorType::F16 => ("element", first_not_finite(raw, Exponent::F16)),
        TensorType::Bf16 => ("element", first_not_finite(raw, Exponent::Bf16)),
        blocks => {
            let stride = blocks.block().map_or(1, |(_, bytes)| bytes);
            ("the scale of block", first_block_not_finite(raw, stride, blocks.scale_offsets()))
        }
    };
    at.map_or(Ok(()), |at| Err(format!("it is damaged: {what} {at} is no finite number")))
}

fn widen(bytes: &[u8], info: &TensorInfo, order: RowOrder) -> Result<Vec<f32>, String> {
    let cols = info.shape.last().copied().unwrap_or(1);
    // A vector is one row, unless its elements are rows' biases.
    let cols = if info.shape.len() == 1 && order != RowOrder::Stored { 1 } else { cols };
    rows::widen(raw(bytes, info), info.dtype, cols, order)
}

fn read_vocabulary(metadata: &Metadata<'_>) -> Result<GgufVocabulary, String> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let model = required(&key("model"), metadata.str(&key("model"))?)?;
    if model != "gpt2" {
        return Err(format!("tokenizer `{model}` is not supported, expected gpt2"));
    }
    Ok(GgufVocabulary {
        pre: required(&key("pre"), metadata.str(&key("pre"))?)?.to_owned(),
        tokens: required(&key("tokens"), metadata.strs(&key("tokens"))?)?.to_vec(),
        token_types: required(&key("token_type"), metadata.ints(&key("token_type"))?)?.to_vec(),
        merges: required(&key("merges"), metadata.strs(&key("merges"))?)?.to_vec(),
        bos: metadata.int(&key("bos_token_id"))?,
        eos: metadata.int(&key("eos_token_id"))?,
        add_bos: metadata.bool(&key("add_bos_token"))?,
        chat_template: metadata.str("tokenizer.chat_template")?.map(str::to_owned),
    })
}
