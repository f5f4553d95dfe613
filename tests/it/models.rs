//! Model files, good and damaged, and the catalog that finds them.

mod catalog;
mod damage;
mod forms;
mod tokenizer;
mod weights;

pub(crate) use forms::{
    default_gguf, gguf_name, tiny_metadata, write_hf_form, write_safetensors, write_tiny_tokenizer,
};
