//! Folders whose safetensors are cut, lie about where and how large their
//! tensors are, or do not fit their neighbours.

use std::fs;

use proptest::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use yardstick::infer::ModelSource;
use yardstick::infer::weights::check_safetensors;

use super::{edit, folder_refusal, place, refusal};
use crate::models::forms::{
    NamedTensor, tiny_config, tiny_weights, write_safetensors, write_tiny_folder,
};

const DAMAGED: &str = "truncated or damaged";

fn tiny_safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_safetensors(&path, &tiny_weights(), Dtype::F32);
    fs::read(&path).unwrap()
}

/// Header and data of a whole file.
fn parts(bytes: &[u8]) -> (&[u8], &[u8]) {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8..].split_at(len)
}

fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// The reason for which `bytes` are refused as the weights of the tiny model.
fn bytes_refusal(bytes: &[u8]) -> String {
    folder_refusal(false, |folder| fs::write(folder.join("model.safetensors"), bytes).unwrap())
}

/// As [`bytes_refusal`], for the tiny model's own under a changed header.
fn header_refusal(change: impl FnOnce(&mut Value)) -> String {
    let good = tiny_safetensors();
    let (header, data) = parts(&good);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    change(&mut header);
    bytes_refusal(&file(header.to_string().as_bytes(), data))
}

#[test]
fn safetensors_that_lie_are_refused() {
    let spoiled = |change: fn(&mut Vec<u8>)| {
        folder_refusal(false, |folder| edit(&folder.join("model.safetensors"), change))
    };
    assert!(spoiled(|bytes| bytes.truncate(bytes.len() - 1)).contains(DAMAGED));
    assert!(spoiled(|bytes| bytes.push(0)).contains(DAMAGED));
    assert!(spoiled(|bytes| bytes.truncate(4)).contains(DAMAGED));
    assert!(spoiled(|bytes| bytes.clear()).contains("empty"));
    let absurd_header = |bytes: &mut Vec<u8>| bytes[..8].copy_from_slice(&[0xff; 8]);
    assert!(spoiled(absurd_header).contains(DAMAGED));
    assert!(spoiled(|bytes| bytes[8] = b'[').contains(DAMAGED));
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

#[test]
fn safetensors_cut_anywhere_in_their_header_are_refused() {
    let good = tiny_safetensors();
    let (header, data) = parts(&good);
    let folder = tempfile::tempdir().unwrap();
    write_tiny_folder(folder.path(), Dtype::F32, false);
    let path = folder.path().join("model.safetensors");
    for len in 0..=header.len() {
        let cut = &good[..8 + len];
        assert!(check_safetensors(cut, &tiny_config()).unwrap_err().contains(DAMAGED), "{len}");
        fs::write(&path, cut).unwrap();
        refusal(&ModelSource::Folder(folder.path().to_owned()));
    }
    // The same where the length says so and the data follow.
    let json_len = header.trim_ascii_end().len();
    for len in 0..json_len {
        let cut = file(&header[..len], data);
        assert!(check_safetensors(&cut, &tiny_config()).unwrap_err().contains(DAMAGED), "{len}");
    }
}

#[test]
fn any_byte_of_a_safetensors_header_may_be_wrong() {
    let good = tiny_safetensors();
    for at in 0..8 + parts(&good).0.len() {
        for wrong in [0x00, 0xff, b'"', b'9', b'}', b'\\'] {
            let mut bad = good.clone();
            bad[at] = wrong;
            // Whatever comes of it, it comes.
            let _ = check_safetensors(&bad, &tiny_config());
        }
    }
}

#[test]
fn safetensors_offsets_that_lie_are_refused() {
    let name = "model.norm.weight";
    let offsets = |offsets: Value| header_refusal(|header| header[name]["data_offsets"] = offsets);
    let good = tiny_safetensors();
    let header: Value = serde_json::from_slice(parts(&good).0).unwrap();
    let (begin, end) = (&header[name]["data_offsets"][0], &header[name]["data_offsets"][1]);
    let (begin, end) = (begin.as_u64().unwrap(), end.as_u64().unwrap());
    let of_another = header["model.embed_tokens.weight"]["data_offsets"].clone();
    for lie in [
        // Over another tensor, in part and whole.
        json!([begin - 4, end - 4]),
        of_another,
        // Out of the file, overflowing, and backwards.
        json!([begin + (1_u64 << 40), end + (1_u64 << 40)]),
        json!([u64::MAX - 127, u64::MAX]),
        json!([begin, u64::MAX]),
        json!([end, begin]),
        // No places at all.
        json!([begin]),
        json!([begin, end, end]),
        json!([-128, 0]),
        json!([begin as f64 + 0.5, end]),
        json!(["0", "128"]),
        json!(null),
    ] {
        let reason = offsets(lie.clone());
        assert!(reason.contains(DAMAGED), "{lie}: {reason}");
    }
}

#[test]
fn safetensors_shapes_that_lie_are_refused() {
    let name = "model.norm.weight";
    let shape = |shape: Value| header_refusal(|header| header[name]["shape"] = shape);
    for lie in [
        json!([31]),
        json!([64]),
        json!([]),
        json!([0]),
        json!([1_u64 << 62, 4]),
        json!([u64::MAX, u64::MAX]),
        json!([-32]),
        json!([32.0]),
        json!("32"),
    ] {
        let reason = shape(lie.clone());
        assert!(reason.contains(DAMAGED), "{lie}: {reason}");
    }
    // The same number of elements in another shape is for the config to tell.
    let reason = shape(json!([4, 8]));
    assert!(reason.contains("`model.norm.weight` has shape [4, 8], expected [32]"), "{reason}");
    let wider = header_refusal(|header| header[name]["dtype"] = json!("F64"));
    assert!(wider.contains(DAMAGED), "{wider}");
    let unknown = header_refusal(|header| header[name]["dtype"] = json!("F99"));
    assert!(unknown.contains(DAMAGED), "{unknown}");
}

#[test]
fn safetensors_headers_that_are_none_are_refused() {
    let good = tiny_safetensors();
    let (header, data) = parts(&good);
    for not_a_header in [
        &b""[..],
        b"[]",
        b"null",
        b"{\"a\":1}",
        b"\xff\xfe{}",
        &b"[".repeat(100_000),
        &[b"{\"a\":".repeat(50_000), b"1".to_vec()].concat(),
    ] {
        let reason = bytes_refusal(&file(not_a_header, data));
        assert!(reason.contains(DAMAGED), "{reason}");
    }
    // Longer than the file, by one byte and by all there are.
    for len in [good.len() as u64 - 7, good.len() as u64, u64::MAX - 7, 1 << 63] {
        let lying = [&len.to_le_bytes(), header, data].concat();
        assert!(bytes_refusal(&lying).contains(DAMAGED), "{len}");
    }
    let metadata = header_refusal(|header| header["__metadata__"] = json!({"format": 1}));
    assert!(metadata.contains(DAMAGED), "{metadata}");
    // Empty, and true about it.
    let empty = bytes_refusal(&file(b"{}", b""));
    assert!(empty.contains("`model.embed_tokens.weight` is missing"), "{empty}");
    // A tensor named twice hides another's bytes.
    let text = std::str::from_utf8(header).unwrap();
    let twice = text.replace("layers.1.self_attn.q_proj", "layers.0.self_attn.q_proj");
    bytes_refusal(&file(twice.as_bytes(), data));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_truncated_safetensors_is_an_error(cut in any::<u16>()) {
        folder_refusal(false, |folder| edit(&folder.join("model.safetensors"), |bytes| {
            let len = place(bytes.len(), cut);
            bytes.truncate(len);
        }));
    }
}
