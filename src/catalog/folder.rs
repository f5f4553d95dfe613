//! What a path holds: a GGUF file, a Hugging Face folder, or neither.

use std::path::{Path, PathBuf};

use super::CatalogError;
use crate::infer::ModelSource;

/// The model at a path that exists.
pub(super) fn model_at(path: &Path) -> Result<ModelSource, CatalogError> {
    let shown = path.display();
    if path.is_file() {
        return if is_gguf(path) {
            Ok(ModelSource::Gguf(path.to_owned()))
        } else {
            Err(CatalogError {
                message: format!("{shown} is not a GGUF file"),
                hint: Some(
                    "a model is a .gguf file or a folder with config.json, tokenizer.json and \
                     safetensors"
                        .to_owned(),
                ),
            })
        };
    }
    if path.join("config.json").is_file() {
        return Ok(ModelSource::Folder(path.to_owned()));
    }
    match gguf_files(path).as_slice() {
        [one] => Ok(ModelSource::Gguf(one.clone())),
        [] => Err(CatalogError {
            message: format!("{shown} holds no model: neither config.json nor a .gguf file"),
            hint: Some("a model folder has config.json, tokenizer.json and safetensors".to_owned()),
        }),
        many => Err(CatalogError {
            message: format!("{shown} holds {} GGUF files", many.len()),
            hint: Some(format!("name one of them, such as {}", many[0].display())),
        }),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// In the order of their names.
fn gguf_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is_gguf(path) && path.is_file()).collect();
    files.sort();
    files
}
