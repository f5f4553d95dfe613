//! A config.json with numbers that no model has, or that its weights do not have.

use std::fs;

use serde_json::{Value, json};

use super::folder_refusal;

/// The reason for which the tiny model is refused once its config is changed.
fn refused(change: &[(&str, Value)]) -> String {
    let reason = folder_refusal(false, |folder| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (field, value) in change {
            config[*field] = value.clone();
        }
        fs::write(path, config.to_string()).unwrap();
    });
    assert!(reason.starts_with("cannot load "), "{reason}");
    reason
}

#[test]
fn config_with_impossible_heads_is_refused_with_its_numbers() {
    for (field, value, message) in [
        ("num_attention_heads", json!(0), "num_attention_heads is 0, expected 1 to 1024"),
        ("num_attention_heads", json!(3), "num_attention_heads 3 is not divisible by"),
        ("num_attention_heads", json!(1), "1 is not divisible by num_key_value_heads 2"),
        ("num_attention_heads", json!(1 << 20), "num_attention_heads is 1048576"),
        ("num_attention_heads", json!(u64::MAX), "num_attention_heads is 18446744073709551615"),
        ("num_attention_heads", json!(-4), "invalid value: integer `-4`"),
        ("num_attention_heads", json!(4.0), "invalid type: floating point `4.0`"),
        ("num_attention_heads", json!("4"), "invalid type: string \"4\""),
        ("num_attention_heads", json!(null), "invalid type: null"),
        ("num_key_value_heads", json!(0), "num_key_value_heads is 0"),
        ("num_key_value_heads", json!(3), "is not divisible by num_key_value_heads 3"),
        ("num_key_value_heads", json!(8), "4 is not divisible by num_key_value_heads 8"),
        ("num_key_value_heads", json!(u64::MAX), "num_key_value_heads is"),
        ("head_dim", json!(0), "head_dim is 0"),
        ("head_dim", json!(7), "head_dim 7 is odd"),
        ("head_dim", json!(4098), "head_dim is 4098, expected 1 to 4096"),
        ("head_dim", json!(1_u64 << 63), "head_dim is 9223372036854775808"),
        ("hidden_size", json!(0), "hidden_size is 0"),
        ("hidden_size", json!(1_u64 << 40), "hidden_size is 1099511627776"),
        ("intermediate_size", json!(0), "intermediate_size is 0"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("num_hidden_layers", json!(1_000_000), "num_hidden_layers is 1000000"),
        ("vocab_size", json!(0), "vocab_size is 0"),
        ("vocab_size", json!(1_u64 << 40), "vocab_size is 1099511627776"),
        ("max_position_embeddings", json!(0), "max_position_embeddings is 0"),
        ("max_position_embeddings", json!(u64::MAX), "max_position_embeddings is"),
        ("rms_norm_eps", json!(-1.0), "rms_norm_eps -1 is not between 0 and 1"),
        ("rope_theta", json!(0), "rope_theta 0 is not"),
        ("eos_token_id", json!([257, 288]), "eos_token_id 288 is outside the vocabulary of 288"),
    ] {
        let reason = refused(&[(field, value.clone())]);
        assert!(reason.contains(message), "{field} {value}: {reason}");
    }
    // Without a head_dim the heads must share the width evenly.
    for heads in [0, 5] {
        let reason = refused(&[("head_dim", json!(null)), ("num_attention_heads", json!(heads))]);
        assert!(reason.contains(&format!("32 is not divisible into {heads} heads")), "{reason}");
    }
    // Each number by itself may be; their product may not.
    let wide = refused(&[
        ("num_attention_heads", json!(1024)),
        ("num_key_value_heads", json!(1)),
        ("head_dim", json!(4096)),
    ]);
    assert!(wide.contains("num_attention_heads * head_dim is 4194304"), "{wide}");
}

#[test]
fn config_that_its_weights_do_not_have_is_refused_by_tensor() {
    for (field, value, message) in [
        ("num_attention_heads", json!(8), "q_proj.weight` has shape [32, 32], expected [64, 32]"),
        ("num_key_value_heads", json!(4), "k_proj.weight` has shape [16, 32], expected [32, 32]"),
        ("head_dim", json!(16), "q_proj.weight` has shape [32, 32], expected [64, 32]"),
        ("intermediate_size", json!(128), "gate_proj.weight` has shape [64, 32], expected"),
        ("num_hidden_layers", json!(3), "`model.layers.2.input_layernorm.weight` is missing"),
        ("num_hidden_layers", json!(1024), "`model.layers.2.input_layernorm.weight` is missing"),
        ("vocab_size", json!(289), "embed_tokens.weight` has shape [288, 32], expected [289, 32]"),
        ("tie_word_embeddings", json!(false), "tensor `lm_head.weight` is missing"),
        ("architectures", json!(["Qwen2ForCausalLM"]), "`model.layers.0.self_attn.q_proj.bias`"),
    ] {
        let reason = refused(&[(field, value.clone())]);
        assert!(reason.contains(message), "{field} {value}: {reason}");
    }
}

#[test]
fn config_that_is_no_config_is_refused() {
    for text in ["", "null", "[]", "{}", "\u{feff}{}", "{\"vocab_size\": 1e999}"] {
        let reason =
            folder_refusal(false, |folder| fs::write(folder.join("config.json"), text).unwrap());
        assert!(reason.contains("config.json: "), "{text}: {reason}");
    }
    let deep = format!("{{\"quantization_config\":{}", "[".repeat(100_000));
    let reason =
        folder_refusal(false, |folder| fs::write(folder.join("config.json"), deep).unwrap());
    assert!(reason.contains("recursion limit"), "{reason}");
    let bytes = b"{\"architectures\": [\"\xff\"]}";
    let reason =
        folder_refusal(false, |folder| fs::write(folder.join("config.json"), bytes).unwrap());
    assert!(reason.contains("UTF-8"), "{reason}");
}
