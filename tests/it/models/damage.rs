//! Files that are truncated, corrupt, or lie: always a typed error that names
//! the file and what is wrong, never a panic or an allocation they do not back.

use std::fs;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use proptest::prelude::*;
use safetensors::tensor::Dtype;
use yardstick::infer::weights;
use yardstick::infer::{InferError, ModelSource};

use super::forms::{
    NamedTensor, dense_weights, tiny_metadata, tiny_weights, write_gguf, write_safetensors,
    write_tiny_folder, write_tiny_gguf,
};

/// The reason for which a model is refused.
fn refusal(source: &ModelSource) -> String {
    match weights::open(source) {
        Err(error @ InferError::Load { .. }) => error.to_string(),
        Err(other) => panic!("expected a load error, got {other:?}"),
        Ok(_) => panic!("{source:?} was opened"),
    }
}

fn gguf_refusal(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    refusal(&ModelSource::Gguf(path))
}

fn tiny_gguf() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_tiny_gguf(&path, GgmlDType::Q8_0);
    fs::read(&path).unwrap()
}

fn gguf_with(change: impl FnOnce(&mut Vec<(String, Value)>)) -> String {
    let mut metadata = tiny_metadata();
    change(&mut metadata);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_gguf(&path, GgmlDType::Q8_0, &metadata, &tiny_weights());
    refusal(&ModelSource::Gguf(path))
}

fn set(metadata: &mut [(String, Value)], key: &str, value: Value) {
    metadata.iter_mut().find(|(name, _)| name == key).unwrap().1 = value;
}

/// Where the entry of a tensor's table ends its name: rank, dimensions, type, offset follow.
fn after_name(bytes: &[u8], name: &str) -> usize {
    let mut entry = (name.len() as u64).to_le_bytes().to_vec();
    entry.extend_from_slice(name.as_bytes());
    bytes.windows(entry.len()).position(|window| window == entry).unwrap() + entry.len()
}

#[test]
fn gguf_headers_that_lie_are_refused() {
    let good = tiny_gguf();
    let patched = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        gguf_refusal(&bad)
    };
    assert!(patched(0, b"GGML").contains("not a GGUF file"));
    assert!(patched(4, &9_u32.to_le_bytes()).contains("version 9"));
    assert!(patched(4, &3_u32.to_be_bytes()).contains("big-endian"));
    let absurd = (1_u64 << 60).to_le_bytes();
    assert!(patched(8, &absurd).contains("1152921504606846976 tensors"));
    assert!(patched(16, &absurd).contains("1152921504606846976 metadata entries"));
    assert!(patched(24, &absurd).contains("bytes of text"));

    let entry = after_name(&good, "blk.0.attn_q.weight");
    assert!(patched(entry, &9_u32.to_le_bytes()).contains("9 dimensions"));
    assert!(patched(entry + 4, &absurd).contains("attn_q"));
    assert!(patched(entry + 4, &64_u64.to_le_bytes()).contains("lie over each other"));
    let dtype = entry + 4 + 16;
    assert!(patched(dtype, &23_u32.to_le_bytes()).contains("IQ4_XS, which is not supported"));
    assert!(patched(dtype, &12_u32.to_le_bytes()).contains("no whole Q4_K blocks of 256"));
    assert!(patched(dtype + 4, &(1_u64 << 40).to_le_bytes()).contains("truncated or damaged"));
    assert!(patched(dtype + 4, &u64::MAX.to_le_bytes()).contains("not aligned"));
    assert!(patched(dtype + 4, &(u64::MAX - 31).to_le_bytes()).contains("truncated or damaged"));
    // The type of an array's elements, then its length, follow the key and the type.
    let array = after_name(&good, "tokenizer.ggml.tokens") + 4;
    assert!(patched(array, &99_u32.to_le_bytes()).contains("element type 99"));
    assert!(patched(array + 4, &absurd).contains("array elements"));
}

#[test]
fn gguf_tensors_that_are_missing_or_misshapen_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut weights = tiny_weights();
    let removed = weights.remove(3);
    write_gguf(&path, GgmlDType::F32, &tiny_metadata(), &weights);
    let reason = refusal(&ModelSource::Gguf(path.clone()));
    assert!(reason.contains(&format!("(`{}`) is missing", removed.0)), "{reason}");
}

#[test]
fn gguf_metadata_that_cannot_be_honoured_is_refused_by_name() {
    let text = |text: &str| Value::String(text.to_owned());
    let refused = |key: &str, value: Value| gguf_with(|metadata| set(metadata, key, value));
    assert!(refused("general.architecture", text("gemma3")).contains("`gemma3` is not supported"));
    assert!(refused("tokenizer.ggml.pre", text("tekken")).contains("pre-tokenizer `tekken`"));
    assert!(refused("tokenizer.ggml.model", text("llama")).contains("tokenizer `llama`"));
    assert!(refused("llama.attention.head_count", Value::U32(0)).contains("0 heads"));
    assert!(refused("llama.attention.head_count_kv", Value::U32(3)).contains("not divisible"));
    assert!(refused("llama.block_count", Value::U32(u32::MAX)).contains("num_hidden_layers"));
    assert!(refused("llama.block_count", text("many")).contains("should be a whole number"));
    assert!(refused("tokenizer.ggml.eos_token_id", Value::U32(999)).contains("eos_token_id 999"));
    let add =
        |key: &str, value: Value| gguf_with(|metadata| metadata.push((key.to_owned(), value)));
    assert!(add("llama.rope.scaling.type", text("yarn")).contains("rope scaling `yarn`"));
    assert!(add("llama.expert_count", Value::U32(8)).contains("8 experts"));
    assert!(add("split.count", Value::U16(2)).contains("split GGUF"));
    assert!(add("llama.rope.dimension_count", Value::U32(4)).contains("expected the head size 8"));
    assert!(add("general.alignment", Value::U32(7)).contains("multiple of 8"));
    assert!(
        gguf_with(|metadata| metadata.retain(|(key, _)| key != "llama.context_length"))
            .contains("`llama.context_length` is missing")
    );
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes() {
    let reason = gguf_with(|metadata| {
        let more = |key: &str, metadata: &[(String, Value)], make: fn(usize) -> Value| {
            let old = &metadata.iter().find(|(name, _)| name == key).unwrap().1;
            let mut values = old.to_vec().unwrap().clone();
            values.extend((values.len()..300).map(make));
            Value::Array(values)
        };
        let tokens = more("tokenizer.ggml.tokens", metadata, |i| Value::String(format!("t{i}")));
        let kinds = more("tokenizer.ggml.token_type", metadata, |_| Value::I32(1));
        set(metadata, "tokenizer.ggml.tokens", tokens);
        set(metadata, "tokenizer.ggml.token_type", kinds);
    });
    assert!(reason.contains("300 tokens") && reason.contains("288 rows"), "{reason}");
}

#[test]
fn what_is_no_model_file_is_refused() {
    assert!(gguf_refusal(b"").contains("empty"));
    assert!(gguf_refusal(b"GG").contains("truncated"));
    assert!(gguf_refusal(b"<html>not found</html>").contains("not a GGUF file"));
    let folder = tempfile::tempdir().unwrap();
    assert!(refusal(&ModelSource::Gguf(folder.path().to_owned())).contains("not a regular file"));
    assert!(refusal(&ModelSource::Folder(folder.path().to_owned())).contains("config.json"));
}

/// A tiny folder, spoiled.
fn folder_refusal(sharded: bool, spoil: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_folder(folder.path(), Dtype::F32, sharded);
    spoil(folder.path());
    refusal(&ModelSource::Folder(folder.path().to_owned()))
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn safetensors_that_lie_are_refused() {
    let spoiled = |change: fn(&mut Vec<u8>)| {
        folder_refusal(false, |folder| edit(&folder.join("model.safetensors"), change))
    };
    let damaged = "truncated or damaged";
    assert!(spoiled(|bytes| bytes.truncate(bytes.len() - 1)).contains(damaged));
    assert!(spoiled(|bytes| bytes.push(0)).contains(damaged));
    assert!(spoiled(|bytes| bytes.truncate(4)).contains(damaged));
    assert!(spoiled(|bytes| bytes.clear()).contains("empty"));
    let absurd_header = |bytes: &mut Vec<u8>| bytes[..8].copy_from_slice(&[0xff; 8]);
    assert!(spoiled(absurd_header).contains(damaged));
    assert!(spoiled(|bytes| bytes[8] = b'[').contains(damaged));
}

#[test]
fn safetensors_that_do_not_fit_the_config_are_named() {
    let rewritten = |change: fn(&mut Vec<NamedTensor>)| {
        folder_refusal(false, |folder| {
            let mut weights = tiny_weights();
            change(&mut weights);
            write_safetensors(&folder.join("model.safetensors"), &weights, Dtype::F32);
        })
    };
    let reason = rewritten(|weights| weights.retain(|(name, ..)| name != "model.norm.weight"));
    assert!(reason.contains("tensor `model.norm.weight` is missing"), "{reason}");
    let reason = rewritten(|weights| weights[0].1.reverse());
    assert!(reason.contains("has shape [32, 288], expected [288, 32]"), "{reason}");
    let reason = folder_refusal(false, |folder| {
        edit(&folder.join("model.safetensors"), |bytes| {
            // The same width in bytes under another name.
            let at = bytes.windows(3).position(|window| window == b"F32").unwrap();
            bytes[at..at + 3].copy_from_slice(b"I32");
        });
    });
    assert!(reason.contains("I32, expected F32, F16 or BF16"), "{reason}");
}

#[test]
fn an_index_that_lies_is_refused() {
    let index = "model.safetensors.index.json";
    let swapped = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        folder_refusal(true, |folder| {
            let text = fs::read_to_string(folder.join(index)).unwrap();
            fs::write(folder.join(index), text.replace(&from, &to)).unwrap();
        })
    };
    let second = "model-00002-of-00002.safetensors";
    assert!(swapped(second, "../outside.safetensors").contains("not a file of this folder"));
    assert!(swapped(second, "/etc/passwd").contains("not a file of this folder"));
    assert!(swapped(second, "gone.safetensors").contains("gone.safetensors"));
    assert!(swapped("model.norm.weight", "model.norm.weights").contains("model.norm.weights"));
    assert!(swapped("weight_map", "map").contains("weight_map"));
    let lost = folder_refusal(true, |folder| fs::remove_file(folder.join(second)).unwrap());
    assert!(lost.contains(second), "{lost}");
}

#[test]
fn neighbours_that_are_missing_or_damaged_are_named() {
    let gone = |file: &'static str| {
        folder_refusal(false, |folder| fs::remove_file(folder.join(file)).unwrap())
    };
    assert!(gone("config.json").contains("config.json"));
    assert!(gone("tokenizer.json").contains("tokenizer.json"));
    assert!(gone("model.safetensors").contains("neither model.safetensors nor"));
    let garbage = |file: &'static str| {
        folder_refusal(false, |folder| fs::write(folder.join(file), b"{\"a\":").unwrap())
    };
    assert!(garbage("config.json").contains("config.json"));
    assert!(garbage("tokenizer.json").contains("not a tokenizer"));
    assert!(garbage("tokenizer_config.json").contains("tokenizer_config.json"));
    assert!(garbage("generation_config.json").contains("generation_config.json"));
}

/// Opens and, where that works, loads everything: whatever comes of it, no panic.
fn exercise(source: &ModelSource) {
    if let Ok(model) = weights::open(source) {
        let elements: usize = dense_weights(&model).iter().map(|(.., values)| values.len()).sum();
        assert_eq!(elements as u64, model.config.num_parameters());
    }
}

/// A place in a file of `len` bytes, `share` of 65536 into it.
fn place(len: usize, share: u16) -> usize {
    len * usize::from(share) / (1 << 16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_truncated_gguf_is_an_error(cut in any::<u16>()) {
        let mut bytes = tiny_gguf();
        // The last tensor is padded by less than 32 bytes.
        let len = place(bytes.len() - 32, cut);
        bytes.truncate(len);
        gguf_refusal(&bytes);
    }

    #[test]
    fn flipped_bits_of_a_gguf_never_panic(
        flips in prop::collection::vec((any::<u16>(), 0..8_u32, any::<bool>()), 1..4)
    ) {
        let mut bytes = tiny_gguf();
        // Half of the flips in the header, where they hurt.
        let header = after_name(&bytes, "output_norm.weight") + 24;
        for (share, bit, in_header) in flips {
            let range = if in_header { header } else { bytes.len() };
            let at = place(range, share);
            bytes[at] ^= 1 << bit;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        exercise(&ModelSource::Gguf(path));
    }

    #[test]
    fn a_truncated_safetensors_is_an_error(cut in any::<u16>()) {
        folder_refusal(false, |folder| edit(&folder.join("model.safetensors"), |bytes| {
            let len = place(bytes.len(), cut);
            bytes.truncate(len);
        }));
    }

    #[test]
    fn flipped_bits_of_a_folder_never_panic(
        file in prop::sample::select(vec![
            "model.safetensors", "config.json", "tokenizer.json",
        ]),
        flips in prop::collection::vec((any::<u16>(), 0..8_u32), 1..4)
    ) {
        let folder = tempfile::tempdir().unwrap();
        write_tiny_folder(folder.path(), Dtype::F32, false);
        edit(&folder.path().join(file), |bytes| for (share, bit) in flips {
            let range = bytes.len().min(4096);
            let at = place(range, share);
            bytes[at] ^= 1 << bit;
        });
        exercise(&ModelSource::Folder(folder.path().to_owned()));
    }
}
