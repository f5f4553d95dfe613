//! A GGUF file of any bytes: opened, and where that works, every weight read
//! both ways. It is refused or it is whole; it never panics, and never asks
//! for memory that the file does not back.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use yardstick::infer::ModelSource;
use yardstick::infer::weights::{self, WeightForm};

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    tempfile::Builder::new().suffix(".gguf").tempfile().unwrap().keep().unwrap().1
});

fuzz_target!(|bytes: &[u8]| {
    // Most bytes are refused here; only the others are worth a file and a tokenizer.
    if weights::gguf_config(bytes).is_err() {
        return;
    }
    std::fs::write(&*FILE, bytes).unwrap();
    let Ok(model) = weights::open(&ModelSource::Gguf(FILE.clone())) else { return };
    for (name, shape) in model.config.tensors() {
        for form in [WeightForm::F32, WeightForm::Stored] {
            let _ = model.weights.load(&name, &shape, form);
        }
    }
});
