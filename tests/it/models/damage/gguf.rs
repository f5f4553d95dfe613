//! GGUF files that are cut, patched, or lie about what they hold.

use std::fs;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use proptest::prelude::*;
use yardstick::infer::ModelSource;
use yardstick::infer::weights::{self, gguf_config};

use super::{exercise, gguf_refusal, place, refusal};
use crate::models::forms::{tiny_metadata, tiny_weights, write_gguf, write_tiny_gguf};

/// What a file's data is aligned to.
const ALIGNMENT: usize = 32;

fn tiny_gguf() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_tiny_gguf(&path, GgmlDType::Q8_0);
    fs::read(&path).unwrap()
}

/// The reason for which the tiny model is refused once its metadata is changed.
pub(super) fn gguf_with(change: impl FnOnce(&mut Vec<(String, Value)>)) -> String {
    let mut metadata = tiny_metadata();
    change(&mut metadata);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_gguf(&path, GgmlDType::Q8_0, &metadata, &tiny_weights());
    refusal(&ModelSource::Gguf(path))
}

pub(super) fn set(metadata: &mut [(String, Value)], key: &str, value: Value) {
    metadata.iter_mut().find(|(name, _)| name == key).unwrap().1 = value;
}

/// Where the entry of a tensor's table ends its name: rank, dimensions, type, offset follow.
fn after_name(bytes: &[u8], name: &str) -> usize {
    let mut entry = (name.len() as u64).to_le_bytes().to_vec();
    entry.extend_from_slice(name.as_bytes());
    bytes.windows(entry.len()).position(|window| window == entry).unwrap() + entry.len()
}

/// Bytes before the data and its padding: the table ends with a vector.
fn header_len(bytes: &[u8]) -> usize {
    after_name(bytes, "output_norm.weight") + 4 + 8 + 4 + 8
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The tiny model with another entry of metadata in front.
fn with_entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let good = tiny_gguf();
    let (header, data) = good.split_at(header_len(&good));
    let data = &data[header.len().next_multiple_of(ALIGNMENT) - header.len()..];
    let count = u64::from_le_bytes(header[16..24].try_into().unwrap()) + 1;
    let entry = [&text(key), &kind.to_le_bytes()[..], value].concat();
    let mut bytes = [&header[..16], &count.to_le_bytes(), &entry, &header[24..]].concat();
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes.extend_from_slice(data);
    bytes
}

/// An array of one array of one array, `depth` of them, the last of them empty.
fn nested(depth: usize) -> Vec<u8> {
    let level = |kind: u32, len: u64| [&kind.to_le_bytes()[..], &len.to_le_bytes()].concat();
    [level(9, 1).repeat(depth - 1), level(0, 0)].concat()
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
fn gguf_cut_anywhere_in_its_header_is_refused() {
    let good = tiny_gguf();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for len in 1..=header_len(&good) {
        gguf_config(&good[..len]).unwrap_err();
        fs::write(&path, &good[..len]).unwrap();
        refusal(&ModelSource::Gguf(path.clone()));
    }
}

#[test]
fn gguf_whose_end_was_never_written_is_refused_or_whole() {
    let good = tiny_gguf();
    let expected = gguf_config(&good).unwrap();
    for len in 0..header_len(&good) {
        // As a file system leaves it that gave out the space before the bytes came.
        let mut zeroed = good.clone();
        zeroed[len..].fill(0);
        if let Ok(config) = gguf_config(&zeroed) {
            assert_eq!(config, expected, "zeros from byte {len} on");
        }
    }
}

#[test]
fn any_byte_of_a_gguf_header_may_be_wrong() {
    let good = tiny_gguf();
    for at in 0..header_len(&good) {
        for wrong in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] = wrong;
            // Whatever comes of it, it comes.
            let _ = gguf_config(&bad);
        }
    }
}

#[test]
fn gguf_arrays_of_arrays_are_skipped_as_far_as_they_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, with_entry("some.matrix", 9, &nested(4))).unwrap();
    exercise(&ModelSource::Gguf(path.clone()));
    assert!(weights::open(&ModelSource::Gguf(path)).is_ok());
    for depth in [5, 64, 100_000] {
        let reason = gguf_refusal(&with_entry("some.matrix", 9, &nested(depth)));
        assert!(reason.contains("`some.matrix`: arrays are nested deeper than 4"), "{reason}");
    }
    let many = [&9_u32.to_le_bytes()[..], &(1_u64 << 61).to_le_bytes()].concat();
    let reason = gguf_refusal(&with_entry("some.matrix", 9, &many));
    assert!(reason.contains("2305843009213693952 array elements"), "{reason}");
    // Where a list of texts belongs.
    let tokens = Value::Array(vec![Value::Array(vec![Value::U32(1)])]);
    let reason = gguf_with(|metadata| set(metadata, "tokenizer.ggml.tokens", tokens));
    assert!(reason.contains("`tokenizer.ggml.tokens` should be a list of texts"), "{reason}");
}

#[test]
fn gguf_values_that_are_none_are_refused_with_their_key() {
    let refused = |kind, value: &[u8]| gguf_refusal(&with_entry("some.key", kind, value));
    assert!(refused(7, &[2]).contains("`some.key`: a truth value is 2"));
    assert!(refused(13, &[0; 8]).contains("`some.key`: value type 13 is unknown"));
    assert!(refused(8, &u64::MAX.to_le_bytes()).contains("18446744073709551615 bytes of text"));
    let twice = with_entry("llama.block_count", 4, &1_u32.to_le_bytes());
    assert!(gguf_refusal(&twice).contains("`llama.block_count` occurs twice"));
}

#[test]
fn gguf_shapes_that_overflow_are_refused_by_tensor() {
    let good = tiny_gguf();
    let patched = |name: &str, dims: &[u64]| {
        let at = after_name(&good, name) + 4;
        let mut bad = good.clone();
        for (nth, dim) in dims.iter().enumerate() {
            bad[at + 8 * nth..][..8].copy_from_slice(&dim.to_le_bytes());
        }
        gguf_refusal(&bad)
    };
    // More elements than can be counted; as many as can, in more bytes than can.
    let absurd = |name: &str, dims: &[u64]| {
        let reason = patched(name, dims);
        assert!(reason.contains(&format!("tensor `{name}`: its shape")), "{reason}");
        assert!(reason.contains("is absurd"), "{reason}");
    };
    absurd("blk.0.attn_q.weight", &[1 << 33, 1 << 33]);
    absurd("blk.0.attn_q.weight", &[u64::MAX - 31, u64::MAX]);
    absurd("output_norm.weight", &[1 << 62]);
    let large = patched("output_norm.weight", &[1 << 40]);
    assert!(large.contains("tensor `output_norm.weight`: needs 4398046511104 bytes"), "{large}");
    assert!(patched("blk.0.attn_q.weight", &[0, 0]).contains("has shape [0, 0]"));
    assert!(patched("output_norm.weight", &[31]).contains("has shape [31], expected [32]"));
}

#[test]
fn gguf_names_that_are_wrong_are_refused() {
    let good = tiny_gguf();
    let renamed = |from: &str, to: &[u8]| {
        let mut bad = good.clone();
        let at = after_name(&good, from);
        bad[at - to.len()..at].copy_from_slice(to);
        gguf_refusal(&bad)
    };
    let twice = renamed("blk.0.attn_k.weight", b"blk.0.attn_v.weight");
    assert!(twice.contains("`blk.0.attn_v.weight` occurs twice"), "{twice}");
    // What is no UTF-8 is no name of ours.
    let lost = renamed("blk.0.attn_k.weight", b"\xff");
    assert!(lost.contains("`blk.0.attn_k.weight` (`model.layers.0"), "{lost}");
    let mut endless = good.clone();
    let at = after_name(&good, "blk.0.attn_k.weight") - 19 - 8;
    endless[at..at + 8].copy_from_slice(&(1_u64 << 50).to_le_bytes());
    assert!(gguf_refusal(&endless).contains("1125899906842624 bytes of text"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_truncated_gguf_is_an_error(cut in any::<u16>()) {
        let mut bytes = tiny_gguf();
        // The last tensor is padded by less than 32 bytes.
        let len = place(bytes.len() - ALIGNMENT, cut);
        bytes.truncate(len);
        gguf_refusal(&bytes);
    }

    #[test]
    fn flipped_bits_of_a_gguf_never_panic(
        flips in prop::collection::vec((any::<u16>(), 0..8_u32, any::<bool>()), 1..4)
    ) {
        let mut bytes = tiny_gguf();
        // Half of the flips in the header, where they hurt.
        let header = header_len(&bytes);
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
}
