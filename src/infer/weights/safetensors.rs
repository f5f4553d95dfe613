//! Weights of a Hugging Face folder: one safetensors file, or shards with an
//! index. Headers are read and checked; data stays mapped until it is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::dense::{widen_bf16, widen_f16, widen_f32, widen_parallel};
use super::finite::{Exponent, first_not_finite};
use super::mapping::MappedFile;
use super::{
    Bf16Rows, InferError, StoredDtype, Weight, WeightForm, WeightSource, load_error, majority,
    read_text,
};
use crate::infer::ModelConfig;
use crate::infer::model::config::{EMBEDDING, OUTPUT_HEAD};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_SHARDS: usize = 1024;

/// The safetensors of one folder.
pub(super) struct SafetensorsFolder {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Stored>,
    config: ModelConfig,
}

struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In the file, header included.
    range: std::ops::Range<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Maps the files and checks that every tensor of the model is there, in a
    /// type that can be read and in the shape it must have.
    pub(super) fn open(folder: &Path, config: &ModelConfig) -> Result<Self, InferError> {
        let mut opened =
            Self { files: Vec::new(), tensors: BTreeMap::new(), config: config.clone() };
        let single = folder.join(SINGLE);
        let index = folder.join(INDEX);
        if single.exists() {
            opened.add_file(&single)?;
        } else if index.exists() {
            opened.add_shards(folder, &index)?;
        } else {
            return Err(no_weights(folder));
        }
        for (name, shape) in config.tensors() {
            opened.find(&name, &shape).map_err(|reason| load_error(folder, reason))?;
        }
        Ok(opened)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), InferError> {
        let file = MappedFile::open(path)?;
        let table = read_table(file.bytes(), self.files.len());
        for (name, stored) in table.map_err(|reason| load_error(path, reason))? {
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(load_error(path, format!("tensor `{name}` is in another shard too")));
            }
        }
        self.files.push(file);
        Ok(())
    }

    fn add_shards(&mut self, folder: &Path, index_path: &Path) -> Result<(), InferError> {
        let damaged = |reason: String| load_error(index_path, reason);
        let index: Index =
            serde_json::from_str(&read_text(index_path)?).map_err(|e| damaged(e.to_string()))?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        if shards.is_empty() || shards.len() > MAX_SHARDS {
            return Err(damaged(format!(
                "names {} shards, expected 1 to {MAX_SHARDS}",
                shards.len()
            )));
        }
        for shard in shards {
            let mut parts = Path::new(shard).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(damaged(format!("shard `{shard}` is not a file of this folder")));
            }
            self.add_file(&folder.join(shard))?;
        }
        for (name, shard) in &index.weight_map {
            let found = self.tensors.get(name).map(|stored| &self.files[stored.file]);
            if found.is_none_or(|file| file.path().file_name() != Some(shard.as_ref())) {
                return Err(damaged(format!("tensor `{name}` is not in `{shard}` as it says")));
            }
        }
        Ok(())
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<&Stored, String> {
        find(&self.tensors, name, shape)
    }

    /// Tensors of the model, not whatever else the files carry.
    fn stored(&self) -> impl Iterator<Item = &Stored> {
        self.config.tensors().into_iter().filter_map(|(name, _)| self.tensors.get(&name))
    }
}

impl WeightSource for SafetensorsFolder {
    fn load(
        &self,
        name: &str,
        shape: &[usize],
        form: WeightForm,
    ) -> Result<Weight<'_>, InferError> {
        let tied = name == OUTPUT_HEAD && self.config.tie_word_embeddings;
        let name = if tied { EMBEDDING } else { name };
        let folder = self.files.first().and_then(|file| file.path().parent());
        let stored = self
            .find(name, shape)
            .map_err(|reason| load_error(folder.unwrap_or_else(|| Path::new("")), reason))?;
        let file = &self.files[stored.file];
        let raw = &file.bytes()[stored.range.clone()];
        let exponent = match stored.dtype {
            Dtype::F16 => Exponent::F16,
            Dtype::BF16 => Exponent::Bf16,
            _ => Exponent::F32,
        };
        if let Some(at) = first_not_finite(raw, exponent) {
            let reason = format!("tensor `{name}` is damaged: element {at} is no finite number");
            return Err(load_error(file.path(), reason));
        }
        if let (Dtype::BF16, WeightForm::Bf16 | WeightForm::Stored, [rows, columns]) =
            (stored.dtype, form, shape)
        {
            return Ok(Weight::Bf16(Bf16Rows::new(raw, [*rows, *columns])?));
        }
        let values = match stored.dtype {
            Dtype::F16 => widen_parallel(raw, 2, widen_f16),
            Dtype::BF16 => widen_parallel(raw, 2, widen_bf16),
            _ => widen_parallel(raw, 4, widen_f32),
        };
        Ok(Weight::Dense(Tensor::from_vec(values, shape, &Device::Cpu)?))
    }

    fn stored_dtype(&self) -> StoredDtype {
        let dtype = |stored: &Stored| match stored.dtype {
            Dtype::F16 => StoredDtype::F16,
            Dtype::BF16 => StoredDtype::Bf16,
            _ => StoredDtype::F32,
        };
        majority(self.stored().map(|stored| (dtype(stored), stored.range.len() as u64)))
    }

    fn stored_bytes(&self) -> u64 {
        self.stored().map(|stored| stored.range.len() as u64).sum()
    }

    fn release(&self) {
        self.files.iter().for_each(MappedFile::release);
    }
}

/// See [`super::check_safetensors`].
pub(super) fn check(bytes: &[u8], config: &ModelConfig) -> Result<(), String> {
    let tensors = read_table(bytes, 0)?.into_iter().collect();
    for (name, shape) in config.tensors() {
        find(&tensors, &name, &shape)?;
    }
    Ok(())
}

/// Name and place of every tensor of a whole file, which is the `file`th.
fn read_table(bytes: &[u8], file: usize) -> Result<Vec<(String, Stored)>, String> {
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| format!("not a whole safetensors file, truncated or damaged: {e}"))?;
    // The header's length field comes first; offsets count from the header's end.
    let data = size_of::<u64>() + header;
    let tensors = metadata.tensors().into_iter().map(move |(name, info)| {
        let (begin, end) = info.data_offsets;
        let range = data + begin..data + end;
        (name, Stored { file, dtype: info.dtype, shape: info.shape.clone(), range })
    });
    Ok(tensors.collect())
}

fn find<'a>(
    tensors: &'a BTreeMap<String, Stored>,
    name: &str,
    shape: &[usize],
) -> Result<&'a Stored, String> {
    let stored = tensors.get(name).ok_or_else(|| format!("tensor `{name}` is missing"))?;
    if stored.shape != shape {
        return Err(format!("tensor `{name}` has shape {:?}, expected {shape:?}", stored.shape));
    }
    match stored.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(stored),
        other => Err(format!("tensor `{name}` is stored as {other:?}, expected F32, F16 or BF16")),
    }
}

fn no_weights(folder: &Path) -> InferError {
    let gguf = std::fs::read_dir(folder).into_iter().flatten().flatten().find_map(|entry| {
        let path = entry.path();
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")).then_some(path)
    });
    InferError::Load {
        path: folder.to_owned(),
        reason: format!("neither {SINGLE} nor {INDEX} is there"),
        hint: Some(gguf.map_or_else(
            || "the weights must be safetensors; other formats can be converted".to_owned(),
            |path| format!("to use the GGUF file in it, name the file: {}", path.display()),
        )),
    }
}
