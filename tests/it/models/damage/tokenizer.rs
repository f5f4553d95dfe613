//! Tokenizers of which any part is missing or something else, and texts that
//! the library behind them cannot take.

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use yardstick::infer::{InferError, Tokenizer};

use super::gguf::{gguf_with, set};
use crate::models::forms::{write_tiny_folder, write_tiny_tokenizer};
use crate::models::tokenizer::sentence_piece_json;
use crate::support::yardstick;

/// Places of all values inside `value`, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(nth, value)| (nth.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in inner {
        let place = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        places(value, &place, found);
        found.push(place);
    }
}

/// Takes what is at `place` out.
fn remove(json: &mut Value, place: &str) {
    let (parent, key) = place.rsplit_once('/').unwrap();
    match json.pointer_mut(parent).unwrap() {
        Value::Object(map) => {
            map.remove(&key.replace("~1", "/").replace("~0", "~")).unwrap();
        }
        Value::Array(items) => {
            items.remove(key.parse().unwrap());
        }
        other => panic!("{place} lies inside of {other}"),
    }
}

fn read(path: &Path, json: &Value) -> Result<Tokenizer, String> {
    fs::write(path, json.to_string()).unwrap();
    match Tokenizer::from_file(path) {
        Ok(tokenizer) => Ok(tokenizer),
        Err(error @ InferError::Load { .. }) => Err(error.to_string()),
        Err(other) => panic!("expected a load error, got {other:?}"),
    }
}

#[test]
fn any_part_of_a_tokenizer_may_be_missing_or_something_else() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_tokenizer(folder.path());
    let path = folder.path().join("tokenizer.json");
    let byte_level: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let others = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1e300),
        json!(u32::MAX),
        json!(""),
        json!("é"),
        json!("ByteLevel"),
        json!([]),
        json!({}),
        json!({"type": "BPE"}),
        json!({"type": "Precompiled"}),
    ];
    let mut num_opened = 0;
    for json in [byte_level, sentence_piece_json()] {
        let mut all = Vec::new();
        places(&json, "", &mut all);
        // One token is as good as another.
        all.retain(|place| !place.starts_with("/model/vocab/") || place.ends_with("/hi"));
        for place in all {
            let mut without = json.clone();
            remove(&mut without, &place);
            let changed = others.iter().map(|other| {
                let mut changed = json.clone();
                *changed.pointer_mut(&place).unwrap() = other.clone();
                changed
            });
            for json in changed.chain([without]) {
                // Refused, or it does something with every text.
                let Ok(tokenizer) = read(&path, &json) else { continue };
                num_opened += 1;
                for text in ["", "hello <|end|> é\u{1f680} hi <s>12  ", "\u{0}\u{feff}\u{2581}"] {
                    let ids = tokenizer.encode(text, true).unwrap_or_default();
                    tokenizer.decode(&ids).unwrap();
                }
            }
        }
    }
    assert!(num_opened > 100, "{num_opened}");
}

/// A tokenizer.json over which the library panics while it reads it, and one
/// over which it panics when it is first used.
fn panicking() -> [Value; 2] {
    let mut charsmap = sentence_piece_json();
    charsmap["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    let mut undefined = sentence_piece_json();
    undefined["post_processor"]["special_tokens"] = json!({});
    [charsmap, undefined]
}

#[test]
fn panic_of_the_library_is_a_load_error_and_nothing_on_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    write_tiny_folder(folder.path(), Dtype::F32, false);
    let path = folder.path().join("tokenizer.json");
    for json in panicking() {
        let reason = read(&path, &json).err().unwrap();
        assert!(reason.contains("the tokenizers library panicked"), "{reason}");
        let output = yardstick()
            .args(["generate", "--prompt", "hi", "--model"])
            .arg(folder.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("error: cannot load "), "{stderr}");
        assert!(!stderr.contains("panicked at"), "{stderr}");
    }
}

#[test]
fn token_that_is_added_to_every_text_and_does_not_exist_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut json = sentence_piece_json();
    json["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([4000]);
    let reason = read(&folder.path().join("tokenizer.json"), &json).err().unwrap();
    assert!(reason.contains("adds token id 4000 to every text"), "{reason}");
}

#[test]
fn text_over_which_the_library_panics_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut json = sentence_piece_json();
    let added = |id: u32, content: &str, lstrip: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": lstrip,
            "rstrip": !lstrip, "normalized": false, "special": true})
    };
    // The first takes the spaces behind it, the second is one of them.
    json["added_tokens"] = json!([added(300, "A", false), added(301, " ", true)]);
    let tokenizer = read(&path, &json).unwrap();
    let error = tokenizer.encode("A   hi", false).unwrap_err();
    assert!(matches!(error, InferError::Request(_)), "{error:?}");
    assert!(error.to_string().contains("the text cannot be tokenized"), "{error}");
    // It goes on with the next.
    let ids = tokenizer.encode("hihi", false).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "hihi");
}

#[test]
fn gguf_merges_that_make_no_token_are_refused() {
    let refused = |merge: &str| {
        let merges = gguf_file::Value::Array(vec![gguf_file::Value::String(merge.to_owned())]);
        gguf_with(|metadata| set(metadata, "tokenizer.ggml.merges", merges))
    };
    assert!(refused("hello hello").contains("merge `hello hello` makes no token"));
    assert!(refused("he he").contains("the merges do not fit the vocabulary"));
    assert!(refused("hello").contains("merge `hello` has no two parts"));
}
