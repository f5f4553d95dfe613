//! Weights that are no numbers, in every type that files store them in: refused
//! by tensor before anything computes with them.

use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::{GgmlDType, gguf_file};
use half::f16;
use safetensors::tensor::Dtype;
use yardstick::clock::Clock;
use yardstick::infer::weights::{self, WeightForm};
use yardstick::infer::{
    ComputeDtype, EngineConfig, EngineHost, GenerationEvent, InferError, InferRequest, ModelSource,
};

use crate::golden::breadth::block_model;
use crate::golden::noise;
use crate::models::forms::{
    NamedTensor, tiny_metadata, tiny_weights, write_gguf, write_safetensors, write_tiny_folder,
};
use crate::support::yardstick;

const SPECIAL: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// The tiny model's weights with one element of one tensor set to `special`.
fn spoiled(name: &str, at: usize, special: f32) -> Vec<NamedTensor> {
    let mut weights = tiny_weights();
    weights.iter_mut().find(|(tensor, ..)| tensor == name).unwrap().2[at] = special;
    weights
}

/// Loading fails and names `tensor`, for whoever asks for it and for a request
/// that meets it; the engine lives on.
fn is_refused(source: &ModelSource, tensor: &str) {
    for dtype in [None, Some(ComputeDtype::F32), Some(ComputeDtype::Bf16)] {
        let config = EngineConfig { dtype, ..EngineConfig::default() };
        let host = EngineHost::open(source, config, Clock::real()).unwrap();
        for _ in 0..2 {
            let error = host.load().unwrap_err();
            assert!(matches!(error, InferError::Load { .. }), "{error:?}");
            let reason = error.to_string();
            assert!(reason.contains(&format!("tensor `{tensor}`")), "{dtype:?}: {reason}");
            assert!(reason.contains("is no finite number"), "{dtype:?}: {reason}");
        }
        let mut generation = host.submit(InferRequest::new(vec![1], 1)).unwrap();
        let event = generation.blocking_next();
        let failed = matches!(event, Some(GenerationEvent::Failed(InferError::Load { .. })));
        assert!(failed, "{event:?}");
        assert!(!host.status().loaded && generation.blocking_next().is_none());
    }
}

#[test]
fn numbers_that_are_none_in_safetensors_are_refused_by_tensor() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_folder(folder.path(), Dtype::F32, false);
    let source = ModelSource::Folder(folder.path().to_owned());
    let path = folder.path().join("model.safetensors");
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        for (special, (name, at)) in SPECIAL.into_iter().zip([
            ("model.embed_tokens.weight", 0),
            ("model.layers.1.mlp.down_proj.weight", 32 * 64 - 1),
            ("model.norm.weight", 17),
        ]) {
            write_safetensors(&path, &spoiled(name, at, special), dtype);
            is_refused(&source, name);
        }
    }
}

#[test]
fn numbers_that_are_none_in_gguf_are_refused_by_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for dtype in [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16] {
        for (special, (name, at)) in SPECIAL.into_iter().zip([
            // Rows of q are in another order in the file.
            ("model.layers.0.self_attn.q_proj.weight", 40),
            ("model.embed_tokens.weight", 288 * 32 - 1),
            ("model.layers.1.input_layernorm.weight", 0),
        ]) {
            write_gguf(&path, dtype, &tiny_metadata(), &spoiled(name, at, special));
            is_refused(&ModelSource::Gguf(path.clone()), name);
        }
    }
}

/// Where a tensor's data begin, by candle's reader.
fn data_start(path: &Path, tensor: &str) -> usize {
    let content = gguf_file::Content::read(&mut File::open(path).unwrap()).unwrap();
    (content.tensor_data_offset + content.tensor_infos[tensor].offset) as usize
}

#[test]
fn scales_that_are_no_numbers_are_refused_in_every_type_of_block() {
    use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let (name, stored) = ("model.layers.1.mlp.gate_proj.weight", "blk.1.ffn_gate.weight");
    let config = block_model();
    let shape = [config.intermediate_size, config.hidden_size];
    for dtype in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
        noise::write_gguf(&path, "llama", &config, dtype);
        let good = fs::read(&path).unwrap();
        let start = data_start(&path, stored);
        for (offset, _) in noise::scales(dtype).unwrap() {
            for (block, special) in SPECIAL.into_iter().enumerate() {
                let at = start + block * dtype.type_size() + offset;
                let mut bad = good.clone();
                bad[at..at + 2].copy_from_slice(&f16::from_f32(special).to_le_bytes());
                fs::write(&path, bad).unwrap();
                let model = weights::open(&ModelSource::Gguf(path.clone())).unwrap();
                for form in [WeightForm::F32, WeightForm::Bf16, WeightForm::Stored] {
                    let error = model.weights.load(name, &shape, form).err().unwrap().to_string();
                    let expected = format!("the scale of block {block} is no finite number");
                    assert!(error.contains(&expected), "{dtype:?}, {offset}, {form:?}: {error}");
                    assert!(error.contains(name), "{error}");
                }
            }
        }
    }
}

#[test]
fn generate_names_the_tensor_that_is_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let name = "model.layers.0.mlp.up_proj.weight";
    write_gguf(&path, GgmlDType::F16, &tiny_metadata(), &spoiled(name, 5, f32::NAN));
    let output = yardstick()
        .args(["generate", "--prompt-ids", "1", "--max-tokens", "1", "--model"])
        .arg(&path)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.starts_with("error: cannot load ") && stderr.contains(name), "{stderr}");
    assert!(stderr.contains("element 5 is no finite number"), "{stderr}");
}
