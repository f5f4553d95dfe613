//! `config.json` and `generation_config.json` as Hugging Face writes them.
//! Whatever would change the arithmetic and is not implemented is refused by name.

use serde::Deserialize;

use super::{ModelConfig, RopeScaling};

/// Rotary base where `config.json` has none, as in transformers.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
/// Window where `config.json` does not mention it, as in transformers; `null` is none.
const DEFAULT_SLIDING_WINDOW: usize = 4096;

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeJson>,
    rope_parameters: Option<RopeJson>,
    max_position_embeddings: usize,
    #[serde(default = "default_sliding_window")]
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<serde_json::Value>,
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
struct RopeJson {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    legacy_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's own type")]
const fn default_sliding_window() -> Option<usize> {
    Some(DEFAULT_SLIDING_WINDOW)
}

#[derive(Deserialize)]
struct GenerationConfigJson {
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl ModelConfig {
    /// Reads `config.json`, and the end-of-sequence tokens that
    /// `generation_config.json` adds. `bos_token_id` stays empty: whether the
    /// tokenizer adds it is for the tokenizer to say.
    ///
    /// # Errors
    /// A sentence naming the field: JSON that does not parse, an architecture,
    /// rope type, activation or quantization that is not implemented, or
    /// numbers that no model has.
    pub fn from_hf(config: &str, generation_config: Option<&str>) -> Result<Self, String> {
        let json: ConfigJson =
            serde_json::from_str(config).map_err(|e| format!("config.json: {e}"))?;
        let family = Family::of(&json)?;
        json.refuse_the_unimplemented(family)?;
        let (rope_theta, rope_scaling) = json.rope()?;
        let mut eos_token_ids = json.eos_token_id.map_or_else(Vec::new, TokenIds::into_vec);
        if let Some(text) = generation_config {
            let generation: GenerationConfigJson =
                serde_json::from_str(text).map_err(|e| format!("generation_config.json: {e}"))?;
            eos_token_ids.extend(generation.eos_token_id.map_or_else(Vec::new, TokenIds::into_vec));
        }
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        let head_dim = match json.head_dim {
            Some(dim) => dim,
            None => even_share(json.hidden_size, json.num_attention_heads)?,
        };
        // Up to the window's width sliding attention is full attention.
        let slides = json.use_sliding_window.unwrap_or(family == Family::Mistral);
        let window = json.sliding_window.filter(|_| slides).unwrap_or(usize::MAX);
        let model = Self {
            vocab_size: json.vocab_size,
            hidden_size: json.hidden_size,
            intermediate_size: json.intermediate_size,
            num_hidden_layers: json.num_hidden_layers,
            num_attention_heads: json.num_attention_heads,
            num_key_value_heads: json.num_key_value_heads.unwrap_or(json.num_attention_heads),
            head_dim,
            rms_norm_eps: json.rms_norm_eps,
            rope_theta,
            rope_scaling,
            max_position_embeddings: json.max_position_embeddings.min(window),
            tie_word_embeddings: json.tie_word_embeddings,
            attention_bias: family == Family::Qwen2,
            eos_token_ids,
            bos_token_id: None,
        };
        model.check()?;
        Ok(model)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
}

impl Family {
    fn of(json: &ConfigJson) -> Result<Self, String> {
        let name = match (json.architectures.as_slice(), &json.model_type) {
            ([one], _) => one,
            ([], Some(model_type)) => model_type,
            ([], None) => return Err("config.json names no architecture".to_owned()),
            (many, _) => {
                return Err(format!("config.json names {} architectures, expected 1", many.len()));
            }
        };
        match name.as_str() {
            "LlamaForCausalLM" | "llama" => Ok(Self::Llama),
            "MistralForCausalLM" | "mistral" => Ok(Self::Mistral),
            "Qwen2ForCausalLM" | "qwen2" => Ok(Self::Qwen2),
            other => Err(format!(
                "architecture `{other}` is not supported, expected LlamaForCausalLM, \
                 MistralForCausalLM or Qwen2ForCausalLM"
            )),
        }
    }
}

impl ConfigJson {
    fn refuse_the_unimplemented(&self, family: Family) -> Result<(), String> {
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(format!("hidden_act `{act}` is not supported, expected silu"));
        }
        if self.mlp_bias {
            return Err("mlp_bias is not supported".to_owned());
        }
        if self.attention_bias && family != Family::Qwen2 {
            return Err("attention_bias is supported for Qwen2 only".to_owned());
        }
        let nested = self.rope_parameters.as_ref().and_then(|rope| rope.partial_rotary_factor);
        let parts = [self.partial_rotary_factor, nested];
        if let Some(part) = parts.into_iter().flatten().find(|part| (part - 1.0).abs() > 1e-9) {
            return Err(format!("partial_rotary_factor {part} is not supported, expected 1"));
        }
        if let Some(quantization) = &self.quantization_config {
            let method = quantization.get("quant_method").and_then(|m| m.as_str());
            return Err(format!(
                "weights quantized by `{}` are not supported, expected plain safetensors or GGUF",
                method.unwrap_or("an unnamed method")
            ));
        }
        Ok(())
    }

    fn rope(&self) -> Result<(f64, Option<RopeScaling>), String> {
        let nested = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = self
            .rope_parameters
            .as_ref()
            .and_then(|rope| rope.rope_theta)
            .or(self.rope_theta)
            .unwrap_or(DEFAULT_ROPE_THETA);
        Ok((theta, nested.map_or(Ok(None), RopeJson::scaling)?))
    }
}

impl RopeJson {
    fn scaling(&self) -> Result<Option<RopeScaling>, String> {
        let kind = self.rope_type.as_deref().or(self.legacy_type.as_deref());
        match kind {
            Some("default") | None => Ok(None),
            Some("llama3") => Ok(Some(RopeScaling {
                factor: required("factor", self.factor)?,
                low_freq_factor: required("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: required("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: required(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            })),
            Some(other) => {
                Err(format!("rope type `{other}` is not supported, expected default or llama3"))
            }
        }
    }
}

fn required<T>(name: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("rope scaling llama3 lacks {name}"))
}

/// Width of a head where the file leaves it to arithmetic.
pub(crate) fn even_share(hidden_size: usize, heads: usize) -> Result<usize, String> {
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(format!("hidden_size {hidden_size} is not divisible into {heads} heads"));
    }
    Ok(hidden_size / heads)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn llama_3_2_3b() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
            "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "max_position_embeddings": 131_072, "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "eos_token_id": [128_001, 128_008, 128_009],
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}
        })
    }

    fn parse(config: &Value) -> Result<ModelConfig, String> {
        ModelConfig::from_hf(&config.to_string(), None)
    }

    fn refused(field: &str, value: Value) -> String {
        let mut config = llama_3_2_3b();
        config[field] = value;
        parse(&config).unwrap_err()
    }

    #[test]
    fn llama_3_2_3b_has_its_published_size() {
        let model = parse(&llama_3_2_3b()).unwrap();
        assert_eq!(model.num_parameters(), 3_212_749_824);
        assert_eq!(model.kv_bytes_per_token(2), 114_688);
        assert_eq!(model.eos_token_ids, [128_001, 128_008, 128_009]);
        assert_eq!(model.rope_scaling.unwrap().original_max_position_embeddings, 8192);
    }

    #[test]
    fn omitted_fields_take_the_defaults_of_transformers() {
        let mut config = llama_3_2_3b();
        let object = config.as_object_mut().unwrap();
        for field in ["head_dim", "num_key_value_heads", "rope_theta", "rope_scaling"] {
            object.remove(field);
        }
        let model = parse(&config).unwrap();
        assert_eq!((model.head_dim, model.num_key_value_heads), (128, 24));
        assert!((model.rope_theta - 10_000.0).abs() < f64::EPSILON);
        assert_eq!(model.rope_scaling, None);
    }

    #[test]
    fn generation_config_adds_ends_of_sequence() {
        let mut config = llama_3_2_3b();
        config["eos_token_id"] = json!(128_001);
        let model = ModelConfig::from_hf(
            &config.to_string(),
            Some(r#"{"eos_token_id": [128009, 128001]}"#),
        );
        assert_eq!(model.unwrap().eos_token_ids, [128_001, 128_009]);
    }

    #[test]
    fn rope_parameters_of_transformers_5_are_read() {
        let mut config = llama_3_2_3b();
        config.as_object_mut().unwrap().remove("rope_theta");
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 100_000.0});
        let model = parse(&config).unwrap();
        assert!((model.rope_theta - 100_000.0).abs() < f64::EPSILON);
        assert_eq!(model.rope_scaling, None);
    }

    #[test]
    fn a_sliding_window_bounds_the_length() {
        let mut config = llama_3_2_3b();
        config["architectures"] = json!(["MistralForCausalLM"]);
        config["sliding_window"] = json!(2048);
        assert_eq!(parse(&config).unwrap().max_position_embeddings, 2048);
        config["sliding_window"] = json!(null);
        assert_eq!(parse(&config).unwrap().max_position_embeddings, 131_072);
        config.as_object_mut().unwrap().remove("sliding_window");
        assert_eq!(parse(&config).unwrap().max_position_embeddings, 4096);
        config["sliding_window"] = json!(0);
        assert!(parse(&config).unwrap_err().contains("max_position_embeddings is 0"));
        config["architectures"] = json!(["Qwen2ForCausalLM"]);
        let qwen = parse(&config).unwrap();
        assert_eq!(qwen.max_position_embeddings, 131_072);
        assert!(qwen.attention_bias);
        config["use_sliding_window"] = json!(true);
        config["sliding_window"] = json!(1024);
        assert_eq!(parse(&config).unwrap().max_position_embeddings, 1024);
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        assert!(refused("architectures", json!(["GPT2LMHeadModel"])).contains("GPT2LMHeadModel"));
        assert!(refused("rope_scaling", json!({"type": "yarn"})).contains("yarn"));
        assert!(refused("hidden_act", json!("gelu")).contains("gelu"));
        assert!(refused("quantization_config", json!({"quant_method": "gptq"})).contains("gptq"));
        assert!(refused("attention_bias", json!(true)).contains("attention_bias"));
        assert!(refused("mlp_bias", json!(true)).contains("mlp_bias"));
        assert!(refused("partial_rotary_factor", json!(0.5)).contains("partial_rotary_factor"));
        let nested = json!({"rope_type": "default", "partial_rotary_factor": 0.25});
        assert!(refused("rope_parameters", nested).contains("partial_rotary_factor 0.25"));
        assert!(
            refused("rope_parameters", json!({"rope_type": "llama3"})).contains("lacks factor")
        );
    }

    #[test]
    fn impossible_numbers_are_refused() {
        assert!(refused("num_key_value_heads", json!(7)).contains("not divisible"));
        assert!(refused("num_key_value_heads", json!(0)).contains("num_key_value_heads is 0"));
        assert!(refused("num_key_value_heads", json!(48)).contains("24 is not divisible by"));
        assert!(refused("num_attention_heads", json!(0)).contains("num_attention_heads is 0"));
        assert!(refused("head_dim", json!(0)).contains("head_dim is 0"));
        assert!(refused("head_dim", json!(1_u64 << 40)).contains("head_dim is 1099511627776"));
        assert!(refused("num_hidden_layers", json!(0)).contains("num_hidden_layers is 0"));
        assert!(refused("hidden_size", json!(1_u64 << 60)).contains("hidden_size"));
        assert!(refused("vocab_size", json!(-1)).contains("config.json"));
        assert!(refused("head_dim", json!(127)).contains("odd"));
        assert!(refused("rms_norm_eps", json!(0.0)).contains("rms_norm_eps"));
        assert!(refused("rope_theta", json!(-1.0)).contains("rope_theta"));
        assert!(refused("eos_token_id", json!(128_256)).contains("eos_token_id 128256"));
        assert!(refused("num_attention_heads", json!(1_u64 << 62)).contains("num_attention_heads"));
        let mut config = llama_3_2_3b();
        config.as_object_mut().unwrap().remove("head_dim");
        config["num_attention_heads"] = json!(7);
        assert!(parse(&config).unwrap_err().contains("3072 is not divisible into 7 heads"));
    }
}
