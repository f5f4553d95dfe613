//! A safetensors file of any bytes beside a config and a tokenizer that are
//! whole: refused, or every weight can be read or is refused by name.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use yardstick::infer::weights::{self, WeightForm};
use yardstick::infer::{ModelConfig, ModelSource};

const CONFIG: &str = include_str!("../config.json");
const TOKENIZER: &str = include_str!("../tokenizer.json");

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap().keep();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    std::fs::write(folder.join("tokenizer.json"), TOKENIZER).unwrap();
    folder
});

static SHAPE: LazyLock<ModelConfig> = LazyLock::new(|| ModelConfig::from_hf(CONFIG, None).unwrap());

fuzz_target!(|bytes: &[u8]| {
    // Most bytes are refused here; only the others are worth a file and a tokenizer.
    if weights::check_safetensors(bytes, &SHAPE).is_err() {
        return;
    }
    std::fs::write(FOLDER.join("model.safetensors"), bytes).unwrap();
    let model = weights::open(&ModelSource::Folder(FOLDER.clone())).unwrap();
    for (name, shape) in model.config.tensors() {
        // Numbers that are none are refused only where they are read.
        let _ = model.weights.load(&name, &shape, WeightForm::Stored);
    }
});
