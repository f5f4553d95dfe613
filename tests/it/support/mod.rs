//! Parts that several modules share.

pub mod browser;
pub mod cloud_run;
pub mod nvml;
pub mod scripted;
#[cfg(target_os = "linux")]
pub mod served;
pub mod wire;

use std::path::Path;
use std::process::Command;

/// The binary under test.
pub fn yardstick() -> Command {
    Command::new(env!("CARGO_BIN_EXE_yardstick"))
}

/// Writes the `config.json` of a Llama of two layers with so many KV heads, each of 16 and
/// shared by two heads: enough to load it as noise.
pub fn write_tiny_config(folder: &Path, num_kv_heads: u32) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512,
        "hidden_size": 32 * num_kv_heads, "intermediate_size": 64 * num_kv_heads,
        "num_hidden_layers": 2, "num_attention_heads": 2 * num_kv_heads,
        "num_key_value_heads": num_kv_heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "eos_token_id": 2,
        "torch_dtype": "float32",
    });
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}
