//! Files that are truncated, corrupt, or lie: always a typed error that names
//! the file and what is wrong, never a panic or an allocation they do not back.

mod config;
mod folder;
mod gguf;
mod numbers;
mod tokenizer;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use safetensors::tensor::Dtype;
use yardstick::infer::weights::{self, WeightForm};
use yardstick::infer::{InferError, ModelSource};

use super::forms::{values, write_tiny_folder};

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
fn what_is_no_model_file_is_refused() {
    assert!(gguf_refusal(b"").contains("empty"));
    assert!(gguf_refusal(b"GG").contains("truncated"));
    assert!(gguf_refusal(b"<html>not found</html>").contains("not a GGUF file"));
    let folder = tempfile::tempdir().unwrap();
    assert!(refusal(&ModelSource::Gguf(folder.path().to_owned())).contains("not a regular file"));
    assert!(refusal(&ModelSource::Folder(folder.path().to_owned())).contains("config.json"));
}

/// Opens and, where that works, loads everything: whatever comes of it, no
/// panic, and no tensor that is only half there.
fn exercise(source: &ModelSource) {
    let Ok(model) = weights::open(source) else { return };
    for (name, shape) in model.config.tensors() {
        match model.weights.load(&name, &shape, WeightForm::F32) {
            Ok(weight) => assert_eq!(values(&weight).len(), shape.iter().product::<usize>()),
            // A number that is none shows only now.
            Err(InferError::Load { .. }) => {}
            Err(other) => panic!("expected a load error, got {other:?}"),
        }
    }
}

/// A place in a file of `len` bytes, `share` of 65536 into it.
fn place(len: usize, share: u16) -> usize {
    len * usize::from(share) / (1 << 16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

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
