//! The model: its config, and one forward over candle tensors and our ops.

pub mod config;
pub mod llama;

pub use llama::Llama;
