//! Weights that tests/fixtures/make_breadth.py makes too, bit for bit, each
//! from its tensor's name; and the files that hold them.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use safetensors::tensor::Dtype;
use serde_json::json;
use yardstick::infer::ModelConfig;

use crate::models::{gguf_name, tiny_metadata, write_safetensors, write_tiny_tokenizer};

/// splitmix64 from the FNV-1a hash of the name.
fn bits(name: &str) -> impl Iterator<Item = u64> {
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    })
}

/// Uniform around zero; norms around one.
fn noise(name: &str, shape: &[usize]) -> Vec<f32> {
    let uniform = bits(name).map(|word| (word >> 40) as f32 / 8_388_608.0 - 1.0);
    let uniform = uniform.take(shape.iter().product());
    if name.ends_with("norm.weight") {
        uniform.map(|u| 1.0 + 0.25 * u).collect()
    } else if name.ends_with(".bias") {
        uniform.map(|u| 0.5 * u).collect()
    } else {
        uniform.map(|u| 0.25 * u).collect()
    }
}

/// What the half-precision fields of a block are set to, by offset; `None` for what has none.
pub(crate) fn scales(dtype: GgmlDType) -> Option<Vec<(usize, f32)>> {
    let power = |exponent: i32| 2.0_f32.powi(exponent);
    Some(match dtype {
        GgmlDType::Q4_0 => vec![(0, power(-6))],
        GgmlDType::Q4_1 => vec![(0, power(-6)), (2, -power(-3))],
        GgmlDType::Q5_0 => vec![(0, power(-7))],
        GgmlDType::Q5_1 => vec![(0, power(-7)), (2, -power(-3))],
        GgmlDType::Q8_0 => vec![(0, power(-10))],
        GgmlDType::Q2K => vec![(80, power(-7)), (82, power(-6))],
        GgmlDType::Q3K => vec![(108, power(-10))],
        GgmlDType::Q4K => vec![(0, power(-11)), (2, power(-8))],
        GgmlDType::Q5K => vec![(0, power(-12)), (2, power(-8))],
        GgmlDType::Q6K => vec![(208, power(-15))],
        _ => return None,
    })
}

/// Blocks of noise, row after row, but for the fields that scale them.
fn blocks(name: &str, shape: &[usize], dtype: GgmlDType, fields: &[(usize, f32)]) -> Vec<u8> {
    let count = shape.iter().product::<usize>() / dtype.block_size();
    let mut raw: Vec<u8> = bits(name)
        .take((count * dtype.type_size()).div_ceil(8))
        .flat_map(u64::to_le_bytes)
        .take(count * dtype.type_size())
        .collect();
    for block in raw.chunks_exact_mut(dtype.type_size()) {
        for (offset, value) in fields {
            block[*offset..offset + 2].copy_from_slice(&half::f16::from_f32(*value).to_le_bytes());
        }
    }
    raw
}

/// `config.json` as it is, a tokenizer, and the weights of `config` in f32, in
/// one file or in `shards`.
pub(super) fn write_folder(folder: &Path, json: &str, config: &ModelConfig, shards: usize) {
    fs::write(folder.join("config.json"), json).unwrap();
    write_tiny_tokenizer(folder);
    let weights: Vec<_> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| (name.clone(), shape.clone(), noise(&name, &shape)))
        .collect();
    if shards == 1 {
        write_safetensors(&folder.join("model.safetensors"), &weights, Dtype::F32);
        return;
    }
    let mut map = serde_json::Map::new();
    for (nth, part) in weights.chunks(weights.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", nth + 1);
        write_safetensors(&folder.join(&file), part, Dtype::F32);
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A GGUF as llama.cpp's converter lays it out: vectors in F32, matrices in
/// `dtype`, and the rows of q and k interleaved unless the family is `qwen2`.
pub(crate) fn write_gguf(path: &Path, family: &str, config: &ModelConfig, dtype: GgmlDType) {
    let tensors: Vec<(String, QTensor)> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
            let turned = family == "llama" && (name.contains("q_proj") || name.contains("k_proj"));
            let tensor = stored(&name, &shape, dtype, turned.then_some(config.head_dim));
            (gguf_name(&name), tensor)
        })
        .collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata = metadata(family, config);
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

fn stored(name: &str, shape: &[usize], dtype: GgmlDType, turned: Option<usize>) -> QTensor {
    let interleaved = |raw: Vec<u8>| match turned {
        Some(head_dim) => interleave(&raw, shape[0], head_dim),
        None => raw,
    };
    if let Some(fields) = scales(dtype) {
        let raw = interleaved(blocks(name, shape, dtype, &fields));
        let storage = QStorage::from_data(Cow::Owned(raw), &Device::Cpu, dtype).unwrap();
        return QTensor::new(storage, shape).unwrap();
    }
    let values: Vec<u8> = noise(name, shape).into_iter().flat_map(f32::to_le_bytes).collect();
    let values: Vec<f32> = interleaved(values)
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
        .collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, dtype).unwrap()
}

/// Rows `[heads, 2, head_dim / 2] -> [heads, head_dim / 2, 2]`.
fn interleave(raw: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row_bytes = raw.len() / rows;
    let mut out = vec![0; raw.len()];
    for (row, bytes) in raw.chunks_exact(row_bytes).enumerate() {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        let target = head * head_dim + pair * 2 + half;
        out[target * row_bytes..][..row_bytes].copy_from_slice(bytes);
    }
    out
}

fn metadata(family: &str, config: &ModelConfig) -> Vec<(String, Value)> {
    let size = |n: usize| Value::U32(u32::try_from(n).unwrap());
    let own = [
        ("block_count", size(config.num_hidden_layers)),
        ("context_length", size(config.max_position_embeddings)),
        ("embedding_length", size(config.hidden_size)),
        ("feed_forward_length", size(config.intermediate_size)),
        ("attention.head_count", size(config.num_attention_heads)),
        ("attention.head_count_kv", size(config.num_key_value_heads)),
        ("attention.key_length", size(config.head_dim)),
        ("attention.value_length", size(config.head_dim)),
        ("rope.dimension_count", size(config.head_dim)),
        ("rope.freq_base", Value::F32(config.rope_theta as f32)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32)),
    ];
    let own = own.into_iter().map(|(key, value)| (format!("{family}.{key}"), value));
    let tokenizer = tiny_metadata().into_iter().filter(|(key, _)| key.starts_with("tokenizer."));
    let architecture = ("general.architecture".to_owned(), Value::String(family.to_owned()));
    std::iter::once(architecture).chain(own).chain(tokenizer).collect()
}
