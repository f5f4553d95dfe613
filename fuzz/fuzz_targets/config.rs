//! A config.json of any text: refused, or its numbers are small enough that
//! everything computed from them fits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use yardstick::infer::ModelConfig;

fuzz_target!(|text: &str| {
    let Ok(config) = ModelConfig::from_hf(text, Some(text)) else { return };
    assert!(config.num_parameters() > 0);
    assert!(config.kv_bytes_per_token(4) > 0);
    assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
});
